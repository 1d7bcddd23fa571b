"""Hooks into forward passes: activations watched as they pass, a pass entered at a layer, hidden states replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from larql_duck.inference.modules import ModelModules


@contextlib.contextmanager
def watch_activations(modules: ModelModules, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """A context in which every forward pass calls seen(layer, activation [n, t, features]) as each FFN computes it."""

    def hook_of(layer: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen(layer, args[0])

        return hook

    with modules.pass_lock:
        handles = [p.down.register_forward_pre_hook(hook_of(i)) for i, p in enumerate(modules.layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextlib.contextmanager
def starting_at(modules: ModelModules, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """A context in which a forward pass skips the layers below `layer` and enters it with `hidden` [n, t, hidden].

    Everything else of the pass (masks, positions, later layers, norm, head) is the model's own.
    """
    skipped = [parts.block for parts in modules.layers[:layer]]
    with modules.pass_lock:
        handle = modules.layers[layer].block.register_forward_pre_hook(
            lambda module, args, kwargs: replace_input(lambda _: hidden, args, kwargs), with_kwargs=True
        )
        for block in skipped:
            block.forward = _pass_through
        try:
            yield
        finally:
            handle.remove()
            for block in skipped:
                del block.forward


def replace_input(
    change: Callable[[torch.Tensor], torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's (args, kwargs) with its hidden states changed, whichever way the model passes them."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}


def _pass_through(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]
