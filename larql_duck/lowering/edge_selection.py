"""What a WHERE over EDGES means for DELETE and UPDATE, and the queries that select what they change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import sqlglot
from sqlglot import exp

from larql_duck.errors import LqlSyntaxError
from larql_duck.lowering.names import TABLES
from larql_duck.lowering.select import lower
from larql_duck.lowering.types import fail
from larql_duck.lql.literals import Sql
from larql_duck.spelling import did_you_mean

if TYPE_CHECKING:
    from larql_duck.lowering.types import Catalog
    from larql_duck.lql.statements import Delete, Update

_EDGES = TABLES["edges"]
# Columns that speak of features rather than of facts.
_SLOT_COLUMNS = frozenset({"layer", "feature", "score", "effect"})


@dataclass(frozen=True)
class EdgeCondition:
    """A WHERE as far as it can be understood without the data.

    columns are the EDGES columns that it names, lower case, under their own names. works_on says what is changed.
    everything: the features of the model are meant whether or not an edge lists them, because it names only layer and
    feature. weights: rows of source 'weights' are meant too.
    """

    columns: frozenset[str]
    works_on: Literal["facts", "slots"]
    everything: bool
    weights: bool


def edge_condition(s: Delete | Update) -> EdgeCondition:
    """The statement's WHERE, understood. SemanticError for a column that EDGES lacks."""
    columns = _columns(s, s.where, "where")
    names_weights = _names_weights(s.where)
    both = {"layer", "feature"} <= columns
    slots = bool(columns & _SLOT_COLUMNS) or names_weights
    everything = both and columns <= {"layer", "feature"}
    return EdgeCondition(columns, "slots" if slots else "facts", everything, both or names_weights)


def set_columns(s: Update) -> list[str]:
    """The columns that SET names, under their own names. SemanticError for an unknown one."""
    names = []
    for assignment in s.assignments:
        name, place = _column_name(assignment.column), f"assignments.{assignment.column.lower()}"
        if name not in _EDGES.columns:
            hint = did_you_mean(name, sorted(_EDGES.columns))
            raise fail(s, f"SET: EDGES has no column {assignment.column}{hint}", place)
        _columns(s, assignment.value, place)
        names.append(name)
    return names


# -- the queries ----------------------------------------------------------------------------------------------


def selection_sql(
    s: Delete | Update, condition: EdgeCondition, catalog: Catalog, *, weights: bool | None = None
) -> str:
    """The query of what is changed: one row a fact (entity, relation, targets, confidence, sources) or slot (layer, feature).

    set_0, set_1 ... are the lists of different values of each SET. weights: rows of source 'weights' count too; None:
    as the condition says.
    """
    assignments = s.assignments if s.kind == "Update" else ()  # type: ignore[union-attr]
    values = "".join(f", list(DISTINCT ({a.value.text})) AS set_{i}" for i, a in enumerate(assignments))
    # The condition goes before ours, in brackets: it may hold an OR.
    where = f"({s.where.text})"
    if not (condition.weights if weights is None else weights):
        where += " AND source <> 'weights'"
    if condition.everything:
        text = (
            "WITH all_features AS (SELECT layer, unnest(range(n_features))::INTEGER AS feature FROM layers)"
            f" SELECT layer, feature{values} FROM all_features AS EDGES WHERE ({s.where.text})"
            " GROUP BY layer, feature ORDER BY layer, feature"
        )
    elif condition.works_on == "slots":
        text = (
            f"SELECT layer, feature{values} FROM EDGES WHERE {where} AND feature IS NOT NULL"
            " GROUP BY layer, feature ORDER BY layer, feature"
        )
    else:
        text = (
            "SELECT entity, relation, list(DISTINCT target ORDER BY target) AS targets, max(confidence) AS confidence,"
            f" list(DISTINCT source ORDER BY source) AS sources{values} FROM EDGES WHERE {where}"
            " GROUP BY entity, relation ORDER BY entity, relation"
        )
    return lower(s, Sql(text, text), catalog).sql


def other_facts_sql(
    s: Delete | Update, condition: EdgeCondition, catalog: Catalog, slots: Iterable[tuple[int, int]]
) -> str:
    """The query of the facts that use these slots and that the condition does not select (all, where it names none):
    layer, feature, entity, relation, target."""
    matched = "false"
    if not condition.columns <= {"layer", "feature"}:
        matched = f"coalesce(({s.where.text}), false)"
    values = ", ".join(f"({layer:d}, {feature:d})" for layer, feature in slots)
    text = (
        "SELECT layer, feature, entity, relation, target FROM EDGES"
        f" WHERE source <> 'weights' AND (layer, feature) IN (VALUES {values}) AND NOT {matched}"
        " ORDER BY entity, relation, target"
    )
    return lower(s, Sql(text, text), catalog).sql


# -- what it names --------------------------------------------------------------------------------------------


def _column_name(name: str) -> str:
    lowered = name.lower()
    return _EDGES.aliases.get(lowered, lowered)


def _columns(s: Delete | Update, part: Sql, field: str) -> frozenset[str]:
    """The EDGES columns that a condition or value names outside of its subqueries."""
    try:
        tree = part.tree
    except LqlSyntaxError:
        # DuckDB knows a form that sqlglot does not: its own names are found among the words.
        words = {_column_name(t.text) for t in sqlglot.tokenize(part.text, read="duckdb")}
        return frozenset(words & set(_EDGES.columns))
    names: set[str] = set()
    parameters = {str(name.name).lower() for node in tree.find_all(exp.Lambda) for name in node.expressions}
    for column in tree.find_all(exp.Column):
        if column.find_ancestor(exp.Select) is not None or column.name.lower() in parameters:
            continue
        name = _column_name(column.name)
        if name not in _EDGES.columns:
            raise fail(
                s,
                f"EDGES has no column {column.name}{did_you_mean(column.name, sorted(_EDGES.columns))}",
                field,
            )
        names.add(name)
    return frozenset(names)


def _names_weights(part: Sql) -> bool:
    """Whether a condition asks for `source = 'weights'`, alone or in a list."""
    try:
        tree = part.tree
    except LqlSyntaxError:
        return False
    for node in tree.find_all(exp.EQ, exp.In):
        if node.find_ancestor(exp.Not) is not None:
            continue
        if isinstance(node, exp.In):
            if _is_source(node.this) and any(map(_is_weights, node.expressions)):
                return True
        elif (_is_source(node.this) and _is_weights(node.expression)) or (
            _is_source(node.expression) and _is_weights(node.this)
        ):
            return True
    return False


def _is_source(node: Any) -> bool:
    return isinstance(node, exp.Column) and node.name.lower() == "source"


def _is_weights(node: Any) -> bool:
    return isinstance(node, exp.Literal) and node.is_string and node.name == "weights"
