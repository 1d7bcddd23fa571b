"""Activations as they pass, layer after layer, for work that must not keep them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from larql_duck.inference.modules import Anatomy


@contextlib.contextmanager
def watching(anatomy: Anatomy, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """A context in which every forward pass calls seen(layer, activation [n, t, features]) as each FFN computes it."""

    def hook_of(layer: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen(layer, args[0])

        return hook

    with anatomy.passing:
        handles = [p.down.register_forward_pre_hook(hook_of(i)) for i, p in enumerate(anatomy.layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
