"""Which examples a step reads: drawn by weight, the same for the same seed, wherever training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from larql_duck.distillation.examples import TrainingExample


@dataclass(frozen=True)
class Pool:
    """Examples, how probable each is to be drawn (any scale), and the share of every batch that is drawn from here."""

    examples: Sequence[TrainingExample]
    weights: np.ndarray
    share: float


class Drawn(Dataset[TrainingExample]):
    """Row after row of `steps` batches of `batch` examples. Row i belongs to step i // batch, and its seed is the step's.

    A batch is drawn from the pools as their shares say, and ordered by length, so that parts of it are padded little.
    """

    def __init__(self, pools: Sequence[Pool], *, batch: int, steps: int, seed: int) -> None:
        self._pools = list(pools)
        self._batch, self._steps, self._seed = batch, steps, seed
        self._counts = shares([pool.share for pool in self._pools], batch)
        self._step = -1
        self._rows: list[TrainingExample] = []

    def __len__(self) -> int:
        return self._batch * self._steps

    def __getitem__(self, row: int) -> TrainingExample:
        step, place = divmod(row, self._batch)
        if step != self._step:
            self._step, self._rows = step, self._of(step)
        return self._rows[place]

    def _of(self, step: int) -> list[TrainingExample]:
        rng = np.random.default_rng((self._seed, step))
        rows: list[TrainingExample] = []
        for pool, count in zip(self._pools, self._counts, strict=True):
            p = pool.weights / pool.weights.sum()
            # Nothing twice in a batch, as long as there is enough.
            numbers = rng.choice(len(p), count, replace=bool(count > np.count_nonzero(p)), p=p)
            rows += [pool.examples[i] for i in numbers]
        return sorted(rows, key=lambda e: len(e.ids))


def shares(parts: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportion of `parts` that sum up to `total`; the largest remainders are rounded up."""
    exact = [total * part / sum(parts) for part in parts]
    counts = [int(value) for value in exact]
    order = sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
