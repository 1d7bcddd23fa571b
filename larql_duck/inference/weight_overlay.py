"""An engine under an overlay: the FFN matrices of edited layers are others, everything else stays where it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.modules import LayerParts
    from larql_duck.patches.overlay import Overlay, Which

_PARTS: tuple[Which, ...] = ("gate", "up", "down")


class Patched:
    """What an engine's edited layers held before: kept in `engine.patched`, None while nothing is edited."""

    def __init__(self, engine: Engine) -> None:
        self.overlay: Overlay | None = None
        self.fingerprint = engine.fingerprint
        self.n_features = list(engine.n_features)
        self.kept: dict[int, list[tuple[nn.Module, dict[str, Any]]]] = {}


def patch_engine(engine: Engine, overlay: Overlay | None) -> None:
    """None; every pass of `engine` runs on the weights that `overlay` makes of the model's own (None: on those alone).

    Layers that differ get new matrices in the compute dtype; the others, and all of them when the overlay goes, hold
    the very tensors that were loaded. engine.n_features counts appended features, engine.fingerprint names the edits.
    """
    if overlay is not None and not overlay.changes_weights:
        overlay = None
    with engine.anatomy.passing:
        state = engine.patched
        if state is None:
            if overlay is None:
                return
            state = engine.patched = Patched(engine)
        for layer, modules in state.kept.items():
            for module, values in modules:
                _restore(module, values)
            engine.n_features[layer] = state.n_features[layer]
        state.kept.clear()
        engine.fingerprint = state.fingerprint
        if overlay is None:
            engine.patched = None
            return
        for layer in overlay.layers():
            parts = engine.anatomy.layers[layer]
            state.kept[layer] = [(m, _values(m)) for m in (parts.gate, parts.up, parts.down) if m is not None]
            _change(parts, overlay, layer)
            engine.n_features[layer] = int(parts.down_rows().shape[0])
        state.overlay = overlay
        engine.fingerprint = f"{state.fingerprint}-{overlay.fingerprint()[:16]}"


@contextlib.contextmanager
def under(engine: Engine, overlay: Overlay | None) -> Iterator[Engine]:
    """A context in which the engine runs under another overlay; afterwards it is under its own again."""
    with engine.anatomy.passing:
        before = None if engine.patched is None else engine.patched.overlay
        patch_engine(engine, overlay)
        try:
            yield engine
        finally:
            patch_engine(engine, before)


def _values(module: nn.Module) -> dict[str, Any]:
    names = ("weight", "bias")
    kept: dict[str, Any] = {name: module._parameters[name] for name in names if name in module._parameters}
    return kept | {name: getattr(module, name) for name in _SIZES if hasattr(module, name)}


# Sizes that a linear module keeps beside its weight; Conv1D (nf) computes with it.
_SIZES = ("in_features", "out_features", "nf", "nx")


def _restore(module: nn.Module, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name in _SIZES:
            setattr(module, name, value)
        else:
            module._parameters[name] = value


def _change(parts: LayerParts, overlay: Overlay, layer: int) -> None:
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
        if parts.transposed:
            made = made.t().contiguous()
        module._parameters["weight"] = nn.Parameter(made, requires_grad=False)
        rows, columns = (made.shape[1], made.shape[0]) if parts.transposed else made.shape
        for name, size in (("out_features", rows), ("in_features", columns), ("nf", rows), ("nx", columns)):
            if hasattr(module, name):
                setattr(module, name, int(size))
        bias = getattr(module, "bias", None)
        if which != "down" and isinstance(bias, torch.Tensor) and len(bias) < rows:
            longer = torch.cat([bias.detach(), bias.new_zeros(int(rows) - len(bias))])
            module._parameters["bias"] = nn.Parameter(longer, requires_grad=False)
