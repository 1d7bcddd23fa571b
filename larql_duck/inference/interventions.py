"""Changes to one forward pass: features set, shifted or thinned out, residuals added to or replaced."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from larql_duck.aliases import Slot
from larql_duck.errors import LarqlError
from larql_duck.inference.modules import ModelModules, changed_input

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class FeatureEdit:
    """Activations of one layer, changed where they enter the down projection.

    features is int64 [k]; rows int64 [k] names each feature's batch row, None means every row. value is a number or
    [k]. position is None for every position, an index from 0 of a prompt's own tokens, or from -1 backwards.
    """

    layer: int
    features: torch.Tensor
    value: float | torch.Tensor = 0.0
    rows: torch.Tensor | None = None
    mode: Literal["set", "add", "scale"] = "set"
    position: int | None = None


@dataclass(frozen=True)
class ResidualEdit:
    """The residual after a layer (-1: the embedding), with a vector added or put in its place.

    vector is [hidden] or one a batch row [n, hidden]; rows int64 [k] limits it to some rows (vector then [k, hidden]
    or [hidden]); position as in FeatureEdit.
    """

    layer: int
    vector: torch.Tensor
    mode: Literal["add", "replace"] = "add"
    rows: torch.Tensor | None = None
    position: int | None = None


@dataclass(frozen=True)
class Sparse:
    """Only the k features with the largest absolute gate value stay, per position, in `layers` (None: in all).

    The gate value is the product of gate row and input, without a bias: the order in which gate search finds them.
    """

    k: int
    layers: tuple[int, ...] | None = None


Edit = FeatureEdit | ResidualEdit | Sparse


def feature_edits(
    slots: Iterable[Slot],
    *,
    value: float | torch.Tensor = 0.0,
    mode: Literal["set", "add", "scale"] = "set",
    position: int | None = None,
) -> list[FeatureEdit]:
    """One FeatureEdit a layer that changes the (layer, feature) slots in every row.

    value may be a tensor [layers, features] of replacement values, for instance mean activations.
    """
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, feature in slots:
        by_layer[layer].append(feature)
    edits = []
    for layer, features in sorted(by_layer.items()):
        index = torch.tensor(features, dtype=torch.int64)
        values = value[layer, index] if isinstance(value, torch.Tensor) else value
        edits.append(FeatureEdit(layer, index, values, None, mode, position))
    return edits


def row_edits(
    slots: Iterable[tuple[int, Slot]], *, replacement: torch.Tensor | None = None, position: int | None = None
) -> list[FeatureEdit]:
    """One FeatureEdit a layer that changes each (layer, feature) slot in the batch row that it is named with.

    The activation is then zero, or what replacement f32 [layers, features] has there.
    """
    by_layer: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, (layer, feature) in slots:
        by_layer[layer].append((row, feature))
    edits = []
    for layer, pairs in sorted(by_layer.items()):
        rows, features = torch.tensor(pairs, dtype=torch.int64).unbind(1)
        value = 0.0 if replacement is None else replacement[layer, features]
        edits.append(FeatureEdit(layer, features, value, rows, "set", position))
    return edits


def check(edits: Sequence[Edit], n_features: Sequence[int]) -> None:
    """Raise LarqlError for a layer or feature that the model does not have."""
    n_layers = len(n_features)
    for edit in edits:
        if isinstance(edit, Sparse):
            if edit.k < 1:
                raise LarqlError(f"a sparse pass needs at least 1 feature a layer, not {edit.k}")
            layers: Iterable[int] = edit.layers or ()
        else:
            layers = (edit.layer,)
        for layer in layers:
            lowest = -1 if isinstance(edit, ResidualEdit) else 0
            if not lowest <= layer < n_layers:
                raise LarqlError(f"layer {layer} is out of range; this model has layers 0 to {n_layers - 1}")
        if isinstance(edit, FeatureEdit) and edit.features.numel():
            low, high = int(edit.features.min()), int(edit.features.max())
            if low < 0 or high >= n_features[edit.layer]:
                n = n_features[edit.layer]
                has = f"features 0 to {n - 1}" if n else "no FFN and no features"
                raise LarqlError(
                    f"feature {low if low < 0 else high} is out of range; layer {edit.layer} has {has}"
                )


Starts = Callable[[], torch.Tensor | None]


@contextlib.contextmanager
def applied(modules: ModelModules, edits: Sequence[Edit], starts: Starts) -> Iterator[None]:
    """A context in which every forward pass carries the edits.

    `starts` gives the index of each row's first real token in the running pass, None where nothing is padded.
    """
    with contextlib.ExitStack() as hooks:
        for edit in edits:
            if isinstance(edit, FeatureEdit):
                down = modules.layers[edit.layer].down
                hooks.enter_context(down.register_forward_pre_hook(_feature_hook(edit, starts)))
            elif isinstance(edit, ResidualEdit):
                hooks.enter_context(_hook_residual(modules, edit, starts))
            else:
                for layer in range(len(modules.layers)) if edit.layers is None else edit.layers:
                    for handle in _hook_sparse(modules, layer, edit.k):
                        hooks.enter_context(handle)
        yield


def _columns(
    position: int | None, n: int, t: int, starts: Starts, device: torch.device
) -> torch.Tensor | None:
    """The column of `position` in each of n rows, int64 [n]; None for every position."""
    if position is None:
        return None
    if position < 0:
        column = torch.full((n,), t + position, dtype=torch.int64, device=device)
    else:
        offsets = starts()
        column = torch.full((n,), position, dtype=torch.int64, device=device)
        column = column if offsets is None else column + offsets.to(device)
    if int(column.min()) < 0 or int(column.max()) >= t:
        raise LarqlError(f"position {position} is out of range; the pass has {t} positions")
    return column


def _feature_hook(edit: FeatureEdit, starts: Starts) -> Callable[..., tuple[torch.Tensor, ...]]:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = args[0].clone()
        n, t = x.shape[:2]
        columns = _columns(edit.position, n, t, starts, x.device)
        rows = torch.arange(n, device=x.device)[:, None] if edit.rows is None else edit.rows.to(x.device)
        # [.., positions] where every position is meant, so that one assignment serves both cases.
        at = slice(None) if columns is None else columns[rows]
        index: tuple[Any, ...] = (rows, at, edit.features.to(x.device))
        value = edit.value
        if isinstance(value, torch.Tensor):
            value = value.to(x)[..., None] if columns is None else value.to(x)
        if edit.mode == "set":
            x[index] = value
        else:
            x[index] = x[index] + value if edit.mode == "add" else x[index] * value
        return (x, *args[1:])

    return hook


def _hook_residual(modules: ModelModules, edit: ResidualEdit, starts: Starts) -> RemovableHandle:
    def change(hidden: torch.Tensor) -> torch.Tensor:
        n, t = hidden.shape[:2]
        columns = _columns(edit.position, n, t, starts, hidden.device)
        rows = torch.arange(n, device=hidden.device) if edit.rows is None else edit.rows.to(hidden.device)
        vector = edit.vector.to(hidden).expand(len(rows), -1)
        at: Any = (rows, slice(None) if columns is None else columns[rows])
        new = vector[:, None] if columns is None else vector
        out = hidden.clone()
        out[at] = out[at] + new if edit.mode == "add" else new
        return out

    if edit.layer < 0:
        return changed_input(modules.layers[0].block, change)

    def after(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            return (change(output[0]), *output[1:])
        return change(output)

    return modules.layers[edit.layer].block.register_forward_hook(after)


def _hook_sparse(modules: ModelModules, layer: int, k: int) -> list[RemovableHandle]:
    parts = modules.layers[layer]
    selected: list[torch.Tensor] = []
    bias = getattr(parts.gate, "bias", None)

    def remember(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        if isinstance(bias, torch.Tensor):
            output = output - bias
        # Stable order, so that ties go to the lower feature as in gate search.
        order = output.abs().sort(dim=-1, descending=True, stable=True).indices
        selected.append(order[..., : min(k, output.shape[-1])])

    def thin(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        index = selected.pop()
        x = torch.zeros_like(args[0])
        x.scatter_(-1, index, args[0].gather(-1, index))
        return (x, *args[1:])

    return [parts.gate.register_forward_hook(remember), parts.down.register_forward_pre_hook(thin)]
