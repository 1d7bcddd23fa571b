"""INTO PATCH: the operations that turn one side into the other, proven by carrying them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from larql_duck.diffing.slot_diff import (
    SlotDifference,
    comparable,
    slot_differences,
    stored_matrices,
    tensors_outside_ffn,
)
from larql_duck.errors import PatchError
from larql_duck.patches.operations import (
    DeleteKnnOp,
    DeleteOp,
    InsertKnnOp,
    InsertOp,
    Meta,
    Operation,
    UpdateOp,
    fact_key,
)
from larql_duck.patches.overlay import EditedFact

if TYPE_CHECKING:
    import torch

    from larql_duck.diffing.compare import Difference
    from larql_duck.diffing.sides import DiffSide

_NAMED = 3


def as_patch(a: DiffSide, b: DiffSide, found: Difference, *, whole: bool = True) -> list[Operation]:
    """The operations that, applied on a, give b's FFN and database facts; for the slots of `found` alone unless whole.

    Appended features become inserts under the fact that they carry (or under their own number), changed ones updates,
    zeroed ones deletions; features that b lacks become zeros, which do the same. PatchError naming the tensors where
    a and b differ outside the FFN, where they are no versions of one model, or store other numbers (dtype, level).
    """
    _check(a, b)
    operations: list[Operation] = _forgotten(a, b) if whole else []
    start = a.under([*a.lists, operations]) if operations else a
    slots = list(slot_differences(start, b)) if operations else found.slots
    shown = _Shown(b)
    # Slots that show another token for the same vectors are in the rows, not among the slots that differ.
    operations += [_operation(start, b, slot, shown) for slot in slots]
    known = {(s.layer, s.feature) for s in slots}
    for layer, feature in _tokens(found):
        if (layer, feature) not in known and feature < min(
            start.vindex.n_features[layer], b.weights.n_features[layer]
        ):
            meta = shown.meta(layer, feature)
            if meta is not None:
                operations.append(UpdateOp(layer, feature, meta=meta))
    if whole:
        operations += _database(a, b)
    _prove(a, b, operations, None if whole else {(s.layer, s.feature) for s in slots})
    return operations


def _check(a: DiffSide, b: DiffSide) -> None:
    reason = comparable(a, b)
    if reason is not None:
        raise PatchError(
            f"{a.name} and {b.name} are no versions of one model ({reason}), so no patch turns one into the other; "
            "carry its facts over with MERGE"
        )
    for side in (a, b):
        side.vindex.require("inference", "DIFF ... INTO PATCH")
    if a.vindex.dtype != b.vindex.dtype:
        raise PatchError(
            f"{a.name} stores {a.vindex.dtype} and {b.name} {b.vindex.dtype}: a patch cannot carry the difference "
            "exactly; extract one of them again with the other's --dtype"
        )
    others = tensors_outside_ffn(a, b)
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise PatchError(
            f"{a.name} and {b.name} differ outside the FFN, in {', '.join(others[:_NAMED])}{more}; "
            "a patch holds features alone"
        )


# -- what a has and b lacks -----------------------------------------------------------------------------------


def _forgotten(a: DiffSide, b: DiffSide) -> list[Operation]:
    """Removals of the facts whose features a's overlay appended and b does not have at the same place.

    Numbers of appended features follow from the order of their facts, so everything behind the first one that differs
    goes, and comes again with what is inserted.
    """
    gone: list[Operation] = []
    for layer, rows in a.overlay.rows.items():
        different = {s.feature for s in slot_differences(a, b, [layer])}
        removing = False
        for feature, row in sorted(rows.items()):
            appended = feature >= a.vindex.n_features[layer]
            removing = removing or (appended and feature in different)
            if row.entity is not None and (removing if appended else feature in different):
                gone.append(InsertOp(layer, feature, row.entity, "", row.relation, kind="remove"))
    return gone


# -- slots ----------------------------------------------------------------------------------------------------


class _Shown:
    """What side b shows of its slots: tokens, and the facts that features carry."""

    def __init__(self, side: DiffSide) -> None:
        self.side = side
        features = side.table("features").select(["layer", "feature", "top_token", "top_token_id", "c_score"])
        self.tokens = (
            {(r["layer"], r["feature"]): r for r in features.to_pylist()} if features.num_rows else {}
        )
        self.facts = {(fact.layer, fact.feature): fact for fact in side.carried}

    def meta(self, layer: int, feature: int) -> Meta | None:
        row = self.tokens.get((layer, feature))
        if row is None or row["top_token_id"] is None:
            return None
        return Meta(row["top_token"] or "", int(row["top_token_id"]), float(row["c_score"] or 0.0))


def _operation(a: DiffSide, b: DiffSide, slot: SlotDifference, shown: _Shown) -> Operation:
    layer, feature = slot.layer, slot.feature
    vectors = {w: _vector(b, layer, feature, w) for w in stored_matrices(a, b)}
    meta = shown.meta(layer, feature)
    if slot.status == "added":
        name = f"L{layer}_F{feature}"
        shows = name if meta is None or not meta.token.strip() else meta.token
        fact = shown.facts.get((layer, feature)) or EditedFact(name, None, shows, "insert", "compose", layer)
        return InsertOp(
            layer, feature, fact.entity, fact.target, fact.relation, fact.confidence,
            vectors["gate"], vectors.get("up"), vectors["down"], meta, fact.kind, fact.templates,
        )  # fmt: skip
    changed = {w: v for w, v in vectors.items() if getattr(slot, w)}
    if set(changed) == {"down"} and not changed["down"].any():
        return DeleteOp(layer, feature)
    return UpdateOp(layer, feature, changed.get("gate"), changed.get("up"), changed.get("down"), meta)


def _vector(side: DiffSide, layer: int, feature: int, which: str) -> np.ndarray:
    """float32 [hidden] of a slot; zeros for one that the side lacks."""
    if feature >= side.weights.n_features[layer]:
        return np.zeros(side.vindex.hidden, np.float32)
    matrix: torch.Tensor = side.weights.matrix(layer, which)  # type: ignore[arg-type]
    row = matrix[:, feature] if which == "down" else matrix[feature]
    return np.array(row.float().numpy(), np.float32)


def _tokens(found: Difference) -> Iterable[tuple[int, int]]:
    for row in found.rows.to_pylist():
        if row["kind"] == "slot" and row["status"] == "changed":
            yield row["layer"], row["feature"]


# -- database facts -------------------------------------------------------------------------------------------


def _database(a: DiffSide, b: DiffSide) -> list[Operation]:
    """Deletions of the database facts that b lacks, and b's that a lacks or has otherwise."""
    left = {fact_key(f.entity, f.relation): f for f in a.knn}
    right = {fact_key(f.entity, f.relation): f for f in b.knn}
    gone = [DeleteKnnOp(f.entity, f.relation) for key, f in left.items() if key not in right]
    new = [f for key, f in right.items() if key not in left or not _same(left[key], f)]
    return [*gone, *new]


def _same(x: InsertKnnOp, y: InsertKnnOp) -> bool:
    return (x.layer, x.target, x.target_id, x.confidence) == (y.layer, y.target, y.target_id, y.confidence)


# -- the proof ------------------------------------------------------------------------------------------------


def _prove(
    a: DiffSide, b: DiffSide, operations: Sequence[Operation], only: set[tuple[int, int]] | None
) -> None:
    """Nothing; PatchError where the operations, carried out on a, leave a number of b's FFN other than it is."""
    after = a.under([*a.lists, operations])
    layers = None if only is None else sorted({layer for layer, _ in only})
    for slot in slot_differences(after, b, layers):
        left = any((slot.gate, slot.up, slot.down))
        if left and (only is None or (slot.layer, slot.feature) in only):
            raise PatchError(
                f"the patch would leave slot L{slot.layer} F{slot.feature} other than {b.name} has it; "
                "nothing was written",
                slot=(slot.layer, slot.feature),
            )
