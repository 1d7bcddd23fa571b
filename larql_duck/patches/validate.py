"""Whether operations fit a vindex: layers, feature numbers, shapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from larql_duck.errors import PatchError
from larql_duck.patches.operations import DeleteKnnOp, DeleteOp, InsertKnnOp, InsertOp, Operation

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex


def check_operations(
    vindex: Vindex, operations: Sequence[Operation], where: str = "", before: Sequence[Operation] = ()
) -> None:
    """None; PatchError for a layer, a feature or a vector that the vindex cannot have.

    A number from n_features on must have been inserted earlier in the same patch: in operations, or in `before`,
    which stands before them.
    """
    local = {(op.layer, op.feature) for op in before if isinstance(op, InsertOp)}
    for number, op in enumerate(operations, 1):
        _check(vindex, op, f"{where}operation {number}: ", local)
        if isinstance(op, InsertOp):
            local.add((op.layer, op.feature))


def _check(vindex: Vindex, op: Operation, where: str, local: Collection[tuple[int, int]]) -> None:
    if isinstance(op, DeleteKnnOp):
        return
    if not 0 <= op.layer < vindex.n_layers:
        raise PatchError(
            f"{where}layer {op.layer} is out of range: the model has layers 0-{vindex.n_layers - 1}"
        )
    if isinstance(op, InsertKnnOp):
        _check_vector(op.key, vindex.hidden, f"{where}key")
        return
    n = vindex.n_features[op.layer]
    at = (op.layer, op.feature)
    if op.feature < 0:
        raise PatchError(f"{where}feature {op.feature} is negative", slot=at)
    if op.feature >= n and not isinstance(op, InsertOp) and at not in local:
        raise PatchError(f"{where}layer {op.layer} has features 0-{n - 1}, found {op.feature}", slot=at)
    if isinstance(op, DeleteOp):
        return
    for name in ("gate", "up", "down"):
        vector = getattr(op, name)
        if vector is None:
            continue
        _check_vector(
            vector, vindex.hidden, f"{where}{name} vector of layer {op.layer}, feature {op.feature}"
        )
        if name == "up" and vindex.family.up == "":
            raise PatchError(f"{where}this model's FFN has no up matrix", slot=at)


def _check_vector(vector: Any, hidden: int, what: str) -> None:
    import numpy as np

    if vector.shape != (hidden,):
        raise PatchError(f"{what}: {vector.size} numbers, this model has {hidden}")
    if not np.isfinite(vector).all():
        raise PatchError(f"{what}: it holds numbers that are not finite")
