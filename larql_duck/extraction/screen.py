"""The largest products of many rows with vectors: a cheap product finds who may be among them, exact ones decide.

Half precision loses a known part of both operands. What they lost bounds how far a cheap product can be off, and so
which rows may be among the k best; only those are computed again in f32. Each exact product is one dot product of its own, so
that no result depends on what found it. Values are compared as integers: numbers above zero have the order of their bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from larql_duck.extraction.parallel import products
from larql_duck.inference.topk import by_row_and_value, row_blocks

# The one format of which torch computes chosen pairs without copies of their rows.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")

# Bytes of the cheap products that are held at a time, and numbers of a block of them: it must stay in the cache.
_HELD, _BLOCK = 64 << 20, 1 << 19
# Numbers of a block of rows that are made for it alone, and vectors whose candidates are decided at a time.
MADE_NUMBERS, DECIDED = 1 << 20, 64
# Rows of which the largest value is kept (fewer cost more to keep, more of them cost more to look through), and groups
# that are taken together where a threshold is looked for.
GROUP, _WIDE = 16, 4


@dataclass(frozen=True)
class Rounded:
    """A matrix in the dtype of cheap products; `lost` and `length` [n]: upper bounds of the lengths of what each row lost and of what is left."""

    rows: torch.Tensor
    lost: torch.Tensor
    length: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor, dtype: torch.dtype) -> Rounded:
        """The f32 matrix [n, hidden] rounded to `dtype`."""
        into = rows if dtype == rows.dtype else torch.empty(rows.shape, dtype=dtype)
        return cls._filled(into, rows.__getitem__)

    @classmethod
    def made(
        cls, n: int, hidden: int, dtype: torch.dtype, rows_of: Callable[[slice], torch.Tensor]
    ) -> Rounded:
        """An f32 matrix [n, hidden] rounded to `dtype`, of which only some rows, those that `rows_of` gives, are there at a time."""
        return cls._filled(torch.empty(n, hidden, dtype=dtype), rows_of)

    @classmethod
    def _filled(cls, into: torch.Tensor, rows_of: Callable[[slice], torch.Tensor]) -> Rounded:
        lost, length = torch.zeros(len(into)), torch.empty(len(into))
        for start, stop in row_blocks(len(into), 4096):
            block = rows_of(slice(start, stop))
            length[start:stop] = block.norm(dim=1)
            if into.dtype != block.dtype:
                into[start:stop] = block
                lost[start:stop] = (block - into[start:stop].float()).norm(dim=1)
        # The lengths are rounded themselves; a sum of f32 products is off by at most its length times this.
        off = into.shape[1] * torch.finfo(torch.float32).eps / 2
        return cls(into, (lost + off * length) * 1.001, (length + lost) * 1.001)

    def to(self, device: str) -> Rounded:
        """The same with `rows` on a device, where they are multiplied."""
        return replace(self, rows=self.rows.to(device))


class Tops(NamedTuple):
    """The first k rows of each vector: their numbers (ascending where values are equal) and exact values, [vectors, k]."""

    rows: np.ndarray
    values: np.ndarray


def limit_of(threshold: torch.Tensor, slack: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a cheap product must reach to be of a row that may be among the k best; in `dtype`, [n].

    `threshold` is the k-th largest cheap product, or less; each may be off by `slack` before it is rounded.
    """
    # The k best are at least this, and rounding keeps the order: who may reach it is rounded to no less than that is.
    least = threshold - threshold.abs() * (torch.finfo(dtype).eps / 2) - 2 * slack
    return (least - least.abs() * torch.finfo(torch.float32).eps).to(dtype)


def keys_of(values: torch.Tensor) -> np.ndarray:
    """The bits of values as integers, a view: of numbers above zero in the numbers' order, of others below zero."""
    return values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32).numpy()


def negated(keys: np.ndarray) -> np.ndarray:
    """The keys of the numbers' opposites."""
    return keys ^ np.iinfo(keys.dtype).min


