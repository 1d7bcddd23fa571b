"""What is kept about each feature while texts go by: its strongest tokens, a histogram, a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from larql_duck.inference.topk import TopK

# Histogram of |activation| by powers of two: bin 0 is below 2^LOW, the last one from 2^HIGH on.
LOW, HIGH = -12, 16
BINS = HIGH - LOW + 2
# Rows of activations that are counted at a time.
_ROWS = 256


class FeatureStats:
    """One layer's features: the `top` strongest tokens of each, by absolute activation, and how often they activate.

    Tokens are numbered by the caller, ascending; memory depends on features and `top` alone.
    """

    def __init__(self, n_features: int, top: int) -> None:
        self.n_features = n_features
        self.strongest = TopK(n_features, top, companions=1)
        self.histogram = np.zeros((n_features, BINS), np.int64)
        self.total = np.zeros(n_features, np.float64)

    def add(self, numbers: np.ndarray, activation: torch.Tensor) -> None:
        """Take in activations f32 [tokens, features] of the tokens with these numbers, int64 [tokens]."""
        self.total += activation.sum(0, dtype=torch.float64).numpy()
        for start in range(0, len(activation), _ROWS):
            self._count(activation[start : start + _ROWS])
        size = activation.abs()
        features, rows = self.strongest.candidates(size, row_axis=1)
        values = activation.numpy()[rows, features]
        self.strongest.offer(features, numbers[rows].astype(np.int32), np.abs(values), values)

    def _count(self, activation: torch.Tensor) -> None:
        # A float's exponent bits are its power of two; sign and zero take care of themselves.
        exponent = ((activation.view(torch.int32) >> 23) & 0xFF) - 127
        bins = (exponent - (LOW - 1)).clamp_(0, BINS - 1)
        index = bins.to(torch.int64) + torch.arange(self.n_features) * BINS
        counts = torch.bincount(index.flatten(), minlength=self.n_features * BINS)
        self.histogram += counts.view(self.n_features, BINS).numpy()

    def density(self) -> np.ndarray:
        """Share of tokens in the bins from three below that of each feature's strongest token on, f64 [features]."""
        self.strongest.settle()
        count = max(int(self.histogram[0].sum()), 1)
        largest = self.strongest.values[:, 0].clip(min=0)
        with np.errstate(divide="ignore"):
            power = np.where(largest > 0, np.floor(np.log2(largest)), LOW - 1)
        first = np.clip(power - (LOW - 1), 0, BINS - 1).astype(np.int64) - 3
        reached = np.arange(BINS)[None, :] >= first[:, None]
        share: np.ndarray = (self.histogram * reached).sum(1) / count
        return np.where(largest > 0, share, 0.0)

    # -- to and from arrays -------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, as arrays."""
        self.strongest.settle()
        return {
            "values": self.strongest.values,
            "columns": self.strongest.columns,
            "signed": self.strongest.companions[0],
            "histogram": self.histogram,
            "total": self.total,
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the state from what `arrays` gave."""
        self.strongest.values[:] = arrays["values"]
        self.strongest.columns[:] = arrays["columns"]
        self.strongest.companions[0][:] = arrays["signed"]
        self.histogram[:] = arrays["histogram"]
        self.total[:] = arrays["total"]


def top_features(activation: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Features int32 and activations f32, both [tokens, k]: each token's strongest, by absolute activation."""
    k = min(k, activation.shape[1])
    index = torch.sort(activation.abs(), dim=1, descending=True, stable=True).indices[:, :k]
    return index.to(torch.int32).numpy(), activation.gather(1, index).numpy()


def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays one after the other; an empty int64 array for none."""
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
