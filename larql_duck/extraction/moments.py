"""Mean and covariance of vectors: the mean and standard deviation of any dot product with them, without the products."""

from __future__ import annotations

import torch

from larql_duck.inference.topk import row_blocks

# Strips in which symmetric products are computed, and how narrow they may be.
_STRIPS, _LEAST_STRIP = 4, 128

Sums = tuple[int, torch.Tensor, torch.Tensor]
"""Of some rows about the pilot: their number, their sum and the sum of their outer products."""


class Moments:
    """First and second moments of vectors [hidden], gathered block by block; population statistics (divisor n).

    Block products run in f32 about a `pilot` close to the mean and are summed in f64: shifting first keeps the large
    common part of residual-stream vectors from swallowing the small differences.
    """

    def __init__(self, pilot: torch.Tensor) -> None:
        hidden = len(pilot)
        self.n = 0
        self._pilot = pilot
        self._sum = torch.zeros(hidden, dtype=torch.float64)
        self._products = torch.zeros(hidden, hidden, dtype=torch.float64)

    @classmethod
    def of_rows(cls, rows: torch.Tensor) -> Moments:
        """The moments of the rows of a matrix [n, hidden]."""
        moments = cls(rows[:4096].mean(0) if len(rows) else torch.zeros(rows.shape[1]))
        for start, stop in row_blocks(len(rows), 4096):
            moments.add(moments.sums(rows[start:stop]))
        return moments

    def sums(self, rows: torch.Tensor) -> Sums:
        """What `add` takes, of rows [n, hidden], f32 on any device; safe to call from several threads."""
        shifted = rows - self._pilot.to(rows.device)
        return len(rows), shifted.sum(0, dtype=torch.float64).cpu(), _gram(shifted).cpu()

    def add(self, sums: Sums) -> None:
        """Take in the sums of some rows; the order of the calls decides the last bits of the results."""
        n, total, products = sums
        self.n += n
        self._sum += total
        self._products += products

    @property
    def mean(self) -> torch.Tensor:
        """The mean vector, f64 [hidden]."""
        return self._pilot.double() + self._sum / max(self.n, 1)

    @property
    def covariance(self) -> torch.Tensor:
        """The covariance, f64 [hidden, hidden]."""
        offset = self._sum / max(self.n, 1)
        # Of the products those below the diagonal, and a few above it, were computed.
        products = self._products.tril()
        products += self._products.tril(-1).t()
        products /= max(self.n, 1)
        return products.sub_(torch.outer(offset, offset))

    def project(self, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the vectors' dot products with each of `directions` [m, hidden]; f32 [m]."""
        covariance, mean = self.covariance, self.mean
        means, stds = torch.empty(len(directions)), torch.empty(len(directions))
        for start, stop in row_blocks(len(directions), 4096):
            rows = directions[start:stop].cpu().double()
            means[start:stop] = (rows @ mean).float()
            stds[start:stop] = ((rows @ covariance) * rows).sum(1).clamp_min(0).sqrt().float()
        return means, stds


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """rows.t() @ rows on and below the diagonal, in strips; what is above it is the same, and mostly left out."""
    hidden = rows.shape[1]
    out = torch.zeros(hidden, hidden, device=rows.device)
    for start, stop in row_blocks(hidden, max(_LEAST_STRIP, -(-hidden // _STRIPS))):
        torch.mm(rows[:, start:stop].t(), rows[:, :stop], out=out[start:stop, :stop])
    return out
