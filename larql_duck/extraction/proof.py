"""Proof that what was found among a model's modules is what they compute, before anything is written."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from larql_duck.errors import ModelError, reason
from larql_duck.extraction.context import run_layer, token_stream
from larql_duck.extraction.scratch_weights import ScratchWeights
from larql_duck.inference.attribution import parts_problem
from larql_duck.inference.engine import Engine
from larql_duck.inference.layered import layered_engine
from larql_duck.inference.modules import LayerModules
from larql_duck.inference.settings import Settings
from larql_duck.models.architecture import config_object, empty_model
from larql_duck.models.expert_rows import expert_names, expert_tensor
from larql_duck.models.source import WeightSource

_TOKENS = 16
_OFF = 1e-3


def prove(source: WeightSource) -> None:
    """Raise ModelError where a layer's FFN gives another output than features times down columns, with the difference.

    On random tokens, one layer's weights in memory at a time.
    """
    engine = layered_engine(source, Settings())
    own = OwnMixtures(source)
    worst: dict[str, tuple[float, int]] = {}
    seen: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        seen[module] = out.flatten(0, -2)

    def compare(layer: int, parts: LayerModules, module: nn.Module, args: Any, out: torch.Tensor) -> None:
        read, wrote = args[0].flatten(0, -2), out.flatten(0, -2)
        bias = parts.down_bias()
        written = read @ parts.down_rows() + (0 if bias is None else bias)
        note("features times down columns", layer, written, wrote)
        if parts.plain:
            opened = parts.act(seen[parts.gate])
            note(
                "activation of gate and up",
                layer,
                opened if parts.up is None else opened * seen[parts.up],
                read,
            )

    def note(what: str, layer: int, found: torch.Tensor, wanted: torch.Tensor) -> None:
        if not found.numel() and not wanted.numel():  # a layer without an FFN
            return
        if found.shape != wanted.shape:
            worst[what] = (float("inf"), layer)
            return
        off = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        worst[what] = max(worst.get(what, (0.0, layer)), (off, layer))

    def compare_mixture(layer: int, module: nn.Module, args: Any, out: Any) -> None:
        found = out[0] if isinstance(out, tuple) else out
        wanted = own.output(layer, args[0]).view(found.shape)
        note("the experts' features times down columns", layer, found, wanted)

    handles = []
    for layer, parts in enumerate(engine.modules.layers):
        if parts.mixture is not None:
            hook = partial(compare_mixture, layer)
            handles.append(parts.mixture.block.register_forward_hook(hook))
            continue
        handles += [m.register_forward_hook(keep) for m in (parts.gate, parts.up) if m is not None]
        handles.append(parts.down.register_forward_hook(partial(compare, layer, parts)))
    ids = torch.randint(engine.vocab, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    try:
        engine.logits(engine.pad(ids[0].tolist()[: engine.context or _TOKENS]))
    finally:
        for handle in handles:
            handle.remove()
    for what, (off, layer) in worst.items():
        if not off <= _OFF:
            raise ModelError.at(
                source.path,
                f"model_type {source.family.name!r}: {what} is not what layer {layer} computes (off by {off:.2g} of its "
                "largest value), so its features cannot be read",
            )


class OwnMixtures:
    """The mixtures of a model as transformers runs them, with what is read here put back into its arrays."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._model: Any = None

    def output(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What transformers' own block gives at x, in f32."""
        source, family = self._source, self._source.family
        if self._model is None:
            self._model = empty_model(config_object(source.config, family.name)).eval()
        assert family.experts is not None
        prefix = family.layer_prefix(layer) + family.experts.block
        block = self._model.get_submodule(prefix)
        parts = {name: part for part, name in expert_names(family, layer).items()}
        stored = set(source.names())
        weights = {}
        for name in block.state_dict():
            full = f"{prefix}.{name}"
            if full in parts:
                weights[name] = expert_tensor(source, layer, parts[full]).float()
            elif full in stored:
                weights[name] = source.tensor(full).float()
        block.load_state_dict(weights, strict=False, assign=True)
        for name, buffer in block.named_buffers():
            if buffer.is_meta:
                raise ModelError(f"{prefix}.{name} is not stored, and what the router does hangs on it")
        out = block(x)
        block.to("meta")
        return out[0] if isinstance(out, tuple) else out


def stream_problem(
    source: WeightSource, ids: np.ndarray, weights: ScratchWeights | None = None
) -> str | None:
    """Why the context pass, which adds a layer's branches up itself, is not the model's own; None where it is.

    weights: those of the whole pass, where they are not to be held in memory.
    """
    engine = Engine.load(source, weights=weights, room=0)
    name = f"model_type {source.family.name!r}"
    if problem := parts_problem(engine):
        return problem
    if not all(parts.plain for parts in engine.modules.layers):
        return f"the FFN of this model ({name}) is more than activation, gate and up"
    few = ids[:3]
    try:
        stream = token_stream(source, few)
        for layer in range(engine.n_layers):
            run_layer(stream, layer)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        return f"the layers of this model ({name}) do not run one by one ({reason(error)})"
    prefix = stream.prefix_ids
    with torch.inference_mode():
        rows = [
            engine.capture(engine.pad([*prefix, int(i)]), {"residual"}).need("residual")[-1, 0] for i in few
        ]
    wanted = torch.stack(rows).float()
    off = float((stream.residual - wanted).abs().max() / wanted.abs().max())
    if off <= _OFF:
        return None
    return f"the layers of this model ({name}) give another residual one by one (off by {off:.2g} of its largest value)"
