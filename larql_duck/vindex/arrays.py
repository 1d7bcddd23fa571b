"""Raw arrays on disk: streamed writing with a checksum, memory-mapped reading, LARQL's down_meta.bin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import xxhash

from larql_duck.errors import ModelError, PatchError
from larql_duck.files import open_replacing, write_whole
from larql_duck.vindex.fields import damaged
from larql_duck.vindex.manifest import DTYPE_BYTES

if TYPE_CHECKING:
    import torch

_DOWN_META_MAGIC = 0x444D4554
_CHUNK = 1 << 22  # elements converted at a time, so that a large tensor needs no second copy


class FileEntry(TypedDict):
    """What a manifest says of a file: its size in bytes, and hexadecimal sha256 and xxh3 (64 bits) of its bytes.

    sha256 proves what a file is. xxh3 takes a tenth of a second for a gigabyte: what is read whole is checked by it.
    """

    bytes: int
    sha256: str
    xxh3: str


class _Digest:
    """The FileEntry of bytes that come piece by piece."""

    def __init__(self) -> None:
        self.size, self._sha256, self._xxh3 = 0, hashlib.sha256(), xxhash.xxh3_64()

    def update(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._xxh3.update(data)
        self.size += len(data)

    @property
    def entry(self) -> FileEntry:
        return {"bytes": self.size, "sha256": self._sha256.hexdigest(), "xxh3": self._xxh3.hexdigest()}


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of 'f32', 'f16' or 'bf16'."""
    import torch

    return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]


class ArrayWriter:
    """Writes tensors one after another into one file, rounded to nearest, hashing as it goes.

    Use as a context manager: the file is there when the block ends, `entry` is then what a manifest says of it. NaN,
    and a value that the dtype cannot hold, raise ModelError: they would pass every later check as legal numbers.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype = path, dtype
        self.offset = 0
        self._digest = _Digest()
        self._context = open_replacing(path, error=None)

    def __enter__(self) -> ArrayWriter:
        self._file = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    @property
    def entry(self) -> FileEntry:
        """Size and checksums of what was written."""
        return self._digest.entry

    def append(self, tensor: torch.Tensor, name: str, source: Path | None = None) -> tuple[int, int]:
        """Byte offset and length of `tensor` (any shape, row-major) after it was written in the file's dtype."""
        import torch

        target = torch_dtype(self.dtype)
        start = self.offset
        for part in tensor.reshape(-1).split(_CHUNK):
            converted = part.to(target)
            if not bool(torch.isfinite(converted).all()):
                raise _not_finite(part, name, self.dtype, source or self.path)
            data = converted.contiguous().view(torch.uint8).numpy().data
            self._file.write(data)
            self._digest.update(data)
            self.offset += data.nbytes
        return start, self.offset - start


def _not_finite(part: torch.Tensor, name: str, dtype: str, path: Path) -> ModelError:
    import torch

    if bool(torch.isfinite(part).all()):
        what = f"holds {float(part.abs().max()):g}, more than {dtype} can store; extract with --dtype f32"
    else:
        what = "holds NaN or infinite values; the model is damaged, get it again"
    return ModelError.at(path, f"tensor {name} {what}", tensor=name)


def map_tensor(path: Path, dtype: str, shape: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    """A torch tensor over the mapped bytes of `path`, in the stored dtype; nothing is read until it is used."""
    import torch

    count = int(np.prod(shape))
    if not count:  # of a layer without features: nothing can be mapped
        return torch.empty(shape, dtype=torch_dtype(dtype))
    # Copy-on-write: torch wants writable memory, and no write ever reaches the file.
    flat = np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(count * DTYPE_BYTES[dtype],))
    return torch.from_numpy(flat).view(torch_dtype(dtype)).view(shape)


def write_file(path: Path, data: bytes) -> FileEntry:
    """Size and checksums of `data` after it was written to `path`."""
    write_whole(path, data, error=None)
    digest = _Digest()
    digest.update(data)
    return digest.entry


def hash_file(path: Path) -> FileEntry:
    """Size and checksums of the file at `path`, read in chunks."""
    digest = _Digest()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.entry


def fast_checksum(path: Path) -> str:
    """Hexadecimal xxh3 of the file at `path`."""
    digest = xxhash.xxh3_64()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            yield buffer[:n]


def down_meta_header(n_layers: int, top_k: int) -> bytes:
    """The 16 bytes that open down_meta.bin (LARQL vindex version 2, little-endian)."""
    return np.array([_DOWN_META_MAGIC, 1, n_layers, top_k], "<u4").tobytes()


def _down_meta_record(top_k: int) -> np.dtype:
    return np.dtype([("id", "<u4"), ("score", "<f4"), ("top", [("id", "<u4"), ("logit", "<f4")], (top_k,))])


def down_meta_layer(token_ids: np.ndarray, logits: np.ndarray) -> bytes:
    """One layer of down_meta.bin: `token_ids` and `logits`, both [features, top_k], most written token first."""
    n, top_k = token_ids.shape
    records = np.zeros(n, _down_meta_record(top_k))
    records["id"], records["score"] = token_ids[:, 0], logits[:, 0]
    records["top"]["id"], records["top"]["logit"] = token_ids, logits
    return np.array([n], "<u4").tobytes() + records.tobytes()


def read_down_meta(path: Path) -> list[np.ndarray]:
    """Per layer a structured array (id, score, top[(id, logit)]) with one record a feature."""
    data = path.read_bytes()
    layers: list[np.ndarray] = []
    position = 16
    try:
        magic, version, n_layers, top_k = np.frombuffer(data, "<u4", 4)
        if (magic != _DOWN_META_MAGIC and data[:4] != b"DMET") or version != 1 or top_k > 10_000:
            raise ValueError
        record = _down_meta_record(int(top_k))
        for _ in range(n_layers):
            n = int(np.frombuffer(data, "<u4", 1, position)[0])
            # numpy takes a count beyond the end of the data, or an end that lies before the count, for a ValueError.
            layers.append(np.frombuffer(data, record, n, position + 4) if n else np.empty(0, record))
            position += 4 + n * record.itemsize
        if position != len(data):
            raise ValueError
    except ValueError:
        raise damaged(path, "not a down_meta file or truncated", "extract the model again") from None
    return layers


def rounded(vector: torch.Tensor | np.ndarray, dtype: str) -> np.ndarray:
    """float32 [...]: `vector` rounded to dtype 'f32', 'f16' or 'bf16'; PatchError where it is then not finite."""
    exact = vector if isinstance(vector, np.ndarray) else vector.detach().cpu().float().numpy()
    out = exact.astype(np.float32, copy=False)
    if dtype == "f16":
        with np.errstate(over="ignore"):
            out = out.astype(np.float16).astype(np.float32)
    elif dtype == "bf16" and np.isfinite(out).all():
        # The upper half of an f32, to the nearest and halves to even.
        bits = out.view(np.uint32)
        out = ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    if not np.isfinite(out).all():
        raise PatchError(f"a vector does not fit {dtype}: it has numbers that are not finite")
    return out
