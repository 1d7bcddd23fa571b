"""The GGUF container: metadata and tensor table, every count and length checked against the file before it is used.

The `gguf` package supplies the constants and the dequantisation. Its own reader trusts the file's counts and builds
an array object for every metadata element, so the walk over the header is done here.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from larql_duck.errors import ModelError
from larql_duck.models.mapped import FLOATS, MappedFile

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_AXES = 4
_MAX_NAME = 256
_ROWS = 8192
_ALIGNMENTS = frozenset(1 << i for i in range(21))


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: ggml type, shape (row-major, outermost axis first), offset in the file, size in bytes."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


class GgufFile:
    """A GGUF file, opened and checked: `metadata` (key -> Python value) and `tensors` (name -> GgufTensor)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped = MappedFile(path)
        walk = _Walk(self._mapped)
        n_tensors, n_fields = walk.start()
        self.metadata = walk.fields(n_fields)
        self.tensors = walk.tensors(n_tensors, self.metadata)

    def tensor(self, name: str) -> torch.Tensor:
        """The named tensor in row-major shape: F32, F16 and BF16 as mapped views, every other type as f32."""
        entry = self.tensors[name]
        if entry.kind.name in FLOATS:
            return self._mapped.tensor(entry.offset, FLOATS[entry.kind.name], entry.shape)
        return self._dequantised(entry)

    def rows(self, name: str, at: Any) -> torch.Tensor:
        """The rows `at` (a slice, or numbers in a tensor of any shape) of a quantised matrix, f32 [..., columns]."""
        import numpy as np

        raw = self._raw(self.tensors[name])
        chosen = raw[at] if isinstance(at, slice) else raw[at.numpy()]
        flat = self._values(self.tensors[name], np.ascontiguousarray(chosen).reshape(-1, raw.shape[1]))
        return flat.reshape(*chosen.shape[:-1], -1)

    def _raw(self, entry: GgufTensor) -> Any:
        """The bytes of a tensor's rows, uint8 [rows, bytes], mapped."""
        import numpy as np

        raw = np.frombuffer(self._mapped.map, dtype=np.uint8, count=entry.n_bytes, offset=entry.offset)
        return raw.reshape(math.prod(entry.shape[:-1]), -1)

    def _dequantised(self, entry: GgufTensor) -> torch.Tensor:
        return self._values(entry, self._raw(entry)).reshape(entry.shape)

    def _values(self, entry: GgufTensor, raw: Any) -> torch.Tensor:
        """f32 [rows, columns] of the bytes of some of its rows, uint8 [rows, bytes]."""
        import numpy as np

        out = torch.empty((len(raw), entry.shape[-1]), dtype=torch.float32)
        try:
            # The package holds every piece and their concatenation at once, so large tensors go in blocks of rows.
            # Damaged scales overflow quietly here; the check for NaN and infinity then names the tensor.
            with np.errstate(all="ignore"):
                for row in range(0, len(raw), _ROWS):
                    values = quants.dequantize(raw[row : row + _ROWS], entry.kind)
                    out[row : row + _ROWS] = torch.from_numpy(values)
        except NotImplementedError:
            raise ModelError.at(
                self.path,
                f"tensor {entry.name} has the type {entry.kind.name}, which the gguf package "
                f"({version('gguf')}) does not dequantise; use another quantisation of the model",
                tensor=entry.name,
            ) from None
        except (ValueError, TypeError, IndexError, OverflowError, AssertionError) as error:
            raise ModelError.at(
                self.path,
                f"tensor {entry.name} ({entry.kind.name}) cannot be dequantised: {str(error)[:100]}",
                tensor=entry.name,
            ) from None
        return out

    def release(self) -> None:
        """Drop the pages that reading has made resident."""
        self._mapped.release()


