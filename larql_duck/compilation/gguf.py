"""A GGUF file, written tensor by tensor with the gguf package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from larql_duck.compilation.gguf_metadata import ELSE, check_architecture, express
from larql_duck.compilation.gguf_vocab import vocabulary
from larql_duck.compilation.huggingface import shapes_of
from larql_duck.compilation.source import EditedWeights
from larql_duck.errors import ModelError
from larql_duck.models.gguf_layout import POSITIONS, GgufLayout, interleaved
from larql_duck.progress import report

# llama.cpp's numbers for what most of a file's tensors are.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_VALUE_TYPES = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
}
_BLOCK = 32
_ROWS = 4096


@dataclass(frozen=True)
class _Place:
    """A tensor of the file: llama.cpp's name, the state-dict name, shape as stored there, type."""

    stored: str
    name: str
    shape: tuple[int, ...]
    kind: str


def write_gguf(
    source: EditedWeights, path: Path, kind: str | None = None, title: str | None = None
) -> list[str]:
    """Notices for the user after the model was written to `path`; kind is F32, F16, BF16 or Q8_0 (None: as the vindex stores it).

    Vectors, and matrices whose rows are no multiple of 32 long under Q8_0, are F32 (F16). ModelError that names
    SAFETENSORS for what GGUF cannot express.
    """
    kind = kind or source.vindex.dtype.upper()
    family, config = source.family, source.config
    check_architecture(family, source.path)
    layout = GgufLayout(family, config)
    places = _places(source, layout, kind)
    expressed = express(config, family, {p.stored: p.shape for p in places}, source.path)
    vocab = family.sizes(config).vocab
    words = vocabulary(source.tokenizer_files(), vocab, expressed.metadata, source.path)
    writer = gguf.GGUFWriter(path, family.gguf_arch)
    _add_metadata(writer, {**expressed.metadata, **words}, kind, title)
    factors = None if expressed.rope_factors is None else np.array(expressed.rope_factors, np.float32)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for place in places:
        raw_dtype = gguf.GGMLQuantizationType[place.kind]
        block, size = gguf.GGML_QUANT_SIZES[raw_dtype]
        n_bytes = int(np.prod(place.shape)) // block * size
        writer.add_tensor_info(place.stored, place.shape, np.dtype(np.float32), n_bytes, raw_dtype=raw_dtype)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for n, place in enumerate(places, 1):
            tensor = _as_stored(source.tensor(place.name), place.name, layout)
            writer.write_tensor_data(_quantised(tensor, place))
            report(path.name, n, len(places))
    finally:
        writer.close()
    return expressed.notices


# -- metadata ------------------------------------------------------------------------------------------------


def _add_metadata(writer: Any, metadata: dict[str, Any], kind: str, title: str | None) -> None:
    if title:
        writer.add_name(title)
    writer.add_file_type(_FILE_TYPES[kind])
    if kind == "Q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata.items():
        if key != "general.architecture" and value != []:
            writer.add_key_value(key, value, _VALUE_TYPES.get(type(value), gguf.GGUFValueType.ARRAY))


# -- tensors -------------------------------------------------------------------------------------------------


def _places(source: EditedWeights, layout: GgufLayout, kind: str) -> list[_Place]:
    """Every stored tensor's place; ModelError for one that llama.cpp has no name for."""
    out = []
    for name, shape in shapes_of(source).items():
        stored = layout.stored_name(name)
        if stored is None:
            raise ModelError.at(
                source.path, f"tensor {name} has no place in a GGUF file; {ELSE}", tensor=name
            )
        if len(shape) == 2 and layout.is_turned(name):
            shape = (shape[1], shape[0])
        out.append(_Place(stored, name, shape, _kind(stored, shape, kind)))
    return out


def _kind(stored: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) < 2 or stored == POSITIONS:
        return "F32"
    return "F16" if kind == "Q8_0" and shape[-1] % _BLOCK else kind


def _as_stored(tensor: torch.Tensor, name: str, layout: GgufLayout) -> torch.Tensor:
    """The tensor as llama.cpp wants it: rotary halves interleaved, norms with their 1, Conv1D matrices turned."""
    if layout.is_turned(name):
        return tensor.t()
    offset, heads = layout.norm_offset(name), layout.heads(name)
    if offset:
        return tensor.float() + offset
    return tensor if heads is None else interleaved(tensor, heads)


def _quantised(tensor: torch.Tensor, place: _Place) -> np.ndarray:
    """The tensor's bytes in the place's type; ModelError where it does not fit (F16 above 65,504)."""
    if place.kind == "F32":
        return np.ascontiguousarray(tensor.float().numpy())
    rows = np.concatenate(list(_blocks(tensor, place)))
    if place.kind == "F16" and not np.isfinite(rows).all():
        raise ModelError(
            f"tensor {place.name} holds numbers above 65504, which F16 cannot store; write GGUF F32 or BF16",
            tensor=place.name,
        )
    return rows


def _blocks(tensor: torch.Tensor, place: _Place) -> Iterator[np.ndarray]:
    for part in tensor.split(_ROWS):
        if place.kind == "F16":
            yield part.to(torch.float16).contiguous().numpy()
        elif place.kind == "BF16":
            yield part.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
        else:
            values = np.ascontiguousarray(part.float().numpy())
            yield gguf.quants.quantize(values, gguf.GGMLQuantizationType[place.kind])
