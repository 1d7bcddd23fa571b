"""Layers that lack an FFN or a mixer of positions: they are given one of no features, so that they are hooked and read as others are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from larql_duck.models.family import Family

# Where a layer without a mixer gets one, and its output matrix.
MIXER = "no_mixer"
OUT = f"{MIXER}.o_proj.weight"


def install(layers: Mapping[int, nn.Module], family: Family, hidden: int) -> None:
    """Give layers (by number) what they lack: matrices of no rows, which run beside the layer and add nothing."""
    for i, block in layers.items():
        own = family.at(i)
        if not own.mixer:
            out = _put(block, OUT, _linear(0, hidden))
            block.register_forward_pre_hook(partial(_mix, out), with_kwargs=True)
        if i in family.absent:
            gate, down = _put(block, own.gate, _linear(hidden, 0)), _put(block, own.down, _linear(0, hidden))
            up = _put(block, own.up, _linear(hidden, 0)) if own.up else None
            act = _put(block, own.act, nn.Identity())
            block.register_forward_hook(partial(_open, gate, up, act, down))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    with torch.device("meta"):
        return _Empty(inputs, outputs)


class _Empty(nn.Linear):
    """A matrix without rows or columns."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(max(inputs, 1), max(outputs, 1), bias=False)
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(self.weight.new_empty(outputs, inputs), requires_grad=False)


def _put(block: nn.Module, name: str, module: nn.Module) -> nn.Module:
    *parents, last = name.removesuffix(".weight").split(".")
    at = block
    for parent in parents:
        if not hasattr(at, parent):
            setattr(at, parent, nn.Module())
        at = getattr(at, parent)
    setattr(at, last, module)
    return module


def _mix(out: nn.Module, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    out((args[0] if args else kwargs["hidden_states"])[..., :0])


def _open(
    gate: nn.Module,
    up: nn.Module | None,
    act: nn.Module,
    down: nn.Module,
    block: nn.Module,
    args: Any,
    out: Any,
) -> None:
    hidden = out[0] if isinstance(out, tuple) else out
    opened = act(gate(hidden))
    down(opened if up is None else opened * up(hidden))