class _Walk:
    """A cursor over the header; every step is bounded by the file's size."""

    def __init__(self, mapped: MappedFile) -> None:
        self.path = mapped.path
        self.data = mapped.map
        self.size = mapped.size
        self.at = 0
        self.error = mapped.damaged

    def take(self, n: int, what: str) -> int:
        """The offset of the next n bytes, which are stepped over."""
        if n < 0 or n > self.size - self.at:
            raise self.error(f"{what} takes {n} bytes at offset {self.at}, the file has {self.size}")
        self.at += n
        return self.at - n

    def number(self, code: str, what: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        offset = self.take(length, what)
        try:
            return self.data[offset : offset + length].decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} at offset {offset} is not UTF-8") from None

    def start(self) -> tuple[int, int]:
        """(number of tensors, number of metadata fields), after the magic and the version."""
        if self.size < 24 or self.data[:4] != b"GGUF":
            raise self.error("not a GGUF file (it does not begin with GGUF)")
        self.at = 4
        version = self.number("I", "the version")
        if version & 0xFFFF == 0:
            raise ModelError.at(self.path, "big-endian GGUF is not read; convert it to little-endian")
        if version not in (2, 3):
            raise ModelError.at(
                self.path, f"GGUF version {version} is not read, only 2 and 3; convert the model anew"
            )
        n_tensors, n_fields = self.number("Q", "the tensor count"), self.number("Q", "the field count")
        # A field takes at least 13 bytes (key length, type, value), a tensor 32 (its table entry).
        if n_fields * 13 + n_tensors * 32 > self.size:
            raise self.error(
                f"{n_tensors} tensors and {n_fields} metadata fields do not fit into {self.size} bytes"
            )
        return n_tensors, n_fields

    # -- metadata ----------------------------------------------------------------------------------------

    def fields(self, count: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for i in range(count):
            key = self.text(f"the key of metadata field {i}")
            if key in out:
                raise self.error(f"metadata field {key[:80]!r} occurs twice")
            kind = self.number("I", f"the type of {key[:80]!r}")
            out[key] = self.value(kind, f"metadata field {key[:80]!r}")
        return out

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            raise self.error(f"{what} has the unknown type {kind}")
        item, count = self.number("I", what), self.number("Q", what)
        if item in _SCALARS:
            code = _SCALARS[item]
            width = struct.calcsize("<" + code)
            offset = self.take(count * width, what)
            return list(struct.unpack_from(f"<{count}{code}", self.data, offset))
        if item != _STRING:
            raise self.error(f"{what} is an array of the unknown type {item}")
        if count * 8 > self.size - self.at:
            raise self.error(f"{what} claims {count} strings, the file has {self.size} bytes")
        return self._texts(count, what)

    def _texts(self, count: int, what: str) -> list[str]:
        """An array of strings. Vocabularies have hundreds of thousands, so the loop carries its own bounds."""
        data, at, end = self.data, self.at, self.size
        unpack = struct.Struct("<Q").unpack_from
        out = []
        for i in range(count):
            length = unpack(data, at)[0] if at + 8 <= end else end + 1
            if length > end - at - 8:
                raise self.error(
                    f"{what} has a string {i} of {length} bytes at offset {at}, the file has {end}"
                )
            at += 8 + length
            out.append(data[at - length : at])
        self.at = at
        try:
            return [piece.decode() for piece in out]
        except UnicodeDecodeError as error:
            raise self.error(f"{what} has a string that is not UTF-8 ({error.object[:20]!r})") from None

    # -- tensors -----------------------------------------------------------------------------------------

    def tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, GgufTensor]:
        raw = [self.table_entry(i) for i in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
            raise self.error(f"general.alignment is {alignment!r}, not a power of two")
        base = -(-self.at // alignment) * alignment
        out: dict[str, GgufTensor] = {}
        for name, dims, kind, offset in raw:
            if name in out:
                raise self.error(f"tensor {name} occurs twice", name)
            out[name] = self.placed(name, dims, kind, base + offset)
        position, before = base, ""
        for entry in sorted(out.values(), key=lambda t: (t.offset, t.n_bytes)):
            if entry.offset < position:
                raise self.error(f"tensor {entry.name} overlaps {before or 'the header'}", entry.name)
            position, before = entry.offset + entry.n_bytes, entry.name
        return out

    def table_entry(self, i: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text(f"the name of tensor {i}")
        if not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
            raise self.error(f"tensor {i} has the impossible name {name[:40]!r}", name)
        what = f"the table entry of tensor {name}"
        n_axes = self.number("I", what)
        if not 0 < n_axes <= _MAX_AXES:
            raise self.error(f"tensor {name} claims {n_axes} axes", name)
        dims = tuple(self.number("Q", what) for _ in range(n_axes))
        return name, dims, self.number("I", what), self.number("Q", what)

    def placed(self, name: str, dims: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        """The tensor with its size worked out and its place checked; dims come innermost first, as in the file."""
        try:
            known = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise self.error(f"tensor {name} has the unknown type {kind}", name) from None
        values = math.prod(dims)
        if values == 0 or dims[0] % block:
            raise self.error(
                f"tensor {name} has the shape {list(reversed(dims))}, impossible for {known.name}", name
            )
        n_bytes = values // block * block_bytes
        if offset + n_bytes > self.size:
            raise self.error(
                f"tensor {name} of shape {list(reversed(dims))} ({known.name}) ends at byte {offset + n_bytes}, "
                f"the file has {self.size}",
                name,
            )
        return GgufTensor(name, known, tuple(reversed(dims)), offset, n_bytes)
