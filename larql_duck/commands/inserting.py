"""INSERT and REBALANCE: facts that become features of the session's edits."""

from __future__ import annotations

from typing import Any

from larql_duck.editing.inserting import insert as insert_facts
from larql_duck.editing.rebalance import rebalance as rebalance_facts
from larql_duck.lowering.checks import fail
from larql_duck.lowering.types import Query, Request
from larql_duck.lql import statements as st
from larql_duck.result import Result
from larql_duck.session import Session

# Rows of one statement at most: a mistaken query is not to run for days.
MOST = 10_000


def insert(session: Session, request: Request) -> Result:
    """INSERT INTO EDGES ...: facts that the model is to know from now on."""
    s: st.Insert = request.statement
    rows: list[tuple[Any, Any, Any]] = [(r.entity, r.relation, r.target) for r in s.rows]
    if request.arguments["query"] is not None:
        rows = _selected(session, s, request.arguments["query"])
    if len(rows) > MOST:
        raise fail(s, f"{len(rows)} facts are too many for one statement; insert at most {MOST} at a time")
    return insert_facts(
        session.workspace,
        rows,
        layer=s.layer,
        confidence=s.confidence,
        alpha=s.alpha,
        mode=s.mode,
        template=s.template,
    )


def _selected(session: Session, s: st.Insert, query: Query) -> list[tuple[Any, Any, Any]]:
    """The query's rows as (entity, relation, target), whichever order its columns have."""
    table = session.query(query.sql).arrow()
    if table.num_columns != 3:
        raise fail(
            s, f"the query gives {table.num_columns} columns; INSERT takes {', '.join(s.columns)}", "query"
        )
    columns = dict(zip(s.columns, (c.to_pylist() for c in table.columns), strict=True))
    return list(zip(columns["entity"], columns["relation"], columns["target"], strict=True))


def rebalance(session: Session, request: Request) -> Result:
    """REBALANCE: scales the inserted features until every fact's probability lies between FLOOR and CEILING."""
    return rebalance_facts(session.workspace, **request.arguments)
