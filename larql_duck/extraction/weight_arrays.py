"""Model weights into the raw arrays of a vindex, tensor by tensor, in the dtype that was asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from larql_duck.inference.topk import row_blocks
from larql_duck.models.source import WeightSource, ffn_matrix, matrix_rows
from larql_duck.models.tokenizer import TOKENIZER_FILES
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import ArrayWriter, FileEntry, write_file

# Numbers of a matrix that are read at a time.
_NUMBERS = 1 << 22

Step = Callable[[float], None]


def write_gates(
    source: WeightSource, n_layers: int, dtype: str, directory: Path, step: Step
) -> tuple[FileEntry, list[dict[str, int]]]:
    """The manifest entry of gate_vectors.bin after it was written, and index.json's rows of layers."""
    layers = []
    with ArrayWriter(directory / layout.GATE, dtype) as writer:
        for layer in range(n_layers):
            name = source.family.gate_name(layer)
            if source.family.transposed:
                matrix = ffn_matrix(source, layer, "gate")
                shape, span = tuple(matrix.shape), writer.append(matrix, name, source.path)
            else:
                shape, span = tuple(matrix_rows(source, name).shape), append_matrix(writer, source, name)
            offset, length = span
            layers.append({"layer": layer, "num_features": shape[0], "offset": offset, "length": length})
            step(math.prod(shape))
    return writer.entry, layers


def append_matrix(writer: ArrayWriter, source: WeightSource, name: str) -> tuple[int, int]:
    """Byte offset and length of the matrix after it was written, a block of rows at a time where it is dequantised."""
    rows = matrix_rows(source, name)
    if isinstance(rows, torch.Tensor):
        return writer.append(rows, name, source.path)
    spans = [
        writer.append(rows[start:stop], name, source.path)
        for start, stop in row_blocks(len(rows), max(1, _NUMBERS // rows.shape[-1]))
    ]
    return spans[0][0], sum(length for _, length in spans)


def write_embeddings(source: WeightSource, dtype: str, directory: Path, step: Step) -> FileEntry:
    """The manifest entry of embeddings.bin after it was written."""
    with ArrayWriter(directory / layout.EMBED, dtype) as writer:
        append_matrix(writer, source, source.family.embed)
        step(math.prod(source.family.expected(source.config)[source.family.embed]))
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
            if place.file not in files:
                files[place.file] = stack.enter_context(ArrayWriter(directory / place.file, dtype))
            writer = files[place.file]
            if not place.transposed:
                shape = [*matrix_rows(source, place.name).shape]
                offset, length = append_matrix(writer, source, place.name)
            else:
                tensor = source.tensor(place.name)
                tensor = tensor.t()
                shape = [*tensor.shape]
                offset, length = writer.append(tensor, place.name, source.path)
            kind = "vector" if len(shape) == 1 else "tensor"
            at = {"offset": offset, "length": length, "file": place.file}
            rows.append({"key": place.key, "kind": kind, "shape": shape, **at})
            step(math.prod(shape))
    entries = {name: writer.entry for name, writer in files.items()}
    manifest = write_file(directory / layout.WEIGHT_MANIFEST, json.dumps(rows, indent=2).encode())
    return entries | {layout.WEIGHT_MANIFEST: manifest}


def write_config_files(source: WeightSource, directory: Path) -> dict[str, FileEntry]:
    """File name -> manifest entry of the model's own config and tokenizer files, copied whole."""
    files = {"config.json": json.dumps(source.config, indent=2, ensure_ascii=False).encode()}
    files |= {n: data for n, data in source.tokenizer_files().items() if n in TOKENIZER_FILES}
    return {name: write_file(directory / name, data) for name, data in files.items()}
