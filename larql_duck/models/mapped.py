"""A file mapped into memory, handed out as torch tensors without copying."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import torch

from larql_duck.errors import ModelError
from larql_duck.files import open_regular

# What safetensors and GGUF call the numbers that a model may consist of; lower case is the name used here.
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Other floats that safetensors files hold -> what holds their numbers here: eight bits exactly, doubles rounded.
READABLE = FLOATS | {
    "F64": torch.float32,
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), torch.bfloat16),
}


class MappedFile:
    """The bytes of a file, mapped copy-on-write: views are writable for torch's sake, the file never changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as handle:
                self.size = handle.seek(0, 2)
                if self.size == 0:
                    raise ModelError.at(path, "the file is empty; get a complete copy of the model")
                self.map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise ModelError.at(path, "there is no such file") from None
        except (OSError, ValueError) as error:
            raise ModelError.at(path, f"cannot be read: {error}") from None

    def damaged(self, what: str, tensor: str | None = None) -> ModelError:
        """The error of a file whose header lies."""
        return ModelError.at(self.path, f"{what}; get a complete copy of the file", tensor=tensor)

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A view of the bytes from the offset on; a copy where the offset is not aligned to the dtype."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:
            data = bytearray(self.map[offset : offset + count * dtype.itemsize])
            return torch.frombuffer(data, dtype=dtype, count=count).reshape(shape)
        return torch.frombuffer(self.map, dtype=dtype, count=count, offset=offset).reshape(shape)

    def release(self) -> None:
        """Drop the pages that reading has made resident."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)
