"""What is kept about each feature while texts go by: its strongest tokens of both signs, a sample, a histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from larql_duck.inference.topk import TopK, scratch

# The histogram's bins, for each sign: below 2^LOW, then _STEPS of equal width in every power of two, then 2^HIGH and more.
LOW, HIGH, _STEPS = -16, 14, 8
_OF_SIGN = (HIGH - LOW) * _STEPS + 2
BINS = 2 * _OF_SIGN
# Bits of an f32's mantissa that a bin does not look at, and the number that the first bin's edge then is.
_SHIFT = 23 - 3
_FIRST = (LOW + 127) * _STEPS
# One token in so many is sampled, one a power of two, feature and sign: what fires a feature as it usually does.
_SAMPLED = 16
_POWERS = HIGH - LOW + 2
_NONE = 1 << 62
# Quantiles that are told, and their columns.
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


class FeatureStats:
    """One layer's features: the `top` strongest tokens of each sign, exact sums, and how activations are spread.

    A feature fires at a token where |activation| exceeds fires_above. Tokens are numbered by the caller, ascending;
    memory depends on features and `top` alone.
    """

    def __init__(self, n_features: int, top: int, fires_above: float = 0.0) -> None:
        self.n_features = n_features
        self.fires_above = fires_above
        self.strongest = {sign: TopK(n_features, top) for sign in (1, -1)}
        self.histogram = np.zeros((n_features, BINS), np.int32)
        self.total = np.zeros(n_features, np.float64)
        self.fired = np.zeros(n_features, np.int64)
        self.most = np.full(n_features, -np.inf, np.float32)
        self.least = np.full(n_features, np.inf, np.float32)
        # Of each power of two and sign the sampled token: a number to draw by above the token's own, and its activation.
        self.drawn = np.full((n_features, 2 * _POWERS), _NONE, np.int64)
        self.drawn_activation = np.zeros((n_features, 2 * _POWERS), np.float32)

    def add(self, numbers: np.ndarray, activation: torch.Tensor) -> None:
        """Take in activations f32 [tokens, features], contiguous, of the tokens with these numbers, int64 [tokens]."""
        self.total += activation.sum(0, dtype=torch.float64).numpy()
        self.most = np.maximum(self.most, activation.amax(0).numpy())
        self.least = np.minimum(self.least, activation.amin(0).numpy())
        size = torch.abs(activation, out=scratch("size", activation.shape))
        self.fired += (size > self.fires_above).sum(0).numpy()
        self._count(activation)
        for sign, kept in self.strongest.items():
            values = activation if sign > 0 else torch.neg(activation, out=size)
            features, rows = kept.candidates(values, row_axis=1)
            kept.offer(features, numbers[rows].astype(np.int32), values.numpy()[rows, features])
        drawn = np.flatnonzero(_hash(numbers) % _SAMPLED == 0)
        if len(drawn):
            self._draw(numbers[drawn], activation[torch.from_numpy(drawn)])

    def _count(self, activation: torch.Tensor) -> None:
        bits = activation.view(torch.int32)
        bins = torch.bitwise_right_shift(bits, _SHIFT, out=scratch("bins", bits.shape, torch.int32))
        negative = torch.lt(bits, 0, out=scratch("negative", bits.shape, torch.bool))
        bins.bitwise_and_((0xFF << 3) | 7).sub_(_FIRST - 1).clamp_(0, _OF_SIGN - 1)
        # From the most negative to the most positive.
        bins += _OF_SIGN
        bins = torch.where(negative, BINS - 1 - bins, bins, out=bins)
        bins += torch.arange(0, self.n_features * BINS, BINS, dtype=torch.int32)
        counts = torch.bincount(bins.flatten(), minlength=self.n_features * BINS)
        self.histogram += counts.view(self.n_features, BINS).numpy()

    def _draw(self, numbers: np.ndarray, activation: torch.Tensor) -> None:
        bits = activation.contiguous().view(torch.int32)
        power = ((bits >> 23) & 0xFF).sub_(LOW + 127 - 1).clamp_(0, _POWERS - 1)
        slot = (power + (bits < 0) * _POWERS).long() + torch.arange(self.n_features) * (2 * _POWERS)
        key = torch.from_numpy((_hash(numbers, 1) << 31) | numbers)[:, None].expand_as(slot)
        kept = torch.from_numpy(self.drawn).flatten()
        kept.scatter_reduce_(0, slot.flatten(), key.flatten(), "amin")
        won = kept[slot] == key
        torch.from_numpy(self.drawn_activation).flatten()[slot[won]] = activation[won]

    # -- what came of it ----------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many tokens were taken in."""
        return int(self.histogram[0].sum()) if self.n_features else 0

    def quantiles(self, shares: Sequence[float]) -> np.ndarray:
        """The activation below which each share of the tokens lies, f32 [shares, features], from the histogram."""
        return _quantiles(self.histogram, self.least, self.most, shares)

    def sizes(self, shares: Sequence[float]) -> np.ndarray:
        """The same of |activation|."""
        negative, positive = self.histogram[:, :_OF_SIGN][:, ::-1], self.histogram[:, _OF_SIGN:]
        folded = np.concatenate([np.zeros_like(negative), negative + positive], axis=1)
        return _quantiles(folded, np.zeros_like(self.least), np.maximum(self.most, -self.least), shares)

    def by_powers(self) -> np.ndarray:
        """The histogram by powers of two, int32 [features, bins]: from at most -2^14 to between -2^-16 and 0, then as much above."""
        parts = []
        for own in (self.histogram[:, :_OF_SIGN][:, ::-1], self.histogram[:, _OF_SIGN:]):
            powers = own[:, 1:-1].reshape(len(own), -1, _STEPS).sum(2, dtype=np.int32)
            parts.append(np.concatenate([own[:, :1], powers, own[:, -1:]], axis=1))
        return np.concatenate([parts[0][:, ::-1], parts[1]], axis=1)

    def sampled(self, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sampled tokens of one sign: feature, the token's number, its activation; one a power of two."""
        own = slice(0, _POWERS) if sign > 0 else slice(_POWERS, None)
        features, powers = np.nonzero(self.drawn[:, own] != _NONE)
        numbers = self.drawn[:, own][features, powers] & ((1 << 31) - 1)
        return features, numbers, self.drawn_activation[:, own][features, powers]

    # -- to and from arrays -------------------------------------------------------------------------------

    _KEPT = ("histogram", "total", "fired", "most", "least", "drawn", "drawn_activation")

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, as arrays."""
        out = {name: getattr(self, name) for name in self._KEPT} | {"fires_above": np.array(self.fires_above)}
        for sign, kept in self.strongest.items():
            kept.settle()
            out |= {f"values{sign}": kept.values, f"columns{sign}": kept.columns}
        return out

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the state from what `arrays` gave."""
        for name in self._KEPT:
            getattr(self, name)[:] = arrays[name]
        self.fires_above = float(arrays["fires_above"])
        for sign, kept in self.strongest.items():
            kept.values[:], kept.columns[:] = arrays[f"values{sign}"], arrays[f"columns{sign}"]


def _quantiles(
    histogram: np.ndarray, least: np.ndarray, most: np.ndarray, shares: Sequence[float]
) -> np.ndarray:
    """Quantiles f32 [shares, rows] of rows counted in bins, each spread evenly over its bin."""
    edges, summed = _edges(), histogram.cumsum(1, dtype=np.int64)
    rows = np.arange(len(histogram))
    out = np.empty((len(shares), len(histogram)), np.float32)
    for i, share in enumerate(shares):
        rank = share * (summed[:, -1] - 1) + 0.5
        at = (summed > rank[:, None]).argmax(1)
        before = np.where(at > 0, summed[rows, at - 1], 0)
        inside = (rank - before) / np.maximum(histogram[rows, at], 1)
        low, high = (np.clip(edges[at + side], least, most) for side in (0, 1))
        out[i] = low + (high - low) * inside
    return out


def _edges() -> np.ndarray:
    """The histogram's edges, f64 [BINS + 1], ascending; the outermost are infinite."""
    inside = (np.arange(_OF_SIGN - 1, dtype=np.int32) + _FIRST << _SHIFT).view(np.float32).astype(np.float64)
    positive = np.concatenate([inside, [np.inf]])
    return np.concatenate([-positive[::-1], [0.0], positive])


def _hash(numbers: np.ndarray, seed: int = 0) -> np.ndarray:
    """Numbers below 2^31 spread evenly, int64; the same number always becomes the same."""
    mixed = (numbers.astype(np.uint64) + np.uint64(seed * 40503 + 1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(33)).astype(np.int64)


def threshold(activation: torch.Tensor, share: float = 0.99) -> float:
    """The quantile of |activation| over all tokens and features."""
    size = activation.abs().flatten()
    return float(size.kthvalue(max(1, round(share * size.numel()))).values) if size.numel() else 0.0


def top_features(activation: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Features int32 and activations f32, both [tokens, k]: each token's strongest, by absolute activation."""
    k = min(k, activation.shape[1])
    index = torch.sort(activation.abs(), dim=1, descending=True, stable=True).indices[:, :k]
    return index.to(torch.int32).numpy(), activation.gather(1, index).numpy()
