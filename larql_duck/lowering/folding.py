"""Constant parts of a query computed, so that other engines need not know the functions in them."""

from __future__ import annotations

import functools
from typing import Any

import duckdb
from sqlglot import exp

from larql_duck.databases import in_memory

# What a constant cannot hold: it depends on rows, on the moment, or is no value.
_VARIABLE = (
    exp.Table, exp.Query, exp.AggFunc, exp.Window, exp.Star, exp.Placeholder, exp.Parameter, exp.Identifier, exp.DataType,
    exp.Alias, exp.Ordered, exp.Rand, exp.CurrentDate, exp.CurrentTimestamp, exp.Explode, exp.Unnest,
)  # fmt: skip
# What stands for itself, or is no expression on its own.
_PLAIN = (exp.Literal, exp.Boolean, exp.Null, exp.Var, exp.If, exp.PropertyEQ, exp.Tuple, exp.Array, exp.Neg)
_ROUNDS = 20


def folded(tree: exp.Expr) -> exp.Expr:
    """The query with what is constant computed by DuckDB, and conditions that it decides left out."""
    for _ in range(_ROUNDS):
        before = tree.copy()
        _compute(tree)
        decided = tree.transform(_decided)
        assert decided is not None
        tree = decided
        if tree == before:
            break
    return tree


def is_false(node: exp.Expr | None) -> bool:
    """Whether a condition holds for no row."""
    return isinstance(node, exp.Null) or (isinstance(node, exp.Boolean) and not node.this)


def _compute(tree: exp.Expr) -> None:
    pending = [tree]
    while pending:
        node = pending.pop()
        if _is_constant(node):
            value = _value(node)
            if value is not None:
                node.replace(value)
        else:
            pending += list(node.iter_expressions())


def _is_constant(node: exp.Expr) -> bool:
    comprehends = isinstance(node, exp.Array) and any(
        isinstance(part, exp.Comprehension) for part in node.expressions
    )
    if (isinstance(node, _PLAIN) and not comprehends) or not isinstance(node, exp.Condition):
        return False
    if isinstance(node, exp.Cast) and isinstance(node.this, exp.Null):
        # It says of what type nothing is.
        return False
    bound = {part.expression.name for part in node.find_all(exp.Comprehension)}
    for part in node.walk():
        if isinstance(part, exp.Column):
            if part.table or part.name not in bound:
                return False
        elif isinstance(part, _VARIABLE) and not isinstance(part, exp.Identifier | exp.DataType):
            return False
    return True


def _value(node: exp.Expr) -> exp.Expr | None:
    """The constant's value as a literal; None where it has none that can be written, or DuckDB does not know it."""
    try:
        [(value,)] = _duckdb().execute(f"SELECT {node.sql('duckdb')}").fetchall()
    except duckdb.Error:
        return None
    return _literal(value)


def _literal(value: Any) -> exp.Expr | None:
    if value is None or isinstance(value, bool | int | float | str):
        return exp.convert(value)
    if isinstance(value, list) and value and all(isinstance(item, int | str) for item in value):
        return exp.Array(expressions=[exp.convert(item) for item in value])
    return None


@functools.cache
def _duckdb() -> duckdb.DuckDBPyConnection:
    return in_memory()


def _decided(node: exp.Expr) -> exp.Expr | None:
    """A condition or choice without the parts that are decided; None where nothing of it is left."""
    if isinstance(node, exp.And | exp.Or):
        ends = isinstance(node, exp.Or)
        sides = [node.this.unnest(), node.expression.unnest()]
        for side, other in (sides, sides[::-1]):
            if isinstance(side, exp.Boolean):
                return exp.Boolean(this=ends) if side.this == ends else other
    elif isinstance(node, exp.Paren) and isinstance(
        node.this, exp.Boolean | exp.Null | exp.Literal | exp.Column
    ):
        return node.this
    elif isinstance(node, exp.Case) and node.this is None:
        return _decided_case(node)
    elif isinstance(node, exp.Coalesce):
        parts = [part for part in (node.this, *node.expressions) if not isinstance(part, exp.Null)]
        if not parts:
            return exp.null()
        known = next((i for i, part in enumerate(parts) if isinstance(part, exp.Literal)), len(parts))
        parts = parts[: known + 1]
        return parts[0] if len(parts) == 1 else exp.Coalesce(this=parts[0], expressions=parts[1:])
    elif (
        isinstance(node, exp.Where | exp.Qualify)
        and isinstance(node.this.unnest(), exp.Boolean)
        and node.this.unnest().this
    ):
        return None
    elif isinstance(node, exp.Order):
        kept = [part for part in node.expressions if not _orders_nothing(part)]
        if not kept:
            return None
        node.set("expressions", kept)
    return node


def _orders_nothing(part: exp.Expr) -> bool:
    value = part.this if isinstance(part, exp.Ordered) else part
    return isinstance(value, exp.Boolean | exp.Null) or (isinstance(value, exp.Literal) and value.is_string)


def _decided_case(node: exp.Case) -> exp.Expr:
    branches: list[exp.Expr] = []
    for branch in node.args["ifs"]:
        condition = branch.this.unnest()
        if is_false(condition):
            continue
        if isinstance(condition, exp.Boolean):
            if not branches:
                return branch.args["true"]
            node.set("default", branch.args["true"])
            break
        branches.append(branch)
    if not branches:
        return node.args.get("default") or exp.null()
    node.set("ifs", branches)
    return node
