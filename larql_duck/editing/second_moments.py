"""Second moments of what a layer's feed-forward network reads in ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from larql_duck.editing.keys import layer_input
from larql_duck.inference.engine import Engine
from larql_duck.progress import Progress

FfnTensor = Literal["ffn_in", "ffn_act"]
"""ffn_in: the normed input of the FFN [hidden]; ffn_act: the input of W_down [features of the base]."""

# Tokens a pass.
_PASS = 2048


@dataclass(frozen=True)
class SecondMoment:
    """matrix f64 [d, d]: the mean of x x^T over n positions of a text; mean f64 [d]: that of x.

    notice says why the cache could not keep it.
    """

    matrix: np.ndarray
    mean: np.ndarray
    n: int
    notice: str | None = None

    def to_bytes(self) -> bytes:
        """The matrix row by row, then the mean: little-endian f64."""
        return np.vstack([self.matrix, self.mean]).astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, width: int, n: int) -> SecondMoment | None:
        """What `to_bytes` wrote of a second moment of that width; None where it is of another."""
        if len(data) != 8 * (width + 1) * width:
            return None
        rows = np.frombuffer(data, "<f8").reshape(width + 1, width)
        return cls(rows[:-1].copy(), rows[-1].copy(), n) if np.isfinite(rows).all() else None


def measure_second_moment(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    layer: int,
    which: FfnTensor,
    progress: Progress | None = None,
) -> SecondMoment:
    """The second moment over every position of rows of token ids."""
    width = engine.hidden if which == "ffn_in" else engine.n_features[layer]
    total, sums = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    n = 0
    per_pass = max(1, _PASS // max(map(len, rows)))
    with torch.no_grad():
        for length in sorted({len(row) for row in rows}):
            same = [row for row in rows if len(row) == length]
            for start in range(0, len(same), per_pass):
                batch = same[start : start + per_pass]
                x = layer_input(engine, batch, layer, part="ffn" if which == "ffn_in" else "down")
                # Sums in f64: W_down's inputs span many orders of magnitude.
                x = x.reshape(-1, width).double().cpu()
                total.addmm_(x.t(), x)
                sums += x.sum(0)
                n += len(x)
                if progress is not None:
                    progress(f"second moment of layer {layer}", n, sum(map(len, rows)))
    return SecondMoment((total / max(n, 1)).numpy(), (sums / max(n, 1)).numpy(), n)
