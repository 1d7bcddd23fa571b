"""Model weights into the raw arrays of a vindex, tensor by tensor, in the dtype that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from larql_duck.models.source import WeightSource, ffn_matrix
from larql_duck.models.tokenizer import TOKENIZER_FILES
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import ArrayWriter, FileEntry, write_file

Step = Callable[[float], None]


def write_gates(
    source: WeightSource, n_layers: int, dtype: str, directory: Path, step: Step
) -> tuple[FileEntry, list[dict[str, int]]]:
    """The manifest entry of gate_vectors.bin after it was written, and index.json's rows of layers."""
    layers = []
    with ArrayWriter(directory / layout.GATE, dtype) as writer:
        for layer in range(n_layers):
            gate = ffn_matrix(source, layer, "gate")
            offset, length = writer.append(gate, source.family.gate_name(layer), source.path)
            layers.append({"layer": layer, "num_features": gate.shape[0], "offset": offset, "length": length})
            step(gate.numel())
    return writer.entry, layers


def write_embeddings(source: WeightSource, dtype: str, directory: Path, step: Step) -> FileEntry:
    """The manifest entry of embeddings.bin after it was written."""
    with ArrayWriter(directory / layout.EMBED, dtype) as writer:
        tensor = source.tensor(source.family.embed)
        writer.append(tensor, source.family.embed, source.path)
        step(tensor.numel())
    return writer.entry


def write_weights(
    source: WeightSource, n_layers: int, dtype: str, directory: Path, step: Step
) -> dict[str, FileEntry]:
    """File name -> manifest entry of every weight file and of weight_manifest.json, after they were written.

    The manifest has one row a tensor: key, kind, shape, offset, length, file, as LARQL writes it.
    """
    rows: list[dict[str, Any]] = []
    files: dict[str, ArrayWriter] = {}
    with ExitStack() as stack:
        for place in layout.places(source.family, source.names(), n_layers):
            tensor = source.tensor(place.name)
            if place.transposed:
                tensor = tensor.t()
            if place.file not in files:
                files[place.file] = stack.enter_context(ArrayWriter(directory / place.file, dtype))
            offset, length = files[place.file].append(tensor, place.name, source.path)
            kind = "vector" if tensor.dim() == 1 else "tensor"
            at = {"offset": offset, "length": length, "file": place.file}
            rows.append({"key": place.key, "kind": kind, "shape": list(tensor.shape), **at})
            step(tensor.numel())
    entries = {name: writer.entry for name, writer in files.items()}
    manifest = write_file(directory / layout.WEIGHT_MANIFEST, json.dumps(rows, indent=2).encode())
    return entries | {layout.WEIGHT_MANIFEST: manifest}


def write_config_files(source: WeightSource, directory: Path) -> dict[str, FileEntry]:
    """File name -> manifest entry of the model's own config and tokenizer files, copied whole."""
    files = {"config.json": json.dumps(source.config, indent=2, ensure_ascii=False).encode()}
    files |= {n: data for n, data in source.tokenizer_files().items() if n in TOKENIZER_FILES}
    return {name: write_file(directory / name, data) for name, data in files.items()}
