"""FFNs whose activation is no module, or not all of it: they are given one, so that it is hooked and read as others are.

Some call a function; some multiply what the gate gives, and what down writes, by numbers of the config. The latter are
taken into the activation, so that down's columns times it are what the layer adds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

Called = tuple[str, float, float]
"""The activation's name, and what its argument and what it gives are multiplied by."""

# What functions FFNs call, by transformers' names.
_FUNCTIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "sigmoid", "tanh")
# gate, up and down, as families name them.
_NAMES = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))
_FACTORS = ("gate_multiplier", "down_multiplier")
ACT = "act_fn"


class CalledActivation(nn.Module):
    """An activation whose argument and result are multiplied."""

    def __init__(self, called: Called) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        name, self.before, self.behind = called
        # No module of its own: whoever watches modules is to see one activation.
        self._act = (ACT2FN[name],)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activation of x, of any shape."""
        out: torch.Tensor = self._act[0](x if self.before == 1 else x * self.before)
        return out if self.behind == 1 else out * self.behind


def find_called(layers: Iterable[nn.Module]) -> Called | None:
    """The activation of FFNs among these layers that have no module for all of it; None where there are none."""
    for layer in layers:
        for part in layer.modules():
            if (names := _names(part)) is not None:
                return _function(part, names)
    return None


def install(layers: Iterable[nn.Module], called: Called) -> None:
    """Give every such FFN among `layers` a module for its activation."""
    for layer in layers:
        for part in list(layer.modules()):
            if (names := _names(part)) is not None:
                setattr(part, ACT, CalledActivation(called))
                part.forward = partial(_forward, part, names)


def _names(part: Any) -> tuple[str, str, str] | None:
    """What gate, up and down of an FFN of that kind are called; None of another module."""
    children = dict(part.named_children())
    if isinstance(children.get(ACT), CalledActivation):
        return None
    if all(isinstance(getattr(part, name, None), float | int) for name in _FACTORS):
        children.pop(ACT, None)
    linear = all(isinstance(child, nn.Linear) for child in children.values())
    return next((names for names in _NAMES if linear and children.keys() == set(names)), None)


def _forward(part: Any, names: tuple[str, str, str], x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    gate, up, down = (getattr(part, name) for name in names)
    out: torch.Tensor = down(getattr(part, ACT)(gate(x)) * up(x))
    return out


def _function(part: Any, names: tuple[str, str, str]) -> Called | None:
    """The activation with which a small copy of the FFN gives what its own code does; None for another way of joining."""
    small = copy.copy(part)
    small._modules = dict(part._modules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in names:
            setattr(small, name, nn.Linear(8, 8, bias=False, device="cpu", dtype=torch.float32))
        x = torch.randn(4, 8)
    factors = [float(getattr(part, name, 1.0)) for name in _FACTORS]
    with torch.no_grad():
        wanted = type(part).forward(small, x)
        for name in _FUNCTIONS:
            called = (name, factors[0], factors[1])
            setattr(small, ACT, CalledActivation(called))
            if torch.allclose(_forward(small, names, x), wanted, atol=1e-6, rtol=1e-5):
                return called
    return None
