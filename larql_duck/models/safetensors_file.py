"""The safetensors container: its header, checked in full before a single value is used."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from larql_duck.errors import ModelError
from larql_duck.models.mapped import FLOATS, READABLE, MappedFile

# Bits of a value.
_ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
# What torch calls those that are read or that quantised tensors are packed in.
_TORCH = FLOATS | {
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
_MAX_HEADER = 100_000_000
_MAX_AXES = 8
_MAX_NAME = 1024


@dataclass(frozen=True)
class Entry:
    """One tensor of the header: dtype as written, shape, first and last + 1 byte within the data part."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file, opened and checked: `entries` maps each name to its Entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped = MappedFile(path)
        self._data, self.entries = _parse(self._mapped)

    def tensor(self, name: str) -> torch.Tensor:
        """The named tensor, a mapped view where it is f32, f16 or bf16; of eight bits as bf16, of 64 as f32.

        ModelError where it is no tensor of floats.
        """
        dtype = self.entries[name].dtype
        if dtype not in READABLE:
            raise ModelError.at(
                self.path,
                f"tensor {name} has dtype {dtype}; floats of 64 to 8 bits are read: save the model in one of them",
                tensor=name,
            )
        raw = self.raw(name)
        return raw if dtype in FLOATS else raw.to(READABLE[dtype])

    def raw(self, name: str) -> torch.Tensor:
        """The named tensor in its own dtype, mapped; ModelError where torch has none like it."""
        entry = self.entries[name]
        if entry.dtype not in _TORCH:
            raise ModelError.at(
                self.path, f"tensor {name} has dtype {entry.dtype}, which is not read", tensor=name
            )
        return self._mapped.tensor(self._data + entry.begin, _TORCH[entry.dtype], entry.shape)

    def release(self) -> None:
        """Drop the pages that reading has made resident."""
        self._mapped.release()


def _parse(mapped: MappedFile) -> tuple[int, dict[str, Entry]]:
    """The offset of the data part and the header's entries; ModelError when any part of the header lies."""
    length = int.from_bytes(mapped.map[:8], "little")
    if mapped.size < 8 or not 0 < length <= min(_MAX_HEADER, mapped.size - 8):
        raise mapped.damaged(f"the header claims {length} bytes, the file has {mapped.size}")
    try:
        header = json.loads(mapped.map[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise mapped.damaged(f"the header is not JSON ({str(error)[:80]})") from None
    if not isinstance(header, dict):
        raise mapped.damaged("the header is not a JSON object")
    header.pop("__metadata__", None)
    data = mapped.size - 8 - length
    entries = {name: _entry(mapped, name, value, data) for name, value in header.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps the one before" if entry.begin < position else "leaves a hole before it"
            raise mapped.damaged(f"tensor {name} {what}", name)
        position = entry.end
    if position != data:
        raise mapped.damaged(f"the tensors take {position} bytes, the file has {data} for them")
    return 8 + length, entries


def _entry(mapped: MappedFile, name: str, value: Any, data: int) -> Entry:
    if not name.isprintable() or len(name) > _MAX_NAME:
        raise mapped.damaged(f"a tensor has the impossible name {name[:40]!r}", name)
    if not isinstance(value, dict):
        raise mapped.damaged(f"tensor {name} is not described by an object", name)
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BITS:
        raise mapped.damaged(f"tensor {name} has the unknown dtype {dtype!r}", name)
    if not _are_counts(shape) or len(shape) > _MAX_AXES:
        raise mapped.damaged(f"tensor {name} has the shape {str(shape)[:80]}", name)
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data:
        raise mapped.damaged(
            f"tensor {name} lies at {str(offsets)[:80]}, the file has {data} bytes of data", name
        )
    begin, end = offsets
    if math.prod(shape) * _ITEM_BITS[dtype] != (end - begin) * 8:
        raise mapped.damaged(
            f"tensor {name} of shape {shape} and dtype {dtype} takes {end - begin} bytes", name
        )
    return Entry(dtype, tuple(shape), begin, end)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 62 for v in value
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out
