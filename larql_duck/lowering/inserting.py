"""INSERT and REBALANCE: facts that become features of the session's edits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from larql_duck.lowering.checks import check_count, check_layer, fail
from larql_duck.lowering.types import Operation

if TYPE_CHECKING:
    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.result import Result
    from larql_duck.session import Session

# Rows of one statement at most: a mistaken query is not to run for days.
MOST = 10_000


def insert(s: st.Insert, facts: Facts) -> Operation:
    """INSERT INTO EDGES ...: facts that the model is to know from now on."""
    check_layer(s, facts, s.layer)
    if s.confidence is not None and not 0 <= s.confidence <= 1:
        raise fail(s, f"CONFIDENCE {s.confidence:g} is out of range: it must be from 0 to 1", "confidence")
    if s.alpha is not None and not (math.isfinite(s.alpha) and s.alpha != 0):
        raise fail(s, f"ALPHA {s.alpha:g} is out of range: it must be a number other than 0", "alpha")
    if s.template is not None and s.template.count("{}") != 1:
        raise fail(s, "TEMPLATE needs {} exactly once, where the entity stands", "template")
    if s.mode == "compose" and facts.opened and not facts.has_weights:
        facts.require("inference", "INSERT ... MODE COMPOSE")
    return Operation(lambda session: _insert(session, s), s)


def _insert(session: Session, s: st.Insert) -> Result:
    from larql_duck.editing.inserting import insert as run

    rows: list[tuple[Any, Any, Any]] = [(r.entity, r.relation, r.target) for r in s.rows]
    if s.query is not None:
        rows = _selected(session, s)
    if len(rows) > MOST:
        raise fail(s, f"{len(rows)} facts are too many for one statement; insert at most {MOST} at a time")
    return run(
        session,
        rows,
        layer=s.layer,
        confidence=s.confidence,
        alpha=s.alpha,
        mode=s.mode,
        template=s.template,
    )


def _selected(session: Session, s: st.Insert) -> list[tuple[Any, Any, Any]]:
    """The query's rows as (entity, relation, target), whichever order its columns have."""
    from larql_duck.lowering.select import lower

    assert s.query is not None
    table = session.run_sql(lower(s, s.query, session.facts).sql).arrow()
    if table.num_columns != 3:
        raise fail(
            s, f"the query gives {table.num_columns} columns; INSERT takes {', '.join(s.columns)}", "query"
        )
    columns = dict(zip(s.columns, (c.to_pylist() for c in table.columns), strict=True))
    return list(zip(columns["entity"], columns["relation"], columns["target"], strict=True))


def rebalance(s: st.Rebalance, facts: Facts) -> Operation:
    """REBALANCE: scales the inserted features until every fact's probability lies between FLOOR and CEILING."""
    from larql_duck.editing.rebalance import CEILING, FLOOR, ROUNDS

    check_count(s, s.max_rounds, "MAX", "max_rounds", low=1)
    floor = FLOOR if s.floor is None else s.floor
    ceiling = CEILING if s.ceiling is None else s.ceiling
    for value, word in ((floor, "FLOOR"), (ceiling, "CEILING")):
        if not 0 <= value <= 1:
            raise fail(s, f"{word} {value:g} is out of range: it must be from 0 to 1", word.lower())
    if floor > ceiling:
        raise fail(s, f"FLOOR {floor:g} is above CEILING {ceiling:g}", "floor")
    rounds = ROUNDS if s.max_rounds is None else s.max_rounds

    def run(session: Session) -> Result:
        from larql_duck.editing.rebalance import rebalance as balance

        return balance(session, floor=floor, ceiling=ceiling, rounds=rounds)

    return Operation(run, s)
