"""DuckDB expressions from Python values, built with sqlglot: no text of a user becomes SQL by concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlglot import exp


def literal(value: Any) -> exp.Expr:
    """A Python value (None, bool, int, float, str or a list of them) as a literal."""
    if value is None:
        return exp.null()
    if isinstance(value, bool):
        return exp.true() if value else exp.false()
    if isinstance(value, int | float):
        number = exp.Literal.number(repr(abs(value)))
        return exp.Neg(this=number) if value < 0 else number
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Sequence):
        return exp.Array(expressions=[literal(v) for v in value])
    raise TypeError(f"no literal for {type(value).__name__}")


def _text(value: str) -> exp.Expr:
    if "\0" not in value:
        return exp.Literal.string(value)
    # DuckDB reads a query up to the first NUL character.
    parts: list[exp.Expr] = []
    for i, piece in enumerate(value.split("\0")):
        parts += [exp.Anonymous(this="chr", expressions=[exp.Literal.number(0)])] if i else []
        parts.append(exp.Literal.string(piece))
    return exp.Anonymous(this="concat", expressions=parts)


def call(schema: str, name: str, *values: Any, **named: Any) -> exp.Table:
    """A table macro's call; named arguments that are None are left to their defaults."""
    arguments = [literal(v) for v in values]
    arguments += [
        exp.PropertyEQ(this=exp.to_identifier(key), expression=literal(value))
        for key, value in named.items()
        if value is not None
    ]
    return exp.Table(this=exp.Anonymous(this=name, expressions=arguments), db=exp.to_identifier(schema))


def view(schema: str, name: str) -> exp.Table:
    """A view or table of the schema."""
    return exp.Table(this=exp.to_identifier(name), db=exp.to_identifier(schema))


def text_of(tree: exp.Expr) -> str:
    """The tree as DuckDB SQL, names of macros as they are."""
    return tree.sql("duckdb", normalize_functions=False)


def all_of(source: exp.Table) -> str:
    """`SELECT * FROM source`."""
    return text_of(exp.select("*").from_(source))


def in_ranges(column: str, ranges: Sequence[tuple[int, int]]) -> exp.Expr:
    """The condition that a column lies in one of the inclusive ranges."""
    parts = [
        exp.column(column).eq(low) if low == high else exp.column(column).between(low, high)
        for low, high in ranges
    ]
    return parts[0] if len(parts) == 1 else exp.or_(*parts)
