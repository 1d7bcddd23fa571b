"""Tensors of safetensors files, plain or quantised: the numbers of a quantised one by its format's definition.

Every class reads rows of the first axis as they are asked for, so that memory holds a block of dequantised numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from larql_duck.errors import ModelError
from larql_duck.models.safetensors_file import SafetensorsFile

_BLOCK = 1 << 22
# The four-bit floats (e2m1) by their bits.
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
# Which of eight columns an AWQ word's i-th four bits are.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_SCB_UNIT = 1 / 127


class Stored(Protocol):
    """One of the model's tensors in its files: whole (f32, f16 or bf16), or some of its rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def path(self) -> Path: ...
    def tensor(self) -> torch.Tensor: ...
    def rows(self, begin: int, end: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Plain:
    """A tensor that a file holds as it is."""

    file: SafetensorsFile
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.entries[self.key].shape

    @property
    def dtype(self) -> str:
        """The dtype as the file's header has it."""
        return self.file.entries[self.key].dtype

    @property
    def path(self) -> Path:
        return self.file.path

    def tensor(self) -> torch.Tensor:
        return self.file.tensor(self.key)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        return self.tensor()[begin:end]

    def raw(self) -> torch.Tensor:
        """The tensor in the file's own dtype, mapped."""
        return self.file.raw(self.key)

    def scale(self) -> torch.Tensor:
        """The tensor as scales, f32: bytes are powers of two."""
        raw = self.raw()
        return (raw.view(torch.float8_e8m0fnu) if raw.dtype == torch.uint8 else raw).float()

    def wrong(self, of: str) -> ModelError:
        """That the tensor does not fit the one that it belongs to."""
        return ModelError.at(
            self.path,
            f"tensor {self.key} of shape {list(self.shape)} ({self.dtype}) does not fit the quantised tensor {of}; get a "
            "complete copy of the model",
            tensor=self.key,
        )


@dataclass(frozen=True)
class Dequantised:
    """A quantised tensor: `values` hold its bits. `label` names the format."""

    values: Plain
    label: str

    @property
    def path(self) -> Path:
        return self.values.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape once it is dequantised."""
        return self.values.shape

    def check(self) -> None:
        """Raise ModelError where the parts do not fit each other."""

    def tensor(self) -> torch.Tensor:
        """All of it, f32."""
        out = torch.empty(self.shape)
        for begin, end in self._blocks():
            out[begin:end] = self.rows(begin, end)
        return out

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows `begin` to `end` - 1 of the first axis, f32."""
        raise NotImplementedError

    def _blocks(self) -> Iterator[tuple[int, int]]:
        step = max(1, _BLOCK // max(1, math.prod(self.shape[1:])))
        return ((begin, min(begin + step, self.shape[0])) for begin in range(0, self.shape[0], step))


@dataclass(frozen=True)
class Scaled(Dequantised):
    """Numbers times a scale for each block of the last two axes, less a zero point where there is one.

    block is the rows and columns of a block as the config has them; where it says nothing blocks share the axes evenly.
    unit: what scales are multiples of.
    """

    scales: Plain
    zero: Plain | None = None
    block: tuple[int, int] | None = None
    unit: float = 1.0

    def check(self) -> None:
        if len(self.shape) < 2:
            raise self.values.wrong(self.values.key)
        for grid in (self.scales, *([] if self.zero is None else [self.zero])):
            _block_of(grid, self.shape, self.block, self.values.key)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        numbers = self._numbers(begin, end)
        if self.zero is not None:
            numbers = numbers - self._spread(self.zero, begin, end)
        return numbers * self._spread(self.scales, begin, end) * self.unit

    def _numbers(self, begin: int, end: int) -> torch.Tensor:
        return self.values.raw()[begin:end].float()

    def _spread(self, grid: Plain, begin: int, end: int) -> torch.Tensor:
        """The grid's number for each of the tensor's, rows begin to end - 1."""
        rows, columns = _block_of(grid, self.shape, self.block, self.values.key)
        values = grid.scale() if grid is self.scales else grid.raw().float()
        values = values.reshape(_grid_shape(grid, self.shape, self.values.key))
        if len(self.shape) == 2:
            values = values[torch.arange(begin, end) // rows]
        else:
            values = values[begin:end] if len(values) > 1 else values
            values = values.repeat_interleave(rows, -2)[..., : self.shape[-2], :]
        return values.repeat_interleave(columns, -1)[..., : self.shape[-1]]


@dataclass(frozen=True)
class PackedFp4(Scaled):
    """Two four-bit floats a byte, the first in its lower half; `overall` scales what the scales say, or divides it."""

    overall: Plain | None = None
    divides: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, columns = self.values.shape
        return (*rows, 2 * columns)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        out = super().rows(begin, end)
        if self.overall is None:
            return out
        overall = self.overall.raw().float().reshape(-1)[0]
        return out / overall if self.divides else out * overall

    def _numbers(self, begin: int, end: int) -> torch.Tensor:
        return _fp4(self.values.raw()[begin:end].view(torch.uint8))


@dataclass(frozen=True)
class Mxfp4(Dequantised):
    """Experts as gpt_oss publishes them: blocks [experts, out, groups, 16] and exponents [experts, out, groups].

    The tensor is [experts, in, out], of 32 numbers a group.
    """

    scales: Plain

    @property
    def shape(self) -> tuple[int, ...]:
        experts, out, groups, width = self.values.shape
        return experts, groups * width * 2, out

    def check(self) -> None:
        if len(self.values.shape) != 4 or self.scales.shape != self.values.shape[:3]:
            raise self.scales.wrong(self.values.key)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        numbers = _fp4(self.values.raw()[begin:end]) * self.scales.scale()[begin:end, ..., None]
        return numbers.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class PackedInts(Dequantised):
    """compressed-tensors' packed integers [out, in]: words of 32 bits, the first number in the lowest bits."""

    scales: Plain
    stated: Plain
    zero: Plain | None = None
    group_index: Plain | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.stated.raw())

    @cached_property
    def bits(self) -> int:
        """Bits of a number, by which as many words as there are hold a row."""
        words, columns = self.values.shape[-1], self.shape[-1]
        fitting = (b for b in (4, 8, 2, 1) if words == -(-columns // (32 // b)))
        return next(fitting, 0)

    def check(self) -> None:
        if len(self.shape) != 2 or self.values.shape[0] != self.shape[0] or not self.bits:
            raise self.stated.wrong(self.values.key)
        _block_of(self.scales, self.shape, None, self.values.key)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        columns = self.shape[1]
        numbers = _unpacked(self.values.raw()[begin:end], self.bits)[:, :columns]
        scales = self.scales.scale().reshape(_grid_shape(self.scales, self.shape, self.values.key))
        groups = scales.shape[1]
        of = torch.arange(columns) // -(-columns // groups)
        if self.group_index is not None and groups > 1:
            of = self.group_index.raw().long()
        zero: Any = 1 << (self.bits - 1)
        if self.zero is not None:
            zero = _unpacked(self.zero.raw().t(), self.bits)[:, : self.shape[0]].t()[begin:end][:, of]
        scales = scales[begin:end] if len(scales) > 1 else scales
        return (numbers - zero) * scales[:, of]


@dataclass(frozen=True)
class Gptq(Dequantised):
    """GPTQ's integers: words [in / n, out] of n numbers each, scales and zero points for each group of inputs.

    The tensor is [out, in]. plus is what zero points are stored less than: 1 in the first version of the format.
    """

    scales: Plain
    zeros: Plain
    bits: int
    plus: int = 1
    group_index: Plain | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        words, out = self.values.shape
        return out, words * 32 // self.bits

    def check(self) -> None:
        out, columns = self.shape
        groups = len(self.scales.shape) and self.scales.shape[0]
        if self.scales.shape != (groups, out) or not groups or columns % groups:
            raise self.scales.wrong(self.values.key)
        if self.zeros.shape != (groups, out * self.bits // 32):
            raise self.zeros.wrong(self.values.key)
        index = self.group_index
        if index is not None:
            if index.shape != (columns,):
                raise index.wrong(self.values.key)
            if not 0 <= int(index.raw().min()) <= int(index.raw().max()) < groups:
                raise index.wrong(self.values.key)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        numbers = _unpacked(self.values.raw()[:, begin:end].t(), self.bits)
        zeros = _unpacked(self.zeros.raw(), self.bits)[:, begin:end]
        zeros = (zeros + self.plus) & ((1 << self.bits) - 1)
        of = self._groups()
        return (numbers - zeros.t()[:, of]) * self.scales.scale()[:, begin:end].t()[:, of]

    def _groups(self) -> torch.Tensor:
        """The group of each input."""
        if self.group_index is not None:
            return self.group_index.raw().long()
        columns = self.shape[1]
        return torch.arange(columns) // (columns // self.scales.shape[0])


@dataclass(frozen=True)
class Awq(Gptq):
    """AWQ's integers of four bits: words [in, out / 8] whose numbers stand in an order of their own."""

    bits: int = 4
    plus: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        columns, words = self.values.shape
        return words * 8, columns

    def rows(self, begin: int, end: int) -> torch.Tensor:
        first, last = begin // 8, -(-end // 8)
        own = slice(begin - 8 * first, end - 8 * first)
        numbers = _in_order(_unpacked(self.values.raw()[:, first:last], 4))[:, own].t()
        zeros = _in_order(_unpacked(self.zeros.raw()[:, first:last], 4))[:, own].t()
        of = self._groups()
        return (numbers - zeros[:, of]) * self.scales.scale()[:, begin:end].t()[:, of]


@dataclass(frozen=True)
class BitsAndBytes4(Dequantised):
    """bitsandbytes' four bits: two numbers of a table a byte, the first in its upper half, times their block's largest."""

    table: Plain
    largest: Plain
    state: Plain
    nested: tuple[Plain, Plain] | None = None

    @cached_property
    def said(self) -> dict[str, Any]:
        """What the file says of the tensor: shape, blocksize and more."""
        try:
            said = json.loads(bytes(self.state.raw().tolist()))
            return {**said, "shape": [int(n) for n in said["shape"]], "blocksize": int(said["blocksize"])}
        except (ValueError, KeyError, TypeError):
            raise self.state.wrong(self.values.key) from None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.said["shape"])

    def check(self) -> None:
        count = math.prod(self.shape)
        if math.prod(self.values.shape) * 2 != count or count % 2 or self.table.shape != (16,):
            raise self.values.wrong(self.state.key)
        if math.prod(self.largest.shape) != -(-count // self.said["blocksize"]):
            raise self.largest.wrong(self.values.key)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        width = math.prod(self.shape[1:])
        first, last = begin * width, end * width
        packed = self.values.raw().reshape(-1)[first // 2 : -(-last // 2)].int()
        places = torch.stack([packed >> 4, packed & 15], -1).flatten()[first % 2 :][: last - first]
        numbers = self.table.raw().float()[places]
        largest = self._largest()[torch.arange(first, last) // self.said["blocksize"]]
        return (numbers * largest).reshape(end - begin, *self.shape[1:])

    def _largest(self) -> torch.Tensor:
        if self.nested is None:
            return self.largest.raw().float().reshape(-1)
        table, scales = (part.raw().float().reshape(-1) for part in self.nested)
        places = self.largest.raw().int().reshape(-1)
        of = torch.arange(len(places)) // int(self.said["nested_blocksize"])
        return table[places] * scales[of] + float(self.said.get("nested_offset", 0.0))


def int8_rows(values: Plain, scales: Plain) -> Scaled:
    """bitsandbytes' eight bits: integers times their row's largest, as 127ths."""
    return Scaled(values, "bitsandbytes int8", scales, unit=_SCB_UNIT)


def _grid_shape(grid: Plain, shape: tuple[int, ...], of: str) -> tuple[int, ...]:
    """The grid's shape with as many axes as the tensor's: one number for all, or for each of the first axis."""
    if math.prod(grid.shape) == 1:
        return (1,) * len(shape)
    if len(grid.shape) == 1 and grid.shape[0] == shape[0]:
        return (shape[0], *[1] * (len(shape) - 1))
    if len(grid.shape) != len(shape) or any(
        a not in (1, b) for a, b in zip(grid.shape[:-2], shape, strict=False)
    ):
        raise grid.wrong(of)
    return grid.shape


def _block_of(
    grid: Plain, shape: tuple[int, ...], stated: tuple[int, int] | None, of: str
) -> tuple[int, int]:
    """Rows and columns that share a number of the grid; ModelError where the two do not fit."""
    sizes = []
    for axis in (-2, -1):
        size, count = shape[axis], _grid_shape(grid, shape, of)[axis]
        if stated is not None and count == -(-size // stated[axis]):
            sizes.append(stated[axis])
        elif count and size % count == 0:
            sizes.append(size // count)
        else:
            raise grid.wrong(of)
    return sizes[0], sizes[1]


def _fp4(packed: torch.Tensor) -> torch.Tensor:
    """The numbers of bytes [..., n], f32 [..., 2 n]."""
    places = packed.int()
    return _FP4[torch.stack([places & 15, places >> 4], -1).flatten(-2)]


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers of words of 32 bits [..., n], int32 [..., n * 32 / bits], lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.int()[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


def _in_order(numbers: torch.Tensor) -> torch.Tensor:
    """AWQ's numbers [rows, columns] in the order of the columns."""
    place = torch.tensor(_AWQ_ORDER).argsort()
    return numbers.reshape(len(numbers), -1, 8)[..., place].flatten(1)
