"""safetensors files, written tensor by tensor: a model of any size needs memory for its largest tensor alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from larql_duck.files import open_replacing, write_whole
from larql_duck.models.source import WeightSource
from larql_duck.progress import report
from larql_duck.vindex.arrays import torch_dtype
from larql_duck.vindex.manifest import DTYPE_BYTES

SHARD_BYTES = 5_000_000_000
_CHUNK = 1 << 22


def write_model(
    source: WeightSource,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    directory: Path,
    limit: int = SHARD_BYTES,
) -> None:
    """Write model.safetensors, or shards of at most `limit` bytes (one tensor at least) with an index.

    `shapes` are those of the tensors to write, by state-dict name and in Hugging Face layout.
    """
    sizes = {name: math.prod(shape) * DTYPE_BYTES[dtype] for name, shape in shapes.items()}
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > limit:
            shards.append({})
        shards[-1][name] = size
    if len(shards) == 1:
        _write(source, shapes, shards[0], dtype, directory / "model.safetensors")
        return
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = directory / f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write(source, shapes, shard, dtype, file)
        places |= dict.fromkeys(shard, file.name)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
    text = json.dumps(index, indent=2)
    write_whole(directory / "model.safetensors.index.json", text, error=None)


def _write(
    source: WeightSource,
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    dtype: str,
    path: Path,
) -> None:
    """Write the tensors in `sizes` (bytes by name) to `path`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in sizes.items():
        place = [at, at + size]
        header[name] = {"dtype": dtype.upper(), "shape": list(shapes[name]), "data_offsets": place}
        at += size
    text = json.dumps(header).encode()
    # The data begins at a multiple of eight bytes, so that readers may map it.
    text += b" " * (-len(text) % 8)
    target = torch_dtype(dtype)
    with open_replacing(path, error=None) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for n, name in enumerate(sizes, 1):
            tensor = source.tensor(name)
            assert tuple(tensor.shape) == shapes[name], (name, shapes[name], tensor.shape)
            for part in tensor.reshape(-1).split(_CHUNK):
                file.write(part.to(target).contiguous().view(torch.uint8).numpy().data)
            report(path.name, n, len(sizes))
