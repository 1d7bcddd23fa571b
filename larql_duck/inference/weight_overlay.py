"""A model's weights under an overlay: the FFN matrices of edited layers are others, everything else stays as loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from larql_duck.errors import LarqlError
from larql_duck.inference.modules import LayerModules, ModelModules
from larql_duck.patches.overlay import Overlay, Which

_PARTS: tuple[Which, ...] = ("gate", "up", "down")
# Sizes that a linear module keeps beside its weight; Conv1D (nf) computes with it.
_SIZES = ("in_features", "out_features", "nf", "nx")


class WeightOverlay:
    """The overlay that a model's FFN weights are under, and the loaded weights of the layers that it changes.

    overlay is None while the model runs on its own weights.
    """

    def __init__(self, modules: ModelModules) -> None:
        self._modules = modules
        self.overlay: Overlay | None = None
        self._loaded: list[tuple[nn.Module, dict[str, Any]]] = []

    def apply(self, overlay: Overlay | None) -> None:
        """Put the weights that `overlay` makes of the loaded ones in place; None puts the loaded ones back.

        Layers that differ get new matrices in the compute dtype; the others hold the very tensors that were loaded.
        """
        for module, values in self._loaded:
            _restore(module, values)
        self._loaded.clear()
        self.overlay = None
        if overlay is None or not overlay.changes_weights:
            return
        for layer in overlay.layers():
            parts = self._modules.layers[layer]
            self._loaded += [(m, _values(m)) for m in (parts.gate, parts.up, parts.down) if m is not None]
            _change(parts, overlay, layer)
        self.overlay = overlay


def _values(module: nn.Module) -> dict[str, Any]:
    names = ("weight", "bias")
    values: dict[str, Any] = {name: module._parameters[name] for name in names if name in module._parameters}
    return values | {name: getattr(module, name) for name in _SIZES if hasattr(module, name)}


def _restore(module: nn.Module, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name in _SIZES:
            setattr(module, name, value)
        else:
            module._parameters[name] = value


def _change(parts: LayerModules, overlay: Overlay, layer: int) -> None:
    modules = dict(zip(_PARTS, (parts.gate, parts.up, parts.down), strict=True))
    for which, module in modules.items():
        if module is None:
            continue
        stored = module.weight
        assert isinstance(stored, torch.Tensor)
        base = stored.detach().t() if parts.transposed else stored.detach()
        made = overlay.matrix(layer, which, base)
        if made is base:
            continue
        if not parts.plain and made.shape != base.shape:
            raise LarqlError(
                f"layer {layer} of this model changes what its features say before it writes them, each by all the others: "
                "a feature more is none of its own; change or delete those that it has"
            )
        if parts.transposed:
            made = made.t().contiguous()
        module._parameters["weight"] = nn.Parameter(made, requires_grad=False)
        rows, columns = (made.shape[1], made.shape[0]) if parts.transposed else made.shape
        for name, size in zip(_SIZES, (columns, rows, rows, columns), strict=True):
            if hasattr(module, name):
                setattr(module, name, int(size))
        bias = getattr(module, "bias", None)
        if which != "down" and isinstance(bias, torch.Tensor) and len(bias) < rows:
            longer = torch.cat([bias.detach(), bias.new_zeros(int(rows) - len(bias))])
            module._parameters["bias"] = nn.Parameter(longer, requires_grad=False)
