"""Tensors that files hold in pieces: an expert's matrices one by one or in one array, or as transformers converts them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from larql_duck.models.dequantised import Stored


class TensorPlace(Protocol):
    """Where a tensor is: the file, or the first of them, its shape, and the tensor itself when it is read."""

    @property
    def path(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def tensor(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Conversion:
    """One conversion of transformers on stored tensors, each with the pattern that it fits, and which result is meant."""

    converter: Any = field(compare=False)
    first: str
    sources: tuple[tuple[str, str], ...]
    name: str
    config: Any = field(compare=False)

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Every result by name, from the stored tensors by theirs."""
        converter = copy.deepcopy(self.converter)
        for pattern, stored in self.sources:
            converter.add_tensor(self.first, stored, pattern, tensors[stored])
        made = converter.convert(self.first, config=self.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def result(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The result that is meant."""
        return self.run(tensors)[self.name]


@dataclass(frozen=True)
class Piece:
    """A part of a stored tensor: of one expert (None: there is no such axis), the first or second half or all of it.

    turned: inputs come first; interleaved: the halves are every other row.
    """

    stored: str | Conversion
    expert: int | None = None
    half: int | None = None
    turned: bool = False
    interleaved: bool = False

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The part, a view."""
        part = whole if self.expert is None else whole[self.expert]
        part = part.t() if self.turned else part
        if self.half is None:
            return part
        return part[self.half :: 2] if self.interleaved else part.tensor_split(2)[self.half]


@dataclass(frozen=True)
class Pieces:
    """A tensor of the model as pieces of stored ones, joined along `axis`."""

    parts: tuple[Piece, ...]
    axis: int = 0

    def of(self, stored: Mapping[str, Stored]) -> JoinedPlace:
        """The place of the tensor among the stored ones by name."""
        return JoinedPlace(self, stored)


@dataclass(frozen=True)
class EmptyPlace:
    """A matrix without rows or columns, of a layer that lacks what it is of: no file holds it."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        """The matrix."""
        return torch.empty(self.shape, dtype=self.dtype)


class JoinedPlace:
    """Pieces of stored tensors. Rows are read as they are asked for, so that no more than those are in memory."""

    def __init__(self, pieces: Pieces, stored: Mapping[str, Stored]) -> None:
        self._pieces, self._tensors = pieces, stored
        # Shapes alone, from the headers; the same stored tensor may have hundreds of parts.
        empty: dict[str | Conversion, torch.Tensor] = {}
        self._sizes: list[tuple[int, ...]] = []
        for piece in pieces.parts:
            if piece.stored not in empty:
                empty[piece.stored] = self._made(piece.stored, self._empty)
            self._sizes.append(tuple(piece.cut(empty[piece.stored]).shape))
        first, axis = self._sizes[0], pieces.axis
        total = sum(size[axis] for size in self._sizes)
        self.shape = (*first[:axis], total, *first[axis + 1 :])

    @property
    def path(self) -> Path:
        """The file of the first piece."""
        stored = self._pieces.parts[0].stored
        return self._tensors[stored if isinstance(stored, str) else stored.sources[0][1]].path

    def tensor(self) -> torch.Tensor:
        """The whole tensor: a view where it is one piece, else a copy."""
        parts = self._cut(range(len(self._sizes)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, self._pieces.axis)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any, /) -> torch.Tensor:
        """Rows (a slice or numbers), or what a slice of rows has in a slice of columns: [rows, columns]."""
        rows, columns = at if isinstance(at, tuple) else (at, slice(None))
        along = (rows, columns)[self._pieces.axis]
        if not isinstance(along, slice):
            return torch.stack([self[int(i) : int(i) + 1, columns][0] for i in along])
        begin, end, _ = along.indices(self.shape[self._pieces.axis])
        parts, start = [], 0
        for i, size in enumerate(self._sizes):
            stop = start + size[self._pieces.axis]
            if start < end and begin < stop:
                [part] = self._cut([i])
                own = slice(max(begin - start, 0), min(end, stop) - start)
                parts.append(part[own] if part.dim() == 1 else self._within(part, own, rows, columns))
            start = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts, self._pieces.axis)

    def _within(self, part: torch.Tensor, own: slice, rows: Any, columns: Any) -> torch.Tensor:
        return part[own, columns] if self._pieces.axis == 0 else part[rows, own]

    def _cut(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        whole: dict[str | Conversion, torch.Tensor] = {}
        out = []
        for i in numbers:
            piece = self._pieces.parts[i]
            if isinstance(piece.stored, str) and piece.expert is not None:
                # One expert's numbers alone are dequantised.
                own = self._tensors[piece.stored].rows(piece.expert, piece.expert + 1)
                out.append(replace(piece, expert=0).cut(own))
                continue
            if piece.stored not in whole:
                whole[piece.stored] = self._made(piece.stored, self._read)
            out.append(piece.cut(whole[piece.stored]))
        return out

    def _made(self, stored: str | Conversion, read: Any) -> torch.Tensor:
        if isinstance(stored, str):
            tensor: torch.Tensor = read(stored)
            return tensor
        return stored.result({name: read(name) for _, name in stored.sources})

    def _read(self, name: str) -> torch.Tensor:
        return self._tensors[name].tensor()

    def _empty(self, name: str) -> torch.Tensor:
        return torch.empty(self._tensors[name].shape, device="meta")
