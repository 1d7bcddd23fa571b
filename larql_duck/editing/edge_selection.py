"""Which facts or features a WHERE over EDGES selects for DELETE and UPDATE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from larql_duck.errors import LqlSyntaxError
from larql_duck.lowering.checks import did_you_mean, fail
from larql_duck.lowering.names import TABLES

if TYPE_CHECKING:
    from sqlglot import exp

    from larql_duck.lql.statements import Delete, Sql, Update
    from larql_duck.session import Session

MOST = 1000
"""Facts or features that one statement changes at most, unless it has a LIMIT."""

_EDGES = TABLES["edges"]
# Columns that speak of features rather than of facts.
_SLOT_COLUMNS = frozenset({"layer", "feature", "score", "effect"})


@dataclass(frozen=True)
class Condition:
    """A WHERE as far as it can be understood without the data.

    columns are the EDGES columns that it names, lower case, under their own names. works_on says what is changed.
    everything: the features of the model are meant whether or not an edge lists them, because it names only layer and
    feature. weights: rows of source 'weights' are meant too.
    """

    columns: frozenset[str]
    works_on: Literal["facts", "slots"]
    everything: bool
    weights: bool


@dataclass(frozen=True)
class EdgeSelection:
    """One fact (entity, relation; targets, confidence and sources over its rows) or one slot (layer, feature).

    values are those of the SET clause, by column; others (slots only) are facts that use the slot beside those the WHERE
    selects, as (entity, relation, target).
    """

    entity: str | None = None
    relation: str | None = None
    targets: tuple[str, ...] = ()
    confidence: float | None = None
    sources: tuple[str, ...] = ()
    layer: int | None = None
    feature: int | None = None
    values: Mapping[str, Any] = ()  # type: ignore[assignment]
    others: tuple[tuple[str, str, str], ...] = ()


def condition(s: Delete | Update) -> Condition:
    """The statement's WHERE, understood. SemanticError for a column that EDGES lacks."""
    columns = _columns(s, s.where, "where")
    weights_said = _says_weights(s.where)
    both = {"layer", "feature"} <= columns
    slots = bool(columns & _SLOT_COLUMNS) or weights_said
    everything = both and columns <= {"layer", "feature"}
    return Condition(columns, "slots" if slots else "facts", everything, both or weights_said)


def set_columns(s: Update) -> list[str]:
    """The columns that SET names, under their own names. SemanticError for an unknown one."""
    out = []
    for assignment in s.assignments:
        name = _own(assignment.column)
        if name not in _EDGES.columns:
            raise fail(
                s,
                f"SET: EDGES has no column {assignment.column}{did_you_mean(name, _EDGES.columns)}",
                f"assignments.{assignment.column.lower()}",
            )
        _columns(s, assignment.value, f"assignments.{assignment.column.lower()}")
        out.append(name)
    return out


def select_edges(
    session: Session, s: Delete | Update, found: Condition
) -> tuple[list[EdgeSelection], list[str]]:
    """What the statement changes, and notices; facts by entity and relation, slots by layer and feature.

    SemanticError above MOST without a LIMIT, and where SET has several values for one of them.
    """
    sets: dict[str, Sql] = {}
    for name, assignment in zip(set_columns(s), s.assignments, strict=True) if s.kind == "Update" else ():  # type: ignore[union-attr, arg-type]
        sets[name] = assignment.value
    rows = _run(session, s, _selection(s, found, sets, weights=found.weights))
    if len(rows) > MOST and s.limit is None:
        what = "facts" if found.works_on == "facts" else "features"
        raise fail(
            s,
            f"the condition selects {len(rows):,} {what}, more than {MOST:,}: narrow it, "
            "or say with LIMIT how many are meant",
            "where",
        )
    notices = []
    if not rows:
        notices.append(_nothing(session, s, found, sets))
    rows = rows[: s.limit] if s.limit is not None else rows
    picked = [_picked(s, row, list(sets)) for row in rows]
    if found.works_on == "slots" and picked:
        picked = _with_others(session, s, found, picked)
    return picked, notices


# -- what it names --------------------------------------------------------------------------------------------


def _own(name: str) -> str:
    lowered = name.lower()
    return _EDGES.aliases.get(lowered, lowered)


def _columns(s: Delete | Update, part: Sql, field: str) -> frozenset[str]:
    """The EDGES columns that a condition or value names outside of its subqueries."""
    from sqlglot import exp

    try:
        tree = part.tree
    except LqlSyntaxError:
        # DuckDB knows a form that sqlglot does not: its own names are found among the words.
        import sqlglot

        words = {_own(t.text) for t in sqlglot.tokenize(part.text, read="duckdb")}
        return frozenset(words & set(_EDGES.columns))
    names: set[str] = set()
    parameters = {str(name.name).lower() for node in tree.find_all(exp.Lambda) for name in node.expressions}
    for column in tree.find_all(exp.Column):
        if column.find_ancestor(exp.Select) is not None or column.name.lower() in parameters:
            continue
        name = _own(column.name)
        if name not in _EDGES.columns:
            raise fail(
                s, f"EDGES has no column {column.name}{did_you_mean(column.name, _EDGES.columns)}", field
            )
        names.add(name)
    return frozenset(names)


