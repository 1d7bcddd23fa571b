"""MERGE: what another vindex knows becomes edits of the one in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from larql_duck.databases import in_memory
from larql_duck.diffing.sides import DiffSide, OpenWorkspace, directory_side
from larql_duck.diffing.slot_diff import slot_differences, stored_matrices
from larql_duck.editing.inserting import insert_facts
from larql_duck.patches.operations import DeleteOp, FactEdits, InsertOp, Operation, UpdateOp, fact_key
from larql_duck.vindex import layout
from larql_duck.vindex.store import Vindex, file_checksum
from larql_duck.workspace import Workspace


@dataclass(frozen=True)
class MergeRow:
    """A slot or fact that the source has otherwise than the vindex in use, which is the target.

    conflict: the target says something of its own there. taken: the source's holds. operation is what makes it so,
    None for a fact that INSERT has to solve.
    """

    kind: str
    entity: str | None
    relation: str | None
    layer: int | None
    feature: int | None
    target: str | None
    source: str | None
    target_confidence: float | None
    source_confidence: float | None
    conflict: bool
    taken: bool
    operation: Operation | None = None


def merge(
    workspace: Workspace,
    source: str | Path,
    opened: OpenWorkspace,
    *,
    rule: str = "keep_source",
    dry_run: bool = False,
) -> FactEdits:
    """The edits by which the vindex in use knows what the one at `source` does; none where it is a dry run.

    A vindex of the same model gives its slots that differ from the stored ones, with the facts that they carry, and
    its database facts; of another model the facts are solved as INSERT does. The rows are one per slot or fact that
    differs: kind, entity, relation, layer, feature, what target and source say, their confidences, whether that is a
    conflict, and the action ('added', 'replaced', 'kept'; in a dry run 'would be added').
    rule, where both say something: 'keep_source', 'keep_target' or 'highest_confidence' (the target's where equal).
    """
    other = directory_side(source, opened)
    lineage = same_lineage(workspace.vindex, other.vindex)
    items = _slots(workspace, other, rule, opened) if lineage else _facts(workspace, other, rule)
    taken = [item for item in items if item.taken and not dry_run]
    operations = [item.operation for item in taken if item.operation is not None]
    facts = [(i.entity or "", i.relation or "", i.source or "") for i in taken if i.operation is None]
    solved = insert_facts(workspace, facts) if facts else FactEdits()
    would = "would be " if dry_run else ""
    rows = [
        vars(item)
        | {"action": "kept" if not item.taken else f"{would}{'replaced' if item.conflict else 'added'}"}
        for item in items
    ]
    notices = [_said(items, dry_run, other, lineage), *solved.notices]
    return FactEdits([*operations, *solved.operations], rows, notices)


def same_lineage(a: Vindex, b: Vindex) -> bool:
    """Whether both are versions of one model: equal shapes but for appended features, and the same embedding bytes."""

    shapes = [(v.family.name, v.n_layers, v.hidden, v.vocab, v.dtype) for v in (a, b)]
    return shapes[0] == shapes[1] and file_checksum(a, layout.EMBED) == file_checksum(b, layout.EMBED)


# -- versions of one model ------------------------------------------------------------------------------------


def _slots(workspace: Workspace, other: DiffSide, rule: str, opened: OpenWorkspace) -> list[MergeRow]:
    """What the source changed against the vindex in use, slot by slot, then its database facts."""

    stored_here = directory_side(workspace.vindex.path, opened)
    overlay = workspace.overlay
    which = stored_matrices(stored_here, other)
    items: list[MergeRow] = []
    inserted: list[Operation] = []
    for slot in slot_differences(stored_here, other):
        at = (slot.layer, slot.feature)
        if slot.status == "removed":
            continue
        vectors: dict[Any, Any] = {w: other.vector(at, w) for w in which}
        fact, own = other.carried.get(at), stored_here.carried.get(at)
        if fact is not None and (own is None or _key(own) != _key(fact)):
            # A feature that carries a fact is that fact's, wherever it stands.
            known = overlay.fact(fact.entity, fact.relation)
            same = known is not None and known.target.casefold() == fact.target.casefold()
            confidences = (None if known is None else known.confidence, fact.confidence)
            taken = not same and (known is None or _wins(rule, *confidences))
            number = workspace.edits.next_feature(slot.layer, inserted)
            operation = InsertOp(
                slot.layer,
                number,
                fact.entity,
                fact.target,
                fact.relation,
                fact.confidence,
                **vectors,
                meta=other.meta(at),
                kind=fact.kind if fact.kind != "scale" else "insert",
                templates=fact.templates,
            )
            if taken:
                inserted.append(operation)
            if not same:
                items.append(
                    MergeRow(
                        "fact",
                        fact.entity,
                        fact.relation,
                        *at,
                        None if known is None else known.target,
                        fact.target,
                        *confidences,
                        known is not None,
                        taken,
                        operation,
                    )
                )
            continue
        # The place of a fact that the source has not, and zeros that another layer's width asked for.
        if own is not None or (slot.status == "added" and not any(v.any() for v in vectors.values())):
            continue
        row = overlay.rows.get(slot.layer, {}).get(slot.feature)
        mine = row is not None and slot.feature < overlay.n_base[slot.layer]
        if mine and row is not None and _equal(row, vectors, stored_here, at):
            continue
        meta = other.meta(at)
        scores = (
            row.meta.score
            if mine and row is not None and row.meta is not None
            else _shown(stored_here, at)[1],
            _shown(other, at)[1],
        )
        taken = not mine or _wins(rule, *scores)
        shown = _shown(stored_here, at)[0] if not mine or row is None or row.meta is None else row.meta.token
        operation_: Operation
        if slot.feature < overlay.n_base[slot.layer]:
            changed = {w: v for w, v in vectors.items() if getattr(slot, w)}
            if set(changed) == {"down"} and not changed["down"].any():
                operation_ = DeleteOp(*at)
            else:
                operation_ = UpdateOp(*at, **changed, meta=meta)
        else:
            number = workspace.edits.next_feature(slot.layer, inserted)
            name = f"L{slot.layer}_F{slot.feature}"
            operation_ = InsertOp(
                slot.layer, number, name, _shown(other, at)[0] or name, **vectors, meta=meta
            )
            inserted.append(operation_)
        items.append(
            MergeRow("slot", None, None, *at, shown, _shown(other, at)[0], *scores, mine, taken, operation_)
        )
    return items + _database(workspace, other, rule)


def _database(workspace: Workspace, other: DiffSide, rule: str) -> list[MergeRow]:
    items = []
    for fact in other.knn:
        known = workspace.overlay.fact(fact.entity, fact.relation)
        if known is not None and known.target.casefold() == fact.target.casefold():
            continue
        confidence = None if known is None else known.confidence
        taken = known is None or _wins(rule, confidence, fact.confidence)
        items.append(
            MergeRow(
                "fact",
                fact.entity,
                fact.relation,
                fact.layer,
                None,
                None if known is None else known.target,
                fact.target,
                confidence,
                fact.confidence,
                known is not None,
                taken,
                fact,
            )
        )
    return items


def _equal(row: Any, vectors: Mapping[Any, Any], here: DiffSide, at: tuple[int, int]) -> bool:

    return all(
        np.array_equal(v, getattr(row, w) if getattr(row, w) is not None else here.vector(at, w))
        for w, v in vectors.items()
    )


def _shown(side: DiffSide, slot: tuple[int, int]) -> tuple[str | None, float | None]:
    """The promoted token that a side shows for a slot, and its score."""
    row = side.features.get(slot, {})
    return row.get("top_token"), row.get("c_score")


# -- another model --------------------------------------------------------------------------------------------

# Best object of each (subject, relation).
_BEST = """
SELECT subject, relation, object, confidence FROM {} WHERE source != 'weights'
QUALIFY row_number() OVER (
    PARTITION BY lower(trim(subject)), lower(trim(relation)) ORDER BY confidence DESC NULLS LAST, p DESC NULLS LAST, object
) = 1
ORDER BY confidence DESC NULLS LAST, p DESC NULLS LAST, subject, relation
"""


def _facts(workspace: Workspace, other: DiffSide, rule: str) -> list[MergeRow]:
    """The source's facts that the session does not show, the surest first."""

    with in_memory() as con:
        con.register("triples_there", other.table("triples"))
        theirs = con.execute(_BEST.format("triples_there")).fetchall()
    stated = {fact_key(s, r) for s, r, _, _ in theirs}
    theirs += [
        (f.entity, f.relation, f.target, f.confidence)
        for f in other.knn
        if fact_key(f.entity, f.relation) not in stated
    ]
    mine: dict[tuple[str, str], list[tuple[str, float | None]]] = {}
    shown = workspace.query(
        f"SELECT subject, relation, object, confidence FROM {workspace.schema}.triples WHERE source != 'weights' "
        "ORDER BY confidence DESC NULLS LAST, p DESC NULLS LAST, object"
    )
    for subject, relation, answer, confidence in shown.rows():
        mine.setdefault(fact_key(subject, relation), []).append((answer, confidence))
    items = []
    for subject, relation, answer, confidence in theirs:
        known = mine.get(fact_key(subject, relation), [])
        if any(a.strip().casefold() == answer.strip().casefold() for a, _ in known):
            continue
        best, sure = known[0] if known else (None, None)
        taken = not known or _wins(rule, sure, confidence)
        items.append(
            MergeRow(
                "fact", subject, relation, None, None, best, answer, sure, confidence, bool(known), taken
            )
        )
    return items


# -- rules and results ----------------------------------------------------------------------------------------


def _wins(rule: str, target: float | None, source: float | None) -> bool:
    """Whether the source's holds where both say something."""
    if rule == "highest_confidence":
        return (-1.0 if source is None else source) > (-1.0 if target is None else target)
    return rule == "keep_source"


def _key(fact: Any) -> tuple[str, str]:
    return fact_key(fact.entity, fact.relation)


def _said(items: Sequence[MergeRow], dry_run: bool, other: DiffSide, lineage: bool) -> str:
    added = sum(i.taken and not i.conflict for i in items)
    replaced = sum(i.taken and i.conflict for i in items)
    kept = sum(not i.taken for i in items)
    kind = (
        "a version of this model: slots, and the facts that they carry" if lineage else "another model: facts"
    )
    would = "would be " if dry_run else ""
    return (
        f"{other.name} is {kind}; {added} {would}added, {replaced + kept} conflicts: "
        f"{replaced} {would}replaced, {kept} kept"
    )
