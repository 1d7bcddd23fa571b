"""Statements -> canonical LQL."""

from __future__ import annotations

from larql_duck.lql.parts import Statement
from larql_duck.lql.statements import Pipe

__all__ = ["print_statement"]


def print_statement(statement: Statement) -> str:
    """One line of LQL without a semicolon; parsing it gives an equal statement."""
    from larql_duck.lql.table import row_of

    if isinstance(statement, Pipe):
        return " |> ".join(map(print_statement, statement.stages))
    return row_of(statement).show(statement)
