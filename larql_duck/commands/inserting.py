"""INSERT and REBALANCE: facts that become features of the session's edits."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from larql_duck.commands.rows import BIG, FLOAT, INT, TEXT, appended
from larql_duck.editing.inserting import insert_facts
from larql_duck.editing.rebalance import rebalance as rebalance_facts
from larql_duck.errors import SemanticError
from larql_duck.knowledge.frames import as_table
from larql_duck.lowering import plan
from larql_duck.lowering.types import Request, fail
from larql_duck.lql import statements as st
from larql_duck.lql.statements import InsertRow
from larql_duck.result import Result
from larql_duck.session import Session

# Rows of one statement at most: a mistaken query is not to run for days.
MOST = 10_000

_REBALANCED = {
    "entity": TEXT, "relation": TEXT, "target": TEXT, "layer": INT, "feature": BIG, "template_p_before": FLOAT, "template_p": FLOAT,
    "scale": FLOAT, "state": TEXT,
}  # fmt: skip
# Names of a table's columns, by what they hold.
_COLUMNS = {
    "entity": ("entity", "subject"), "relation": ("relation", "relationship"), "target": ("target", "object"),
}  # fmt: skip


def insert(session: Session, request: Request) -> Result:
    """INSERT INTO EDGES ...: facts that the model is to know from now on."""
    if request.statement is None:
        request = plan(_statement(**request.arguments), session.catalog)  # type: ignore[assignment]
    s: st.Insert = request.statement
    workspace = session.workspace
    rows: list[tuple[Any, Any, Any]] = [(r.entity, r.relation, r.target) for r in s.rows]
    if request.arguments["query"] is not None:
        table = workspace.query(request.arguments["query"].sql).arrow()
        if table.num_columns != 3:
            columns = ", ".join(s.columns)
            raise fail(s, f"the query gives {table.num_columns} columns; INSERT takes {columns}", "query")
        rows = _triples(table.rename_columns(list(s.columns)))
    if len(rows) > MOST:
        raise fail(s, f"{len(rows)} facts are too many for one statement; insert at most {MOST} at a time")
    edits = insert_facts(
        workspace,
        rows,
        layer=s.layer,
        confidence=s.confidence,
        alpha=s.alpha,
        mode=s.mode,
        template=s.template,
    )
    return appended(workspace.edits, edits)


def _statement(rows: object, relation: str | None = None, **options: Any) -> st.Insert:
    """The statement that inserts what `Session.insert` was given. SemanticError for rows that are no facts."""
    if isinstance(rows, list | tuple):
        width = 3 if relation is None else 2
        bad = [row for row in rows if not isinstance(row, list | tuple) or len(row) != width]
        if bad:
            names = "entity, relation, target" if relation is None else "entity, target"
            raise SemanticError(f"{bad[0]!r} is no fact: give tuples ({names})")
        facts = [tuple(row) if relation is None else (row[0], relation, row[1]) for row in rows]
    else:
        table = as_table(rows)
        if relation is not None:
            table = table.append_column("relation", pa.array([relation] * table.num_rows, pa.string()))
        facts = _triples(table)
    bad = [fact for fact in facts if not all(isinstance(value, str) for value in fact)]
    if bad:
        raise SemanticError(f"{bad[0]!r} is no fact: entity, relation and target are texts")
    return st.Insert(rows=tuple(InsertRow(*fact) for fact in facts), **options)


def _triples(table: pa.Table) -> list[tuple[Any, Any, Any]]:
    """The rows as (entity, relation, target), in whichever order and by either name the columns stand."""
    by_name = {name.lower(): name for name in table.column_names}
    columns = []
    for name, names in _COLUMNS.items():
        column = next((by_name[n] for n in names if n in by_name), None)
        if column is None:
            known = ", ".join(table.column_names)
            raise SemanticError(
                f"no column {name} among {known}; INSERT takes entity, relation and target "
                "(or subject, relationship and object)"
            )
        columns.append(table.column(column).to_pylist())
    return list(zip(*columns, strict=True))


def rebalance(session: Session, request: Request) -> Result:
    """REBALANCE: scales the inserted features until every fact's probability lies between FLOOR and CEILING."""
    return appended(session.patches, rebalance_facts(session.workspace, **request.arguments), _REBALANCED)
