"""safetensors files, written tensor by tensor: a model of any size needs memory for its largest tensor alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from larql_duck.files import open_replacing, write_whole
from larql_duck.models.source import WeightSource
from larql_duck.vindex.arrays import torch_dtype
from larql_duck.vindex.manifest import DTYPE_BYTES

SHARD_BYTES = 5_000_000_000
_CODES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written: its state-dict name and its shape in Hugging Face layout."""

    name: str
    shape: tuple[int, ...]

    def bytes(self, dtype: str) -> int:
        """Its size in a file of that dtype."""
        return math.prod(self.shape) * DTYPE_BYTES[dtype]


def write_model(
    source: WeightSource, planned: Sequence[Planned], dtype: str, directory: Path, limit: int = SHARD_BYTES
) -> list[Path]:
    """The files written: model.safetensors, or shards of at most `limit` bytes (one tensor at least) with an index."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in planned:
        n_bytes = tensor.bytes(dtype)
        if shards[-1] and size + n_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += n_bytes
    if len(shards) == 1:
        return [_write(source, shards[0], dtype, directory / "model.safetensors")]
    files: list[Path] = []
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = directory / f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        files.append(_write(source, shard, dtype, file))
        places |= {tensor.name: file.name for tensor in shard}
    index = {
        "metadata": {"total_size": sum(tensor.bytes(dtype) for tensor in planned)},
        "weight_map": dict(sorted(places.items())),
    }
    text = json.dumps(index, indent=2)
    return [*files, write_whole(directory / "model.safetensors.index.json", text, error=None)]


def _write(source: WeightSource, planned: Sequence[Planned], dtype: str, path: Path) -> Path:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in planned:
        end = at + tensor.bytes(dtype)
        header[tensor.name] = {
            "dtype": _CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    # The data begins at a multiple of eight bytes, so that readers may map it.
    text += b" " * (-len(text) % 8)
    with open_replacing(path, error=None) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in planned:
            for piece in _pieces(source.tensor(tensor.name), tensor, dtype):
                file.write(piece)
    return path


def _pieces(tensor: torch.Tensor, planned: Planned, dtype: str) -> Iterator[memoryview]:
    assert tuple(tensor.shape) == planned.shape, (planned, tensor.shape)
    target = torch_dtype(dtype)

    def data(part: torch.Tensor) -> memoryview:
        return part.to(target).contiguous().view(torch.uint8).numpy().data

    return map(data, tensor.reshape(-1).split(_CHUNK))
