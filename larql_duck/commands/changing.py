"""DELETE and UPDATE: facts by new features, features by their down columns, database facts as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa

from larql_duck.commands.rows import FACTS, FLOAT, INT, TEXT, appended, result_of
from larql_duck.editing.feature_edits import SlotEdits
from larql_duck.editing.inserting import UpdatedFact, delete_facts, update_facts
from larql_duck.lowering.edge_selection import EdgeCondition, other_facts_sql, selection_sql, set_columns
from larql_duck.lowering.types import Request, fail
from larql_duck.lql.statements import Delete, Update
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.patches.operations import DeleteKnnOp, InsertKnnOp, InsertOp, Operation
from larql_duck.patches.overlay import EditedFact
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.session.empty_results import why_empty_sql

MOST = 1000
"""Facts or features that one statement changes at most, unless it has a LIMIT."""

_FACTS = {
    "entity": TEXT, "relation": TEXT, "target": TEXT, "new_target": TEXT, "confidence": FLOAT, "source": TEXT,
    "done": TEXT,
}  # fmt: skip
_SLOTS = {
    "layer": INT, "feature": INT, "token": TEXT, "new_token": TEXT, "down_norm": pa.float32(), "n_facts": INT,
    "facts": pa.list_(TEXT),
}  # fmt: skip


@dataclass(frozen=True)
class EdgeSelection:
    """One fact (entity, relation; targets, confidence and sources over its rows) or one slot (layer, feature).

    values are those of the SET clause, by column; others (slots only) are facts that use the slot beside those the WHERE
    selects, as (entity, relation, target).
    """

    entity: str = ""
    relation: str | None = None
    targets: tuple[str, ...] = ()
    confidence: float | None = None
    sources: tuple[str, ...] = ()
    layer: int = -1
    feature: int = -1
    values: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[tuple[str, str, str], ...] = ()

    @property
    def pair(self) -> tuple[str, str]:
        """Entity and relation."""
        return self.entity, str(self.relation)


def delete(session: Session, request: Request) -> Result:
    """DELETE FROM EDGES WHERE ...: facts that the model is to lose, or features that are to write nothing."""
    s: Delete = request.statement
    condition: EdgeCondition = request.arguments["condition"]
    selected, notices = select_edges(session, s, condition)
    if condition.works_on == "slots":
        return _change_slots(session, s, selected, notices)
    if s.dry_run or not selected:
        return _facts_result(selected, notices, "would be deleted")
    database, others = _by_home(session, selected)
    deletions = [DeleteKnnOp(e.entity, e.relation) for e in database]
    if not others:
        session.patches.append(deletions)
        return _facts_result(selected, notices, "deleted")
    edits = delete_facts(session.workspace, [e.pair for e in others])
    result = appended(session.patches, edits, FACTS, *deletions)
    result.notices[:0] = notices
    if database:
        result.notices.append(f"{len(database)} database facts were deleted")
    return result


def update(session: Session, request: Request) -> Result:
    """UPDATE EDGES SET ... WHERE ...: facts that get another object, or features that write another token."""
    s: Update = request.statement
    condition: EdgeCondition = request.arguments["condition"]
    selected, notices = select_edges(session, s, condition)
    if condition.works_on == "slots":
        return _change_slots(session, s, selected, notices)
    for edge in selected:
        if "target" in edge.values:
            _check_target(s, edge)
        if "confidence" in edge.values:
            _check_confidence(session, s, edge)
    if s.dry_run or not selected:
        return _facts_result(selected, notices, "would be updated")
    database, others = _by_home(session, selected)
    changed: list[Operation] = [_changed_knn(session, e) for e in database]
    retargeted = [e for e in others if "target" in e.values]
    changed += _confident(session, [e for e in others if "target" not in e.values])
    if not retargeted:
        session.patches.append(changed)
        return _facts_result(selected, notices, "updated")
    edits = update_facts(
        session.workspace,
        [UpdatedFact(*e.pair, e.values["target"], e.values.get("confidence")) for e in retargeted],
    )
    result = appended(session.patches, edits, FACTS, *changed)
    result.notices[:0] = notices
    if database:
        result.notices.append(f"{len(database)} database facts were updated")
    return result


# -- what is selected -----------------------------------------------------------------------------------------


def select_edges(
    session: Session, s: Delete | Update, condition: EdgeCondition
) -> tuple[list[EdgeSelection], list[str]]:
    """What the statement changes, and notices; facts by entity and relation, slots by layer and feature.

    SemanticError above MOST without a LIMIT, and where SET has several values for one of them.
    """
    rows = _rows(session, selection_sql(s, condition, session.catalog))
    what = "facts" if condition.works_on == "facts" else "features"
    if len(rows) > MOST and s.limit is None:
        raise fail(
            s,
            f"the condition selects {len(rows):,} {what}, more than {MOST:,}: narrow it, "
            "or say with LIMIT how many are meant",
            "where",
        )
    if not rows:
        return [], [_nothing(session, s, condition, what)]
    sets = set_columns(s) if isinstance(s, Update) else []
    selected = [_selection(s, row, sets) for row in rows[: s.limit]]
    if condition.works_on == "slots" and selected:
        selected = _with_others(session, s, condition, selected)
    return selected, []


def _rows(session: Session, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = session.workspace.query(sql).arrow().to_pylist()
    return rows


def _nothing(session: Session, s: Delete | Update, condition: EdgeCondition, what: str) -> str:
    if not condition.weights and not condition.everything:
        more = len(_rows(session, selection_sql(s, condition, session.catalog, weights=True)))
        if more:
            return (
                f"no {what} match, but {more:,} of rows that stand for weights do: "
                "add source = 'weights', or name layer and feature, to change their features"
            )
    sql = selection_sql(s, condition, session.catalog)
    unknown = why_empty_sql(sql, session.catalog, lambda probe, _: session.workspace.query(probe).rows())
    return "; ".join([f"no {what} match: nothing is changed", *unknown])


def _selection(s: Delete | Update, row: Mapping[str, Any], sets: Sequence[str]) -> EdgeSelection:
    values = {}
    for i, name in enumerate(sets):
        several = list(row[f"set_{i}"] or [None])
        if len(several) > 1:
            which = f"layer {row['layer']}, feature {row['feature']}" if "layer" in row else ""
            which = which or f"{row['entity']} {row['relation']}"
            raise fail(
                s, f"SET {name} has {len(several)} values for {which}: write one value", f"assignments.{name}"
            )
        # DuckDB reads 0.5 as a decimal number.
        values[name] = float(several[0]) if isinstance(several[0], Decimal) else several[0]
    if "layer" in row:
        return EdgeSelection(layer=row["layer"], feature=row["feature"], values=values)
    return EdgeSelection(
        str(row["entity"]),
        row["relation"],
        tuple(row["targets"]),
        row["confidence"],
        tuple(row["sources"]),
        values=values,
    )


def _with_others(
    session: Session, s: Delete | Update, condition: EdgeCondition, selected: Sequence[EdgeSelection]
) -> list[EdgeSelection]:
    """The slots with the facts that use them and that the condition does not select (all, where it names none)."""
    slots = [(e.layer, e.feature) for e in selected]
    by_slot: dict[tuple[int, int], list[tuple[str, str, str]]] = {}
    for r in _rows(session, other_facts_sql(s, condition, session.catalog, slots)):
        by_slot.setdefault((r["layer"], r["feature"]), []).append((r["entity"], r["relation"], r["target"]))
    return [replace(e, others=tuple(by_slot.get((e.layer, e.feature), ()))) for e in selected]


# -- facts ----------------------------------------------------------------------------------------------------


def _by_home(
    session: Session, selected: Sequence[EdgeSelection]
) -> tuple[list[EdgeSelection], list[EdgeSelection]]:
    """The facts that are in the database alone, and those that the model knows."""
    database: list[EdgeSelection] = []
    others: list[EdgeSelection] = []
    for edge in selected:
        fact = _edited(session, edge)
        (database if fact is not None and fact.mode == "knn" else others).append(edge)
    return database, others


def _edited(session: Session, edge: EdgeSelection) -> EditedFact | None:
    """The fact as the session's edits have it; None for one of the model's own."""
    return session.patches.overlay.fact(edge.entity, edge.relation)


def _check_target(s: Update, edge: EdgeSelection) -> str:
    """The SET value of target without blanks around it. SemanticError for one that is no text."""
    value = edge.values["target"]
    if not isinstance(value, str) or not value.strip():
        raise fail(s, f"target must be a text, not {value!r}", "assignments.target")
    return value.strip()


def _check_confidence(session: Session, s: Update, edge: EdgeSelection) -> None:
    value = edge.values["confidence"]
    if not isinstance(value, int | float):
        raise fail(s, f"confidence must be a number, not {value!r}", "assignments.confidence")
    if not 0 <= float(value) <= 1:
        raise fail(s, f"confidence {value} is out of range: it must be from 0 to 1", "assignments.confidence")
    if "target" not in edge.values and _edited(session, edge) is None:
        raise fail(
            s,
            f"the confidence of {edge.entity} {edge.relation} is measured: it can be set of inserted facts only "
            "(SET target makes it one)",
            "assignments.confidence",
        )


def _changed_knn(session: Session, edge: EdgeSelection) -> Operation:
    """The database fact with another target or confidence, under the same key."""
    fact = _edited(session, edge)
    assert fact is not None and fact.key is not None
    target, target_id = fact.target, fact.target_id or 0
    if "target" in edge.values:
        target = edge.values["target"].strip()
        target_id = next(iter(load_tokenizer(session.workspace.vindex).entity_ids(target)), 0)
    confidence = edge.values.get("confidence", 1.0 if fact.confidence is None else fact.confidence)
    return InsertKnnOp(
        fact.layer, fact.entity, fact.relation or "", target, target_id, fact.key, float(confidence), fact.templates
    )  # fmt: skip


def _confident(session: Session, edges: Sequence[EdgeSelection]) -> list[Operation]:
    """Inserted facts again, with other confidences and the same vectors."""
    edits = session.patches
    overlay = edits.overlay
    operations: list[Operation] = []
    for edge in edges:
        fact = _edited(session, edge)
        assert fact is not None
        if fact.mode == "fold" or fact.feature is None:
            values: dict[str, Any] = {"feature": overlay.n_base[fact.layer], "kind": "fold"}
        else:
            row = overlay.rows[fact.layer][fact.feature]
            values = {"gate": row.gate, "up": row.up, "down": row.down, "meta": row.meta, "kind": fact.kind}
            values["feature"] = fact.feature
            if fact.feature >= overlay.n_base[fact.layer]:
                values["feature"] = edits.next_feature(fact.layer, operations)
        operations.append(
            InsertOp(
                layer=fact.layer,
                entity=fact.entity,
                target=fact.target,
                relation=fact.relation,
                templates=fact.templates,
                confidence=float(edge.values["confidence"]),
                **values,
            )
        )
    return operations


def _facts_result(edges: Sequence[EdgeSelection], notices: Sequence[str], done: str) -> Result:
    rows = [
        (
            e.entity,
            e.relation,
            ", ".join(e.targets),
            e.values.get("target"),
            e.values.get("confidence", e.confidence),
            ", ".join(e.sources),
            done,
        )
        for e in edges
    ]
    return result_of(_FACTS, rows, notices)


# -- features -------------------------------------------------------------------------------------------------


def _change_slots(
    session: Session, s: Delete | Update, selected: Sequence[EdgeSelection], notices: Sequence[str]
) -> Result:
    """Slots deleted, or given another token; one row each, with the facts that use it beside those meant."""
    work = SlotEdits(session.workspace)
    changes = [
        work.retarget(e.layer, e.feature, _check_target(s, e))
        if isinstance(s, Update)
        else work.delete(e.layer, e.feature)
        for e in selected
    ]
    if s.dry_run:
        done = "updated" if isinstance(s, Update) else "deleted"
        notices = [*notices, f"a dry run: {len(changes)} feature{'s' * (len(changes) != 1)} would be {done}"]
    elif changes:
        session.patches.append([c.operation for c in changes])
    rows = [
        (
            e.layer,
            e.feature,
            c.token,
            c.new_token,
            c.down_norm,
            len(e.others),
            [f"{entity} {relation} {answer}" for entity, relation, answer in e.others],
        )
        for e, c in zip(selected, changes, strict=True)
    ]
    return result_of(_SLOTS, rows, [*notices, *dict.fromkeys(n for c in changes for n in c.notices)])
