"""DELETE and UPDATE: facts by new features, features by their down columns, database facts as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from larql_duck.lowering.checks import check_count, fail
from larql_duck.lowering.types import Operation

if TYPE_CHECKING:
    from larql_duck.editing.edge_selection import Condition, EdgeSelection
    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.patches.operations import Operation as Edit
    from larql_duck.patches.overlay import EditedFact
    from larql_duck.result import Result
    from larql_duck.session import Session

_FACTS = ("entity", "relation", "target", "new_target", "confidence", "source", "done")
_SLOTS = ("layer", "feature", "token", "new_token", "down_norm", "n_facts", "facts")


def delete(s: st.Delete, facts: Facts) -> Operation:
    """DELETE FROM EDGES WHERE ...: facts that the model is to lose, or features that are to write nothing."""
    from larql_duck.editing.edge_selection import condition

    check_count(s, s.limit, "LIMIT", "limit", low=1)
    found = condition(s)
    return Operation(lambda session: _delete(session, s, found), s)


def update(s: st.Update, facts: Facts) -> Operation:
    """UPDATE EDGES SET ... WHERE ...: facts that get another object, or features that write another token."""
    from larql_duck.editing.edge_selection import condition, set_columns

    check_count(s, s.limit, "LIMIT", "limit", low=1)
    found = condition(s)
    allowed = ("target",) if found.works_on == "slots" else ("target", "confidence")
    for name, assignment in zip(set_columns(s), s.assignments, strict=True):
        if name not in allowed:
            what = "a feature, SET can change target alone"
            if found.works_on == "facts":
                what = "a fact, SET can change target and, of one that was inserted, confidence"
            raise fail(s, f"{name} is measured: of {what}", f"assignments.{assignment.column.lower()}")
    return Operation(lambda session: _update(session, s, found), s)


def _delete(session: Session, s: st.Delete, found: Condition) -> Result:
    from larql_duck.editing.edge_selection import select_edges

    picked, notices = select_edges(session, s, found)
    if found.works_on == "slots":
        return _slots(session, s, picked, notices)
    if s.dry_run or not picked:
        return _facts_result(session, picked, notices, "")
    database = [p for p in picked if _mode(session, p) == "knn"]
    others = [p for p in picked if _mode(session, p) != "knn"]
    with session.edits.transaction():
        if database:
            session.edits.add([_forget(p) for p in database])
        if not others:
            return _facts_result(session, picked, [*notices, *session.edited.notices], "deleted")
        from larql_duck.editing.inserting import delete_facts

        result: Result = delete_facts(session, [(str(p.entity), str(p.relation)) for p in others])
    result.notices[:0] = notices
    if database:
        result.notices.append(f"{len(database)} database facts were deleted")
    return result


def _update(session: Session, s: st.Update, found: Condition) -> Result:
    from larql_duck.editing.edge_selection import select_edges, text_value

    picked, notices = select_edges(session, s, found)
    if found.works_on == "slots":
        return _slots(session, s, picked, notices)
    for p in picked:
        if "target" in p.values:
            text_value(s, p.values["target"], "target")
        if "confidence" in p.values:
            _confidence(session, s, p)
    if s.dry_run or not picked:
        return _facts_result(session, picked, notices, "")
    database = [p for p in picked if _mode(session, p) == "knn"]
    others = [p for p in picked if _mode(session, p) != "knn"]
    result: Result | None = None
    with session.edits.transaction():
        if database:
            session.edits.add([_changed_knn(session, p) for p in database])
        by_target: dict[str, list[tuple[str, str]]] = {}
        for p in others:
            if "target" in p.values:
                pair = (str(p.entity), str(p.relation))
                by_target.setdefault(str(p.values["target"]).strip(), []).append(pair)
        for target, pairs in by_target.items():
            from larql_duck.editing.inserting import update_facts

            part: Result = update_facts(session, pairs, target)
            result = part if result is None else _joined(result, part)
        confident = [p for p in others if "confidence" in p.values]
        if confident:
            session.edits.add(_confident(session, confident))
    if result is None:
        return _facts_result(session, picked, [*notices, *session.edited.notices], "updated")
    result.notices[:0] = notices
    if database:
        result.notices.append(f"{len(database)} database facts were updated")
    return result


def _joined(first: Result, second: Result) -> Result:
    import pyarrow as pa

    from larql_duck.result import Result

    table = pa.concat_tables([first.arrow(), second.arrow()], promote_options="default")
    return Result(table, notices=[*first.notices, *second.notices])


# -- facts ----------------------------------------------------------------------------------------------------


def _fact(session: Session, p: EdgeSelection) -> EditedFact | None:
    found: EditedFact | None = session.overlay.fact(str(p.entity), p.relation)
    return found


def _mode(session: Session, p: EdgeSelection) -> str | None:
    fact = _fact(session, p)
    return None if fact is None else fact.mode


def _forget(p: EdgeSelection) -> Edit:
    from larql_duck.patches.operations import DeleteKnnOp

    return DeleteKnnOp(str(p.entity), p.relation)


def _confidence(session: Session, s: st.Update, p: EdgeSelection) -> None:
    value = p.values["confidence"]
    if not isinstance(value, int | float):
        raise fail(s, f"confidence must be a number, not {value!r}", "assignments.confidence")
    if not 0 <= float(value) <= 1:
        raise fail(s, f"confidence {value} is out of range: it must be from 0 to 1", "assignments.confidence")
    if "target" not in p.values and _fact(session, p) is None:
        raise fail(
            s,
            f"the confidence of {p.entity} {p.relation} is measured: it can be set of inserted facts only "
            "(SET target makes it one)",
            "assignments.confidence",
        )


def _changed_knn(session: Session, p: EdgeSelection) -> Edit:
    """The database fact with another target or confidence, under the same key."""
    from larql_duck.models.tokenizer import load_tokenizer
    from larql_duck.patches.operations import InsertKnnOp

    fact = _fact(session, p)
    assert fact is not None and fact.key is not None
    target, target_id = fact.target, fact.target_id or 0
    if "target" in p.values:
        target = str(p.values["target"]).strip()
        target_id = next(iter(load_tokenizer(session.need()).entity_ids(target)), 0)
    confidence = p.values.get("confidence", 1.0 if fact.confidence is None else fact.confidence)
    return InsertKnnOp(
        fact.layer, fact.entity, fact.relation or "", target, target_id, fact.key, float(confidence), fact.templates
    )  # fmt: skip


def _confident(session: Session, picked: Sequence[EdgeSelection]) -> list[Edit]:
    """Inserted facts again, with other confidences and the same vectors."""
    out: list[Edit] = []
    counts: dict[int, int] = {}
    for p in picked:
        fact = _fact(session, p)
        assert fact is not None
        out.append(_again(session, fact, counts, confidence=float(p.values["confidence"])))
    return out


def _again(session: Session, fact: EditedFact, counts: dict[int, int], **changes: Any) -> Edit:
    """The operation that inserts a fact as it stands, with some of its fields changed."""
    from larql_duck.patches.operations import InsertOp

    overlay = session.overlay
    if fact.mode == "fold" or fact.feature is None:
        values: dict[str, Any] = {"feature": overlay.n_base[fact.layer], "kind": "fold"}
    else:
        row = overlay.rows[fact.layer][fact.feature]
        values = {"gate": row.gate, "up": row.up, "down": row.down, "meta": row.meta, "kind": fact.kind}
        values["feature"] = fact.feature
        if fact.feature >= overlay.n_base[fact.layer]:
            n = counts.get(fact.layer, 0)
            counts[fact.layer] = n + 1
            values["feature"] = session.edits.next_feature(fact.layer, n)
    values |= {"target": fact.target, "confidence": fact.confidence} | changes
    return InsertOp(
        layer=fact.layer, entity=fact.entity, relation=fact.relation, templates=fact.templates, **values
    )


def _facts_result(
    session: Session, picked: Sequence[EdgeSelection], notices: Sequence[str], done: str
) -> Result:
    import pyarrow as pa

    from larql_duck.result import Result

    columns: dict[str, list[Any]] = {name: [] for name in _FACTS}
    for p in picked:
        row = (
            p.entity,
            p.relation,
            ", ".join(p.targets),
            p.values.get("target") if p.values else None,
            (p.values.get("confidence") if p.values else None) or p.confidence,
            ", ".join(p.sources),
            done or "would be changed",
        )
        for name, value in zip(_FACTS, row, strict=True):
            columns[name].append(value)
    kinds = [pa.float64() if name == "confidence" else pa.string() for name in _FACTS]
    arrays = [pa.array(values, kind) for values, kind in zip(columns.values(), kinds, strict=True)]
    return Result(pa.Table.from_arrays(arrays, names=list(_FACTS)), notices=list(notices))


# -- features -------------------------------------------------------------------------------------------------


def _slots(
    session: Session, s: st.Delete | st.Update, picked: Sequence[EdgeSelection], notices: Sequence[str]
) -> Result:
    """Slots deleted, or given another token; one row each, with the facts that use it beside those meant."""
    from larql_duck.editing.edge_selection import text_value
    from larql_duck.editing.feature_edits import SlotEdits

    work = SlotEdits(session)
    target = s.kind == "Update"
    changes = [
        work.retarget(p.layer, p.feature, text_value(s, p.values["target"], "target"))  # type: ignore[arg-type, arg-type]
        if target
        else work.delete(p.layer, p.feature)  # type: ignore[arg-type]
        for p in picked
    ]
    remarks = [*notices, *dict.fromkeys(n for c in changes for n in c.notices)]
    if changes and not s.dry_run:
        session.edits.add([c.operation for c in changes])
        remarks += session.edited.notices
    import pyarrow as pa

    from larql_duck.result import Result

    rows = [
        {
            "layer": p.layer,
            "feature": p.feature,
            "token": c.token,
            "new_token": c.new_token,
            "down_norm": c.down_norm,
            "n_facts": len(p.others),
            "facts": [f"{entity} {relation} {answer}" for entity, relation, answer in p.others],
        }
        for p, c in zip(picked, changes, strict=True)
    ]
    text = pa.string()
    kinds = (pa.int32(), pa.int32(), text, text, pa.float32(), pa.int32(), pa.list_(text))
    schema = pa.schema(list(zip(_SLOTS, kinds, strict=True)))
    return Result(pa.Table.from_pylist(rows, schema=schema), notices=remarks)
