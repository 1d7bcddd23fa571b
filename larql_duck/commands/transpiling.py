"""transpile: LQL text -> SQL text, with or without a vindex."""

from __future__ import annotations

from pathlib import Path

from larql_duck.commands.opening import connect
from larql_duck.lowering import transpiled
from larql_duck.lowering.dialects import translate_select
from larql_duck.lowering.types import EmptyCatalog
from larql_duck.lql import parse_one
from larql_duck.session import Session


def transpile(text: str, vindex: str | Path | Session | None = None, dialect: str = "duckdb") -> str:
    """The SQL of one LQL statement (or pipe), as the DuckDB CLI on model.duckdb can run it.

    Where a Python function is needed a comment in it says so. With a vindex (a path or a Session), layers, relations
    and tokens are checked against it and the basis of a walk follows from it. `dialect` 'spark' or 'trino' translates
    a SELECT over tables alone (the Parquet files). Raises LqlSyntaxError, SemanticError, NotSupportedError.
    """
    statement = parse_one(text)
    if dialect != "duckdb":
        return translate_select(statement, dialect)
    if statement.kind == "ExplainSql":
        statement = statement.statement  # type: ignore[attr-defined]
    if vindex is None:
        return transpiled(statement, EmptyCatalog()).printed
    if isinstance(vindex, Session):
        return transpiled(statement, vindex.catalog).printed
    with connect(vindex) as session:
        return transpiled(statement, session.catalog).printed
