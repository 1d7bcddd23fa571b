"""Hooks into forward passes: activations watched as they pass, a pass entered at a layer, hidden states replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.inference.modules import ModelModules

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def watch_activations(modules: ModelModules, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """A context in which every forward pass calls seen(layer, activation [n, t, features]) as each FFN computes it."""

    def hook(layer: int, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen(layer, args[0])

    with modules.pass_lock, contextlib.ExitStack() as hooks:
        for i, parts in enumerate(modules.layers):
            hooks.enter_context(parts.down.register_forward_pre_hook(partial(hook, i)))
        yield


@contextlib.contextmanager
def starting_at(modules: ModelModules, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """A context in which a forward pass skips the layers below `layer` and enters it with `hidden` [n, t, hidden].

    Everything else of the pass (masks, positions, later layers, norm, head) is the model's own.
    """
    skipped = [parts.block for parts in modules.layers[:layer]]
    with modules.pass_lock, changed_input(modules.layers[layer].block, lambda _: hidden):
        for block in skipped:
            block.forward = _pass_through
        try:
            yield
        finally:
            for block in skipped:
                del block.forward


def changed_input(block: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> RemovableHandle:
    """The hook that changes the hidden states that a block gets, whichever way the model passes them."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _pass_through(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]
