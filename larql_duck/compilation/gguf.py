"""A GGUF file, written tensor by tensor with the gguf package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from larql_duck.compilation.gguf_found import express_found
from larql_duck.compilation.gguf_metadata import ELSE, check_architecture, express
from larql_duck.compilation.gguf_vocab import vocabulary
from larql_duck.compilation.source import EditedWeights, JoinedWeights
from larql_duck.errors import ModelError
from larql_duck.models.gguf_families import FoundLayout, architecture
from larql_duck.models.gguf_layout import POSITIONS, GgufLayout, Layout
from larql_duck.progress import report

# llama.cpp's numbers (llama_ftype) for what most of a file's tensors are.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14, "BF16": 32}
_QUANTISED = ("Q8_0", "Q4_0", "Q4_K")
_VALUE_TYPES = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
}
_ROWS = 4096
# The output head, which decides between tokens that are close.
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"


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
    """Notices for the user after the model was written to `path`; kind is F32, F16, BF16, Q8_0, Q4_0 or Q4_K (None: as
    the vindex stores it).

    Vectors are F32. The output head (the embedding, where the two are one) is Q8_0 under Q4_0 and Q4_K; a matrix whose
    rows do not fill a type's blocks (Q8_0 and Q4_0: 32, Q4_K: 256) takes the next wider type, at last F16. ModelError
    that names SAFETENSORS for what GGUF cannot express, and for a kind that `check_kind` refuses.
    """
    kind = kind or source.vindex.dtype.upper()
    check_kind(kind)
    family, config = source.family, source.config
    check_architecture(family, source.path)
    found = family.measured is not None
    layout: Layout = FoundLayout(family, config) if found else GgufLayout(family, config)
    joined = JoinedWeights(source)
    places = _places(joined, layout, kind)
    say = express_found if found else express
    expressed = say(config, family, {p.stored: p.shape for p in places}, source.path)
    vocab = family.sizes(config).vocab
    words = vocabulary(source.tokenizer_files(), vocab, expressed.metadata, source.path)
    writer = gguf.GGUFWriter(path, architecture(family))
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
            tensor = layout.as_stored(joined.tensor(place.name), place.name)
            writer.write_tensor_data(_quantised(tensor, place))
            report(path.name, n, len(places))
    finally:
        writer.close()
    return expressed.notices


def check_kind(kind: str) -> None:
    """Raise ModelError for a number type to which the installed gguf package cannot quantise; it names those that it can."""
    if _offered(kind):
        return
    others = ", ".join(known for known in _FILE_TYPES if known != kind and _offered(known))
    raise ModelError(
        f"{kind}: the installed package gguf reads this number type and cannot quantise to it; write GGUF with one of "
        f"{others} (llama.cpp's own llama-quantize makes {kind} of an F16 file)"
    )


def _offered(kind: str) -> bool:
    if kind not in _QUANTISED:
        return True
    raw_dtype = gguf.GGMLQuantizationType[kind]
    try:
        gguf.quants.quantize(np.zeros((1, gguf.GGML_QUANT_SIZES[raw_dtype][0]), np.float32), raw_dtype)
    except NotImplementedError:
        return False
    return True


# -- metadata ------------------------------------------------------------------------------------------------


def _add_metadata(writer: Any, metadata: dict[str, Any], kind: str, title: str | None) -> None:
    if title:
        writer.add_name(title)
    writer.add_file_type(_FILE_TYPES[kind])
    if kind in _QUANTISED:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata.items():
        if key != "general.architecture" and value != []:
            writer.add_key_value(key, value, _VALUE_TYPES.get(type(value), gguf.GGUFValueType.ARRAY))


# -- tensors -------------------------------------------------------------------------------------------------


def _places(source: JoinedWeights, layout: Layout, kind: str) -> list[_Place]:
    """Every stored tensor's place; ModelError for one that llama.cpp has no name for."""
    out = []
    known = source.family.expected(source.config)
    shapes = {name: source.shape(name, known) for name in source.names()}
    head = _HEAD if _HEAD in map(layout.stored_name, shapes) else _EMBEDDING
    for name, shape in shapes.items():
        stored = layout.stored_name(name)
        if stored is None:
            raise ModelError.at(
                source.path, f"tensor {name} has no place in a GGUF file; {ELSE}", tensor=name
            )
        if len(shape) == 2 and layout.is_turned(name):
            shape = (shape[1], shape[0])
        own = "Q8_0" if stored == head and kind in _QUANTISED else kind
        out.append(_Place(stored, name, shape, _kind(stored, shape, own)))
    return out


def _kind(stored: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) < 2 or stored == POSITIONS:
        return "F32"
    if kind in _QUANTISED and shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]:
        return "F16" if kind in ("Q8_0", "Q4_0") else _kind(stored, shape, "Q8_0")
    return kind


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