def _says_weights(part: Sql) -> bool:
    """Whether a condition asks for `source = 'weights'`, alone or in a list."""
    from sqlglot import exp

    try:
        tree = part.tree
    except LqlSyntaxError:
        return False

    def negated(node: exp.Expr) -> bool:
        return node.find_ancestor(exp.Not) is not None

    for node in tree.find_all(exp.EQ):
        sides = (node.this, node.expression)
        if any(_is_source(a) and _is_weights(b) for a, b in (sides, sides[::-1])) and not negated(node):
            return True
    return any(
        _is_source(node.this) and any(map(_is_weights, node.expressions)) and not negated(node)
        for node in tree.find_all(exp.In)
    )


def _is_source(node: Any) -> bool:
    from sqlglot import exp

    return isinstance(node, exp.Column) and node.name.lower() == "source"


def _is_weights(node: Any) -> bool:
    from sqlglot import exp

    return isinstance(node, exp.Literal) and node.is_string and node.name == "weights"


# -- what it selects ------------------------------------------------------------------------------------------


def _selection(s: Delete | Update, found: Condition, sets: Mapping[str, Sql], *, weights: bool) -> str:
    """The query of what is changed, over LQL's table EDGES."""
    values = "".join(f", list(DISTINCT ({value.text})) AS set_{i}" for i, value in enumerate(sets.values()))
    # The condition goes before ours, in brackets: it may hold an OR.
    where = f"({s.where.text})" + ("" if weights else " AND source <> 'weights'")
    if found.everything:
        return (
            "WITH all_features AS (SELECT layer, unnest(range(n_features))::INTEGER AS feature FROM layers)"
            f" SELECT layer, feature{values} FROM all_features AS EDGES WHERE ({s.where.text})"
            " GROUP BY layer, feature ORDER BY layer, feature"
        )
    if found.works_on == "slots":
        return (
            f"SELECT layer, feature{values} FROM EDGES WHERE {where} AND feature IS NOT NULL"
            " GROUP BY layer, feature ORDER BY layer, feature"
        )
    return (
        "SELECT entity, relation, list(DISTINCT target ORDER BY target) AS targets, max(confidence) AS confidence,"
        f" list(DISTINCT source ORDER BY source) AS sources{values} FROM EDGES WHERE {where}"
        " GROUP BY entity, relation ORDER BY entity, relation"
    )


def _run(session: Session, s: Delete | Update, text: str) -> list[dict[str, Any]]:
    from larql_duck.lowering.select import lower
    from larql_duck.lql.statements import Sql

    query = lower(s, Sql(text, text), session.facts)
    rows: list[dict[str, Any]] = session.run_sql(query.sql).arrow().to_pylist()
    return rows


def _nothing(session: Session, s: Delete | Update, found: Condition, sets: Mapping[str, Sql]) -> str:
    what = "facts" if found.works_on == "facts" else "features"
    if not found.weights and not found.everything:
        more = len(_run(session, s, _selection(s, found, {}, weights=True)))
        if more:
            return (
                f"no {what} match, but {more:,} of rows that stand for weights do: "
                "add source = 'weights', or name layer and feature, to change their features"
            )
    return f"no {what} match: nothing is changed"


def _picked(s: Delete | Update, row: Mapping[str, Any], names: Sequence[str]) -> EdgeSelection:
    values = {}
    for i, name in enumerate(names):
        several = list(row[f"set_{i}"] or [None])
        if len(several) > 1:
            shown = f"{row.get('entity')} {row.get('relation')}" if "entity" in row else _slot(row)
            raise fail(
                s, f"SET {name} has {len(several)} values for {shown}: write one value", f"assignments.{name}"
            )
        # DuckDB reads 0.5 as a decimal number.
        values[name] = float(several[0]) if isinstance(several[0], Decimal) else several[0]
    if "entity" in row:
        return EdgeSelection(
            row["entity"],
            row["relation"],
            tuple(row["targets"]),
            row["confidence"],
            tuple(row["sources"]),
            values=values,
        )
    return EdgeSelection(layer=row["layer"], feature=row["feature"], values=values)


def _slot(row: Mapping[str, Any]) -> str:
    return f"layer {row['layer']}, feature {row['feature']}"


def _with_others(
    session: Session, s: Delete | Update, found: Condition, picked: Iterable[EdgeSelection]
) -> list[EdgeSelection]:
    """The slots with the facts that use them and that the condition does not select (all, where it names none)."""
    import dataclasses

    picked = list(picked)
    only_slots = found.columns <= {"layer", "feature"}
    matched = "false" if only_slots else f"coalesce(({s.where.text}), false)"
    slots = ", ".join(f"({p.layer:d}, {p.feature:d})" for p in picked)
    rows = _run(
        session,
        s,
        "SELECT layer, feature, entity, relation, target FROM EDGES"
        f" WHERE source <> 'weights' AND (layer, feature) IN (VALUES {slots}) AND NOT {matched}"
        " ORDER BY entity, relation, target",
    )
    by_slot: dict[tuple[int, int], list[tuple[str, str, str]]] = {}
    for r in rows:
        by_slot.setdefault((r["layer"], r["feature"]), []).append((r["entity"], r["relation"], r["target"]))
    return [
        dataclasses.replace(p, others=tuple(by_slot.get((p.layer, p.feature), ())))  # type: ignore[arg-type]
        for p in picked
    ]


def text_value(s: Update, value: Any, what: str) -> str:
    """A SET value that must be a text; SemanticError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise fail(s, f"{what} must be a text, not {value!r}", "assignments.target")
    return value.strip()
