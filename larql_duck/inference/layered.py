"""An Engine that holds one layer's weights at a time: a second model is asked beside one that is loaded."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from larql_duck.inference.engine import Engine
from larql_duck.inference.loading import load_parameters, return_memory, skeleton, unload_parameters
from larql_duck.inference.settings import Settings
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.vindex.arrays import torch_dtype


def layered_engine(source: WeightSource, settings: Settings) -> Engine:
    """An Engine on `source` whose layers get their weights as a pass comes to them, and give them back behind it.

    Embedding, final norm and head stay; every pass reads all layers again, so ask many prompts at once. For passes
    alone: what looks into a layer's weights finds none. ModelError and LevelError as for `Engine.load`.
    """
    device, dtype = settings.torch_device(), torch_dtype(settings.compute_dtype)
    model = skeleton(source, dtype=dtype, device=device)
    names = dict.fromkeys(name for name, _ in model.named_parameters())
    prefixes = [source.family.layer_prefix(i) for i in range(_n_layers(model))]
    layers = [[name for name in names if name.startswith(prefix)] for prefix in prefixes]
    inside = {name for own in layers for name in own}
    rest = [name for name in names if name not in inside]
    load_parameters(model, source, rest, dtype=dtype, device=device)
    engine = Engine(model, load_tokenizer(source), source)
    for part, own in zip(engine.modules.layers, layers, strict=True):
        load = partial(load_parameters, model, source, own, dtype=dtype, device=device)
        part.block.register_forward_pre_hook(_before(load))
        part.block.register_forward_hook(_behind(model, own))
    return engine


def _n_layers(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.num_hidden_layers)


def _before(load: Any) -> Any:
    def hook(*_: Any) -> None:
        load()

    return hook


def _behind(model: nn.Module, names: list[str]) -> Any:
    def hook(*_: Any) -> None:
        unload_parameters(model, names)
        # Else the C library keeps a layer's worth of freed pages for every size that a layer has.
        return_memory()

    return hook
