"""A GGUF file, written tensor by tensor with the gguf package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from larql_duck.compilation.gguf_metadata import express
from larql_duck.compilation.gguf_vocab import vocabulary
from larql_duck.compilation.huggingface import shapes_of
from larql_duck.errors import ModelError
from larql_duck.models.family import bias_of

if TYPE_CHECKING:
    import torch

    from larql_duck.compilation.source import Edited

TYPES = ("F32", "F16", "BF16", "Q8_0")
OF_DTYPE = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
# llama.cpp's numbers for what most of a file's tensors are.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_BLOCK = 32
_ROWS = 4096


@dataclass(frozen=True)
class _Place:
    """A tensor of the file: llama.cpp's name, the state-dict name, shape as stored there, type."""

    own: str
    name: str
    shape: tuple[int, ...]
    kind: str


def write_gguf(source: Edited, path: Path, kind: str | None = None, title: str | None = None) -> list[str]:
    """Notices for the user after the model was written to `path`; kind is F32, F16, BF16 or Q8_0 (None: as the vindex stores it).

    Vectors, and matrices whose rows are no multiple of 32 long under Q8_0, are F32 (F16). ModelError that names
    SAFETENSORS for what GGUF cannot express.
    """
    import gguf

    kind = kind or OF_DTYPE[source.vindex.dtype]
    places = _places(source, kind)
    tensors = {p.own: p.shape for p in places}
    told = express(source.config, source.family, tensors, source.path)
    vocab = source.family.sizes(source.config).vocab
    words = vocabulary(source.tokenizer_files(), vocab, told.metadata, source.path)
    writer = gguf.GGUFWriter(path, source.family.gguf_arch)
    _add_metadata(writer, {**told.metadata, **words}, kind, title)
    factors = None if told.rope_factors is None else np.array(told.rope_factors, np.float32)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for place in places:
        own = gguf.GGMLQuantizationType[place.kind]
        size, block = gguf.GGML_QUANT_SIZES[own][1], gguf.GGML_QUANT_SIZES[own][0]
        n_bytes = int(np.prod(place.shape)) // block * size
        writer.add_tensor_info(place.own, place.shape, np.dtype(np.float32), n_bytes, raw_dtype=own)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for place in places:
            writer.write_tensor_data(_quantised(_layout(source, place), place))
    finally:
        writer.close()
    return told.notices


# -- metadata ------------------------------------------------------------------------------------------------


def _add_metadata(writer: Any, metadata: dict[str, Any], kind: str, title: str | None) -> None:
    import gguf

    if title:
        writer.add_name(title)
    writer.add_file_type(_FILE_TYPES[kind])
    if kind == "Q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


# -- tensors -------------------------------------------------------------------------------------------------


def _places(source: Edited, kind: str) -> list[_Place]:
    """Every stored tensor's place; ModelError for one that llama.cpp has no name for."""
    from larql_duck.models.gguf import stems_of

    family = source.family
    stems = {own: stem for stem, own in stems_of(family).items()}
    top = {
        family.embed: "token_embd.weight",
        family.head: "output.weight",
        family.final_norm: "output_norm.weight",
        family.final_norm_bias: "output_norm.bias",
        family.positions: "position_embd.weight",
    }
    in_layer: dict[str, str] = {}
    for i in range(source.vindex.n_layers):
        prefix = family.layer_prefix(i)
        for own, stem in stems.items():
            in_layer[prefix + own] = f"blk.{i}.{stem}.weight"
            in_layer[prefix + bias_of(own)] = f"blk.{i}.{stem}.bias"
    out = []
    for name, shape in shapes_of(source).items():
        place = top.get(name) or in_layer.get(name)
        if not place:
            raise ModelError(
                f"{source.path}: tensor {name} has no place in a GGUF file; write it with FORMAT SAFETENSORS instead",
                path=source.path,
                tensor=name,
            )
        if len(shape) == 2 and _turned(source, name):
            shape = (shape[1], shape[0])
        out.append(_Place(place, name, shape, _kind(place, shape, kind)))
    return out


def _kind(own: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) < 2 or own == "position_embd.weight":
        return "F32"
    return "F16" if kind == "Q8_0" and shape[-1] % _BLOCK else kind


def _relative(source: Edited, name: str) -> str:
    """A layer tensor's name without its layer's prefix, any other name as it is."""
    head, _, _ = source.family.layer.partition("{i}")
    return name[len(head) :].partition(".")[2] if name.startswith(head) else name


def _turned(source: Edited, name: str) -> bool:
    return source.family.transposed and _relative(source, name) in source.family.matrices()


def _layout(source: Edited, place: _Place) -> torch.Tensor:
    """The tensor as llama.cpp wants it: rotary halves interleaved, norms with their 1, Conv1D matrices turned."""
    family, name = source.family, place.name
    tensor = source.tensor(name)
    relative = _relative(source, name)
    if _turned(source, name):
        return tensor.t()
    if family.norm_offset and (relative in family.norms() or name == family.final_norm):
        return tensor.float() + family.norm_offset
    if family.gguf_permuted:
        sizes = family.sizes(source.config)
        heads = {family.q: sizes.n_heads, family.k: sizes.n_kv_heads}
        heads |= {bias_of(n): h for n, h in heads.items()}
        if relative in heads:
            return _interleaved(tensor, heads[relative])
    return tensor


def _interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _quantised(tensor: torch.Tensor, place: _Place) -> np.ndarray:
    """The tensor's bytes in the place's type; ModelError where it does not fit (F16 above 65,504)."""
    import torch

    if place.kind == "F32":
        return np.ascontiguousarray(tensor.float().numpy())
    rows = np.concatenate(list(_blocks(tensor, place)))
    return rows if place.kind != "F16" or torch.isfinite(torch.from_numpy(rows)).all() else _too_large(place)


def _blocks(tensor: torch.Tensor, place: _Place) -> Iterator[np.ndarray]:
    import gguf
    import torch

    for part in tensor.split(_ROWS):
        if place.kind == "F16":
            yield part.to(torch.float16).contiguous().numpy()
        elif place.kind == "BF16":
            yield part.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
        else:
            values = np.ascontiguousarray(part.float().numpy())
            yield gguf.quants.quantize(values, gguf.GGMLQuantizationType[place.kind])


def _too_large(place: _Place) -> np.ndarray:
    raise ModelError(
        f"tensor {place.name} holds numbers above 65504, which F16 cannot store; write GGUF F32 or BF16",
        tensor=place.name,
    )
