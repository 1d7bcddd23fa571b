"""transpile: LQL text -> SQL text, with or without a vindex."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.errors import SemanticError
from larql_duck.lowering import Operation, Query, pipe_sql, plan, verb_of
from larql_duck.lql import parse_one
from larql_duck.session.vindex_catalog import NoVindex

if TYPE_CHECKING:
    from larql_duck.lowering.types import Facts
    from larql_duck.session.session import Session


def translate(text: str, vindex: str | Path | Session | None, dialect: str) -> str:
    """See `larql_duck.transpile`."""
    from larql_duck.session.session import Session

    if dialect != "duckdb":
        from larql_duck.lowering.dialects import translate_select

        return translate_select(parse_one(text), dialect)
    if vindex is None:
        return _sql(text, NoVindex())
    if isinstance(vindex, Session):
        return _sql(text, vindex.facts)
    from larql_duck.session import connect

    with connect(vindex) as session:
        return _sql(text, session.facts)


def _sql(text: str, facts: Facts) -> str:
    statement = parse_one(text)
    if statement.kind == "ExplainSql":
        statement = statement.statement  # type: ignore[attr-defined]
    found: Query | Operation
    found = pipe_sql(statement, facts) if statement.kind == "Pipe" else plan(statement, facts, running=False)  # type: ignore[arg-type]
    if isinstance(found, Operation):
        raise SemanticError(f"{verb_of(statement)} is carried out by Python and has no SQL")
    return found.printed
