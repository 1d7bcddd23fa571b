"""INTO PATCH: the operations that turn one side into the other, proven by carrying them out."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from larql_duck.aliases import Slot
from larql_duck.diffing.compare import Difference
from larql_duck.diffing.sides import DiffSide
from larql_duck.diffing.slot_diff import (
    SlotDifference,
    incomparable,
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
    Operation,
    UpdateOp,
    fact_key,
)
from larql_duck.patches.overlay import EditedFact

_NAMED = 3


def as_patch(a: DiffSide, b: DiffSide, difference: Difference, *, whole: bool = True) -> list[Operation]:
    """The operations that, applied on a, give b's FFN and database facts; for the difference's slots alone unless whole.

    Appended features become inserts under the fact that they carry (or under their own number), changed ones updates,
    zeroed ones deletions; features that b lacks become zeros, which do the same. PatchError naming the tensors where
    a and b differ outside the FFN, where they are no versions of one model, or store other numbers (dtype, level).
    """
    _check(a, b)
    operations: list[Operation] = _forgotten(a, b) if whole else []
    start = a.under([*a.lists, operations]) if operations else a
    slots = list(slot_differences(start, b)) if operations else difference.slots
    operations += [_operation(start, b, slot) for slot in slots]
    known = {s.slot for s in slots}
    # Slots that show another token for the same vectors are in the rows, not among the slots that differ.
    listed = difference.of_kind("slot")
    listed = listed.filter(pc.equal(listed["status"], "changed"))
    for layer, feature in zip(listed["layer"].to_pylist(), listed["feature"].to_pylist(), strict=True):
        common = min(start.vindex.n_features[layer], b.weights.n_features[layer])
        meta = b.meta((layer, feature))
        if (layer, feature) not in known and feature < common and meta is not None:
            operations.append(UpdateOp(layer, feature, meta=meta))
    if whole:
        operations += _database(a, b)
    _prove(a, b, operations, None if whole else known)
    return operations


def _check(a: DiffSide, b: DiffSide) -> None:
    if reason := incomparable(a, b):
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
    if others := tensors_outside_ffn(a, b):
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


def _operation(a: DiffSide, b: DiffSide, difference: SlotDifference) -> Operation:
    layer, feature = slot = difference.slot
    vectors = {which: b.vector(slot, which) for which in stored_matrices(a, b)}
    meta = b.meta(slot)
    if difference.status == "added":
        name = f"L{layer}_F{feature}"
        token = name if meta is None or not meta.token.strip() else meta.token
        fact = b.carried.get(slot) or EditedFact(name, None, token, "insert", "compose", layer)
        return InsertOp(
            layer, feature, fact.entity, fact.target, fact.relation, fact.confidence,
            vectors["gate"], vectors.get("up"), vectors["down"], meta, fact.kind, fact.templates,
        )  # fmt: skip
    changed = {which: vector for which, vector in vectors.items() if getattr(difference, which)}
    if set(changed) == {"down"} and not changed["down"].any():
        return DeleteOp(layer, feature)
    return UpdateOp(layer, feature, **changed, meta=meta)


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


def _prove(a: DiffSide, b: DiffSide, operations: Sequence[Operation], only: set[Slot] | None) -> None:
    """Raise PatchError where the operations, carried out on a, leave a number of b's FFN other than it is."""
    after = a.under([*a.lists, operations])
    layers = None if only is None else sorted({layer for layer, _ in only})
    for slot in slot_differences(after, b, layers):
        if any((slot.gate, slot.up, slot.down)) and (only is None or slot.slot in only):
            raise PatchError(
                f"the patch would leave slot L{slot.layer} F{slot.feature} other than {b.name} has it; "
                "nothing was written",
                slot=slot.slot,
            )
