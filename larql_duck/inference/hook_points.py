"""Places of a forward pass by the names that TransformerLens gives them: read there, and add to what passes.

The names are those of TransformerLens's TransformerBlock (transformer_lens/components/transformer_block.py), which SAELens
and Neuronpedia use as well.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.modules import LayerModules, ModelModules, changed_input, linear_norm, normalized

# Kind of a place -> whether what stands there is the residual, or is added to it.
KINDS = {
    "hook_resid_pre": True,
    "hook_resid_mid": True,
    "hook_resid_post": True,
    "hook_attn_out": True,
    "hook_mlp_out": True,
    "hook_mlp_in": False,
    "ln2.hook_normalized": False,
}
_NAME = re.compile(r"blocks\.(\d{1,5})\.(.+)", re.ASCII)


@dataclass(frozen=True)
class HookPoint:
    """One place: a layer, from 0, and one of KINDS."""

    layer: int
    kind: str

    @property
    def name(self) -> str:
        """The name, as in blocks.5.hook_resid_post."""
        return f"blocks.{self.layer}.{self.kind}"

    @property
    def direct(self) -> bool:
        """Whether what is added here reaches the final residual as it is, beside what later layers make of it."""
        return KINDS[self.kind]


def hook_point(name: str, n_layers: int) -> HookPoint:
    """The place of this name in a model of so many layers; LarqlError for others."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in KINDS:
        raise LarqlError(
            f"the hook {name!r} is not known; known: blocks.LAYER. with {', '.join(KINDS)} behind it"
        )
    if int(match[1]) >= n_layers:
        raise LarqlError(
            f"the hook {name!r} is at layer {int(match[1])}; this model has layers 0 to {n_layers - 1}"
        )
    return HookPoint(int(match[1]), match[2])


@contextlib.contextmanager
def watch_points(
    modules: ModelModules, points: Sequence[HookPoint], seen: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """A context in which every forward pass calls seen(i, value [n, t, hidden]) as it comes by points[i]."""
    with modules.pass_lock, contextlib.ExitStack() as hooks:
        for i, point in enumerate(points):
            hooks.enter_context(_reading(modules, point, partial(seen, i)))
        yield


def _reading(modules: ModelModules, point: HookPoint, seen: Callable[[torch.Tensor], None]) -> Any:
    parts, scale = modules.layers[point.layer], modules.residual_scale

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen(args[0] if args else kwargs["hidden_states"])

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        seen(_first(output))

    def branch(module: torch.nn.Module, args: Any, output: Any) -> None:
        seen(_first(output) * scale if scale != 1.0 else _first(output))

    def normed(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        flat = args[0].reshape(-1, args[0].shape[-1])
        seen(normalized(module, flat).view(args[0].shape))

    if point.kind == "hook_resid_pre":
        return parts.block.register_forward_pre_hook(before, with_kwargs=True)
    if point.kind == "hook_resid_post":
        return parts.block.register_forward_hook(after)
    if point.kind in ("hook_resid_mid", "hook_mlp_in"):
        return _reader(parts, point).register_forward_pre_hook(before, with_kwargs=True)
    if point.kind == "ln2.hook_normalized":
        return _norm(parts, point).register_forward_pre_hook(normed)
    return _branch(parts, point).register_forward_hook(branch)


@contextlib.contextmanager
def adding(modules: ModelModules, point: HookPoint, change: torch.Tensor) -> Iterator[None]:
    """A context in which forward passes have change [n, hidden] added at the last position of their n rows there."""
    parts = modules.layers[point.layer]

    def moved(value: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, -1] += by.to(value)
        return value

    def after(by: torch.Tensor, module: torch.nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (moved(output[0], by), *output[1:])
        return moved(output, by)

    with modules.pass_lock, contextlib.ExitStack() as hooks:
        if point.kind == "hook_resid_pre":
            hooks.enter_context(changed_input(parts.block, lambda x: moved(x, change)))
        if point.kind in ("hook_resid_mid", "hook_mlp_in"):
            hooks.enter_context(changed_input(_reader(parts, point), lambda x: moved(x, change)))
        if point.kind in ("hook_resid_mid", "hook_resid_post"):
            # Of the middle too: the FFN's output is added to a copy from before its norm.
            hooks.enter_context(parts.block.register_forward_hook(partial(after, change)))
        if point.kind == "ln2.hook_normalized":
            norm = _norm(parts, point)
            weight = linear_norm(norm, change).weight
            hooks.enter_context(norm.register_forward_hook(partial(after, change * weight)))
        if point.kind in ("hook_attn_out", "hook_mlp_out"):
            hook = partial(after, change / modules.residual_scale)
            hooks.enter_context(_branch(parts, point).register_forward_hook(hook))
        yield


def _reader(parts: LayerModules, point: HookPoint) -> torch.nn.Module:
    """The module that reads the residual for the FFN: its norm, or the FFN itself."""
    if parts.parallel:
        raise LarqlError(
            f"{point.name}: attention and FFN of this model read the same residual, there is none between them; "
            f"use blocks.{point.layer}.hook_resid_pre"
        )
    return parts.ffn_norm or parts.gate


def _norm(parts: LayerModules, point: HookPoint) -> torch.nn.Module:
    if parts.ffn_norm is None:
        raise LarqlError(f"{point.name}: this model has no norm in front of its FFN")
    return parts.ffn_norm


def _branch(parts: LayerModules, point: HookPoint) -> torch.nn.Module:
    """The module whose output a branch adds to the residual."""
    if point.kind == "hook_attn_out":
        return parts.attn_post or parts.attn_out
    return parts.ffn_post or parts.down


def _first(output: Any) -> torch.Tensor:
    value: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return value