def kth_largest(keys: np.ndarray, k: int, dtype: torch.dtype) -> torch.Tensor:
    """The k-th largest number of each row of keys [n, m], f32 [n]; 0 where it is not above zero. Reorders `keys`."""
    at = keys.shape[1] - k
    if at < 0:
        return torch.zeros(len(keys))
    keys.partition(at, axis=1)
    return torch.from_numpy(np.maximum(keys[:, at], 0)).view(dtype).float()


class Memory:
    """Memory for products that is used again while this object lives: new pages cost as much as looking through them."""

    def __init__(self) -> None:
        self._values = torch.empty(0)

    def take(self, n: int, m: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised matrix [n, m]; the one given before it is gone."""
        if self._values.dtype != dtype or len(self._values) < n * m:
            self._values = torch.empty(n * m, dtype=dtype)
        return self._values[: n * m].view(n, m)


class CheapProducts:
    """The products of rows [n, hidden] with some vectors in a cheap dtype, with the largest and smallest of every group of rows.

    Blocks of rows are filled by `fill`, from several threads; then `candidates` can be asked. `lost` and `length` [n] are
    the rows' (see Rounded).
    """

    def __init__(
        self,
        lost: torch.Tensor,
        length: torch.Tensor,
        vectors: Rounded,
        signs: tuple[int, ...],
        memory: Memory,
    ) -> None:
        self.vectors, self._dtype, n = vectors, vectors.rows.dtype, len(lost)
        self._lost, self._length = lost.numpy(), length.numpy()
        self._slack = float(lost.max()) * vectors.length + float(length.max()) * vectors.lost
        self.values = memory.take(n, len(vectors.rows), self._dtype)
        self._keys = keys_of(self.values)
        groups = -(-n // GROUP)
        self._largest = {sign: np.empty((groups, self._keys.shape[1]), self._keys.dtype) for sign in signs}

    def fill(self, start: int, stop: int, rows: torch.Tensor) -> torch.Tensor:
        """The products of rows start..stop (start: of a group) with the vectors, after their groups were seen."""
        block = self.values[start:stop]
        products(rows, self.vectors.rows, out=block)
        keys = keys_of(block)
        whole = len(keys) // GROUP
        for sign, largest in self._largest.items():
            # Unsigned, those below zero are the largest, and the further below the larger.
            of, to = (a if sign > 0 else a.view(f"u{a.dtype.itemsize}") for a in (keys, largest))
            first = start // GROUP
            grouped = of[: whole * GROUP].reshape(whole, GROUP, -1)
            np.maximum.reduce(grouped, axis=1, out=to[first : first + whole])
            if whole * GROUP < len(of):
                np.maximum.reduce(of[whole * GROUP :], axis=0, out=to[first + whole])
        return block

    def candidates(self, first: int, last: int, k: int, sign: int) -> tuple[np.ndarray, np.ndarray]:
        """Vector (from `first` on) and row of each product that may be among the k best of vectors first..last.

        `sign` -1 asks for the smallest. Vectors ascend.
        """
        largest = np.ascontiguousarray(self._largest[sign][:, first:last].T)
        if sign < 0:
            largest = negated(largest)
        # A few groups as one: there are fewer to sort, and hardly ever are two of the k best in the same.
        wide = largest.shape[1] // _WIDE
        few = largest if wide < 8 * k else largest[:, : wide * _WIDE].reshape(-1, _WIDE, wide).max(axis=1)
        threshold = kth_largest(few.copy() if few is largest else few, k, self._dtype)
        slack = self._slack[first:last]
        limit = limit_of(threshold, slack, self._dtype)
        # Only numbers above zero are in order: where the limit is not, everything may be.
        least = np.where((limit > 0).numpy(), keys_of(limit), np.iinfo(largest.dtype).min)
        # All products of a vector of zeros are equal: the first rows are its k best.
        nothing = (slack == 0).numpy() & (threshold == 0).numpy()
        least[nothing] = np.iinfo(largest.dtype).max
        vectors, groups = np.divmod(np.flatnonzero(largest >= least[:, None]), largest.shape[1])
        rows = groups[:, None] * GROUP + np.arange(GROUP)
        at = np.minimum(rows, len(self._lost) - 1) * self._keys.shape[1] + (vectors[:, None] + first)
        keys = self._keys.reshape(-1).take(at)
        if sign < 0:
            keys = negated(keys)
        hits = (keys >= least[vectors, None]) & (rows < len(self._lost))
        vectors, rows = np.broadcast_to(vectors[:, None], rows.shape)[hits], rows[hits]
        may_be = self._may_be(first, vectors, rows, keys[hits], k, last - first)
        vectors, rows = vectors[may_be], rows[may_be]
        if not nothing.any():
            return vectors, rows
        zeros = np.flatnonzero(nothing)
        vectors = np.concatenate([vectors, np.repeat(zeros, k)])
        order = np.argsort(vectors, kind="stable")
        return vectors[order], np.concatenate([rows, np.tile(np.arange(k), len(zeros))])[order]

    def _may_be(
        self, first: int, vectors: np.ndarray, rows: np.ndarray, keys: np.ndarray, k: int, m: int
    ) -> np.ndarray:
        """Which pairs may be among the k best of their vectors, by how far each product itself may be off."""
        if not len(keys):
            return np.zeros(0, bool)
        values = torch.from_numpy(keys).view(self._dtype).float().numpy()
        length, lost = (
            self.vectors.length.numpy()[vectors + first],
            self.vectors.lost.numpy()[vectors + first],
        )
        off = self._lost[rows] * length + self._length[rows] * lost
        off += np.abs(values) * np.float32(torch.finfo(self._dtype).eps / 2 * 1.001)
        at_least = values - off
        order = by_row_and_value(vectors, at_least, rows)
        counts = np.bincount(vectors, minlength=m)
        kth = np.minimum(np.cumsum(counts) - counts + k, np.cumsum(counts)) - 1
        return np.asarray(values + off >= at_least[order][np.maximum(kth, 0)][vectors])


def vectors_at_a_time(n: int, dtype: torch.dtype) -> int:
    """How many vectors' products with n rows may be held at a time."""
    return max(32, _HELD // (n * dtype.itemsize) // 32 * 32)


def rows_at_a_time(m: int, made: int = 0) -> int:
    """How many rows' products with m vectors make a block, in whole groups; `made`: how wide rows are that are made for it alone."""
    most = min(256, MADE_NUMBERS // (GROUP * made)) if made else 256
    return max(4, min(most, _BLOCK // (GROUP * m))) * GROUP


def held_bytes(n: int, m: int, dtype: torch.dtype) -> int:
    """Bytes that the products of n rows with m vectors hold, those of a few vectors at a time, and the largest of their groups."""
    return n * min(m, vectors_at_a_time(n, dtype)) * dtype.itemsize * (GROUP + 2) // GROUP


def dots(left: torch.Tensor, i: np.ndarray, right: torch.Tensor, j: np.ndarray) -> np.ndarray:
    """left[i] . right[j] for every pair, f32, `i` ascending; each in the same way, whatever the others are.

    `left` and `right` are f32 matrices [n, hidden], contiguous.
    """
    starts = torch.from_numpy(np.searchsorted(i, np.arange(len(left) + 1)))
    columns = torch.from_numpy(j.astype(np.int64))
    shape = (len(left), len(right))
    wanted = torch.sparse_csr_tensor(starts, columns, torch.zeros(len(i)), shape, check_invariants=False)
    return torch.sparse.sampled_addmm(wanted, left, right.t(), beta=0.0).values().numpy()


def first_of_each(m: int, k: int, vectors: np.ndarray, rows: np.ndarray, values: np.ndarray) -> Tops:
    """The k largest values of each of m vectors, of which there are at least k: pairs of vector and row with a value each."""
    order = by_row_and_value(vectors, values, rows)
    starts = np.searchsorted(vectors[order], np.arange(m))
    chosen = order[starts[:, None] + np.arange(k)]
    return Tops(rows[chosen], values[chosen])
