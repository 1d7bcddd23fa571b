"""Streaming top-k: the largest values of rows that arrive block by block, ties to the lower column."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch

# Entries that wait, and that are sorted at a time: the memory of either does not grow with the rows (about 30 and 90
# bytes an entry).
_WAITING, _SORTED = 1 << 19, 1 << 18


class TopK:
    """The k largest values of each of `rows` rows, with the column of each and any number of companions.

    Blocks may come in any order and from several threads: among equal values the lowest columns stay.
    Read `values` (f32, -inf where a row has fewer than k), `columns` (int32, -1 there) and `companions` after `settle`.
    Candidates gather until they are as many as what is kept; only then are they merged and the thresholds raised.
    """

    def __init__(self, rows: int, k: int, companions: int = 0) -> None:
        self.k = k
        self.values = np.full((rows, k), -np.inf, np.float32)
        self.columns = np.full((rows, k), -1, np.int32)
        self.companions = [np.zeros((rows, k), np.float32) for _ in range(companions)]
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._count = 0
        self._limit = min(max(rows * k, 1 << 14), _WAITING)
        self._lock = threading.Lock()
        self._merging = threading.Lock()

    def threshold(self, rows: slice | np.ndarray = slice(None)) -> torch.Tensor:
        """The smallest value kept in these rows, f32 [rows]: no smaller one can enter."""
        return torch.from_numpy(self.values[rows, -1].copy())

    def candidates(
        self, block: torch.Tensor, row_axis: int, rows: slice | np.ndarray = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row and column (int64, within the block) of those values of `block` [2-d, contiguous] that may enter.

        `row_axis` says which axis holds this object's `rows`.
        """
        axis = 1 - row_axis
        threshold = self.threshold(rows)
        hits = scratch("hits", block.shape, torch.bool)
        if bool(torch.isneginf(threshold).all()):
            # Nothing is kept yet: the block's own k-th value bounds what can enter, ties with it included.
            k = min(self.k, block.shape[axis])
            threshold = block.topk(k, dim=axis).values.select(axis, k - 1)
        # numpy compares in a third of torch's time, and finds the few hits several times faster than torch.nonzero.
        np.greater_equal(block.numpy(), threshold.unsqueeze(axis).numpy(), out=hits.numpy())
        first, second = np.divmod(np.flatnonzero(hits.numpy()), block.shape[1])
        return (first, second) if row_axis == 0 else (second, first)

    def offer(
        self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, *companions: np.ndarray
    ) -> None:
        """Take in candidates: rows and columns as this object counts them, one value and its companions each."""
        if not len(rows):
            return
        with self._lock:
            self._pending.append((rows, columns, values, *companions))
            self._count += len(rows)
            full = self._count >= self._limit
        if full or np.isneginf(self.values[rows[0], -1]):
            self.settle()

    def settle(self) -> None:
        """Merge what was offered; after it the thresholds are as high as they can be.

        Other threads go on offering meanwhile, against thresholds that are as low as before or already higher.
        """
        with self._merging:
            with self._lock:
                taken, self._pending, self._count = self._pending, [], 0
            if taken:
                self._merge(taken)

    def _merge(self, taken: list[tuple[np.ndarray, ...]]) -> None:
        rows, columns, values, *companions = (np.concatenate(part) for part in zip(*taken, strict=True))
        taken.clear()
        counts = np.bincount(rows)
        touched = np.flatnonzero(counts)
        # As many rows at a time as bring `_SORTED` entries, those kept included.
        ends = np.cumsum(counts[touched] + self.k)
        if ends[-1] <= _SORTED:
            self._merge_rows(touched, rows, columns, values, companions)
            return
        by_row = np.argsort(rows, kind="stable")
        rows, columns, values = rows[by_row], columns[by_row], values[by_row]
        companions = [companion[by_row] for companion in companions]
        cuts = np.searchsorted(ends, np.arange(_SORTED, ends[-1] + _SORTED, _SORTED), side="right")
        first = 0
        for last in np.unique(np.maximum(cuts, 1)).tolist():
            part = touched[first:last]
            at = slice(*np.searchsorted(rows, [part[0], part[-1] + 1]).tolist())
            self._merge_rows(part, rows[at], columns[at], values[at], [c[at] for c in companions])
            first = last

    def _merge_rows(
        self,
        touched: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        values: np.ndarray,
        companions: Sequence[np.ndarray],
    ) -> None:
        """Merge entries, all those that wait for the rows `touched`, ascending."""
        rows = np.concatenate([np.repeat(touched, self.k), rows])
        columns = np.concatenate([self.columns[touched].ravel(), columns])
        values = np.concatenate([self.values[touched].ravel(), values])
        order = by_row_and_value(rows, values, columns)
        # Every touched row starts with its k kept entries, so its first k in order are its new ones.
        starts = np.searchsorted(rows[order], touched)
        chosen = order[(starts[:, None] + np.arange(self.k)).ravel()]
        shape = (len(touched), self.k)
        self.values[touched] = values[chosen].reshape(shape)
        self.columns[touched] = columns[chosen].reshape(shape)
        for companion, new in zip(self.companions, companions, strict=True):
            companion[touched] = np.concatenate([companion[touched].ravel(), new])[chosen].reshape(shape)


def by_row_and_value(rows: np.ndarray, values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The order of entries by row, then value descending, then column; values are f32 without NaN."""
    # One integer key a entry sorts several times faster than three keys: row, then the value's bits made to
    # descend. Adding 0 turns -0.0 into 0.0.
    bits = (values + np.float32(0)).view(np.int32)
    falling = ~np.where(bits >= 0, bits, bits ^ np.int32(0x7FFFFFFF))
    key = (rows.astype(np.int64) << 32) | (falling.astype(np.int64) + (1 << 31))
    order = np.argsort(key)
    ranked = key[order]
    same = ranked[1:] == ranked[:-1]
    if same.any():
        tied = np.zeros(len(order), bool)
        tied[1:] = same
        tied[:-1] |= same
        part = order[tied]
        order[tied] = part[np.lexsort((columns[part], key[part]))]
    return order


_local = threading.local()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An uninitialised tensor of `shape` in memory that this thread keeps under `name` and uses again.

    A fresh buffer for every block would cost more in page faults than what is done with it.
    """
    buffers: dict[str, torch.Tensor] = _local.__dict__.setdefault("buffers", {})
    size = math.prod(shape)
    if name not in buffers or buffers[name].numel() < size or buffers[name].dtype != dtype:
        buffers[name] = torch.empty(size, dtype=dtype)
    return buffers[name][:size].view(*shape)


def row_blocks(n: int, size: int) -> list[tuple[int, int]]:
    """Start and stop of consecutive blocks of at most `size` of n rows."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def block_rows(columns: int, budget: int = 1 << 20) -> int:
    """How many rows of `columns` f32 values make a block of about `budget` values, 4 MB: it must stay in the cache."""
    # Products of odd numbers of rows are slower.
    return max(64, min(4096, budget // max(columns, 1) // 32 * 32))
