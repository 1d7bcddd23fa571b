"""transpile: LQL text -> SQL text, with or without a vindex."""

from __future__ import annotations

from pathlib import Path

from larql_duck.commands.opening import connect
from larql_duck.lowering import transpiled
from larql_duck.lowering.dialects import translated
from larql_duck.lowering.types import EmptyCatalog, Query
from larql_duck.lql import parse_one
from larql_duck.lql.statements import Statement
from larql_duck.session import Session


def transpile(text: str, vindex: str | Path | Session | None = None, dialect: str = "duckdb") -> str:
    """The SQL of one LQL statement (or pipe), as the DuckDB CLI on model.duckdb can run it.

    Where a Python function is needed a comment in it says so. With a vindex (a path or a Session), layers, relations
    and tokens are checked against it and the basis of a walk follows from it. `dialect` 'spark', 'trino' or 'datafusion' gives
    the SQL of that engine over the tables that `larql-duck export --tables` writes. Raises LqlSyntaxError, SemanticError, and
    NotSupportedError for what the engine cannot say.
    """
    statement = parse_one(text)
    if statement.kind == "ExplainSql":
        statement = statement.statement  # type: ignore[attr-defined]
    query = _lowered(statement, vindex)
    return query.printed if dialect == "duckdb" else translated(query, dialect)


def _lowered(statement: Statement, vindex: str | Path | Session | None) -> Query:
    if vindex is None:
        return transpiled(statement, EmptyCatalog())
    if isinstance(vindex, Session):
        return transpiled(statement, vindex.catalog)
    with connect(vindex) as session:
        return transpiled(statement, session.catalog)
