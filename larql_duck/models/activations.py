"""The activation functions of FFNs: transformers' names, and which one a module is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
}
"""Name of an FFN's activation, as families have it -> the function; transformers has more."""

_AT = torch.linspace(-6, 6, 49)


def activation_function(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of a name that `Family.activation` gives; for '', which only the model computes, NaN everywhere."""
    if not name:
        return lambda x: torch.full_like(x, torch.nan)
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    from transformers.activations import ACT2FN

    function: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[name]
    return function


def name_of_activation(module: nn.Module) -> str:
    """The name of the activation that gives the same numbers as `module`; '' where it has numbers of its own."""
    from transformers.activations import ACT2CLS, ACT2FN

    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return ""
    wanted = module(_AT)
    for name, function in ACTIVATIONS.items():
        if torch.allclose(function(_AT), wanted, atol=1e-6):
            return name
    for name in ACT2CLS:
        try:
            function = ACT2FN[name]
            if next(function.parameters(), None) is None and torch.allclose(function(_AT), wanted, atol=1e-6):
                return name
        except (TypeError, RuntimeError, ImportError):
            continue
    return ""
