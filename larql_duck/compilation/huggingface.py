"""A Hugging Face directory: weights in safetensors, config, tokenizer and generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from larql_duck.compilation.safetensors import SHARD_BYTES, write_model
from larql_duck.compilation.source import JoinedWeights
from larql_duck.files import write_whole
from larql_duck.models.source import WeightSource
from larql_duck.vindex.arrays import torch_dtype

# What a config may say about how or from where somebody ran the model.
_FOREIGN = ("_name_or_path", "auto_map", "quantization_config", "torch_dtype")


class WholeModel(WeightSource, Protocol):
    """Weights of which a model is written in `dtype` ('f32', 'f16' or 'bf16')."""

    dtype: str

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, of as many tensors as are known without reading them."""


def write_directory(source: WholeModel, directory: Path, limit: int = SHARD_BYTES) -> None:
    """Write the files of a Hugging Face directory with the weights of `source`.

    Tensors are in the source's dtype. Shards are at most `limit` bytes.
    """
    documents = {"config.json": _json(config_of(source)), **source.tokenizer_files()}
    generation = _generation(source.config)
    if generation and "generation_config.json" not in documents:
        documents["generation_config.json"] = _json(generation)
    for name, data in documents.items():
        write_whole(directory / name, data, error=None)
    joined, known = JoinedWeights(source), source.expected()
    shapes = {name: joined.shape(name, known) for name in joined.names()}
    # What a layer lacks is no tensor of the model.
    shapes = {name: shape for name, shape in shapes.items() if 0 not in shape}
    write_model(joined, shapes, source.dtype, directory, limit)


def config_of(source: WholeModel) -> dict[str, Any]:
    """The config with what a file of its own needs: architecture, dtype, tying as the tensors have it, one rotary base."""
    family = source.family
    config = {k: v for k, v in family.settled(source.config).items() if k not in _FOREIGN}
    config["dtype"] = str(torch_dtype(source.dtype)).removeprefix("torch.")
    config["tie_word_embeddings"] = family.tied(config, set(source.names()))
    if architecture := _architecture(str(config.get("model_type"))):
        config["architectures"] = [architecture]
    return config


def _architecture(model_type: str) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return name if isinstance(name, str) else None


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
