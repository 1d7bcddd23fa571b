"""A statement in the SQL of Spark, Trino or DataFusion, over tables that `larql-duck export --tables` writes.

Macros and views are written out, constants computed, stars listed; then `engines` rewrites what an engine says otherwise.
What is known to mean the same there is listed; everything else is refused by name, because sqlglot turns several
DuckDB forms silently into something else (`unnest(..., recursive := true)`, USING KEY, list comprehensions,
POSITIONAL JOIN, sized arrays, read_parquet).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, OptimizeError, SqlglotError, UnsupportedError
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify

from larql_duck.catalog import LOOKUPS, TABLES, VIEWS
from larql_duck.errors import NotSupportedError
from larql_duck.lowering.engines import ENGINES, is_all, rewritten
from larql_duck.lowering.folding import folded
from larql_duck.lowering.macros import SCHEMA, STORED, with_own_names, written_out
from larql_duck.lowering.pruning import pruned

if TYPE_CHECKING:
    from larql_duck.lowering.types import Query

_NODES: tuple[type[exp.Expr], ...] = (
    exp.Select, exp.From, exp.Join, exp.Where, exp.Group, exp.Having, exp.Order, exp.Ordered, exp.Limit, exp.Offset,
    exp.Union, exp.Except, exp.Intersect, exp.Subquery, exp.With, exp.CTE, exp.Table, exp.TableAlias, exp.Alias,
    exp.Column, exp.Identifier, exp.Star, exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.And, exp.Or, exp.Not,
    exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between, exp.In, exp.Is, exp.Like, exp.ILike, exp.Escape,
    exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg, exp.Case, exp.If, exp.Cast, exp.DataType, exp.Exists,
    exp.Distinct, exp.Window, exp.WindowSpec, exp.Qualify, exp.DPipe, exp.Lateral, exp.Array, exp.Comprehension,
)  # fmt: skip
_FUNCTIONS: tuple[type[exp.Expr], ...] = (
    exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.Coalesce, exp.Nullif, exp.Lower, exp.Upper, exp.Length,
    exp.Trim, exp.Abs, exp.Round, exp.Floor, exp.Ceil, exp.Sqrt,
    exp.RowNumber, exp.Rank, exp.DenseRank, exp.Lag, exp.Lead,
)  # fmt: skip
_KNOWN = frozenset((*_NODES, *_FUNCTIONS))
# Casts to integers round in DuckDB and truncate elsewhere, casts to text format numbers differently.
_TYPES = frozenset({"FLOAT", "DOUBLE"})
_JOINS = frozenset({"", "INNER", "CROSS", "OUTER", "SEMI", "ANTI"})
_COLUMNS: dict[str, object] = {
    name: {column.name: column.type for column in table.columns}
    for name, table in {**TABLES, **LOOKUPS, **VIEWS}.items()
    if name in STORED
}
# Made by lowering for conditions on the layers of ENTITIES.
_LAYERS_MARK = "one_layer"


def check_dialect(dialect: str) -> None:
    """Raise NotSupportedError for a dialect that nothing is translated to."""
    if dialect not in ENGINES:
        names = ["duckdb", *ENGINES]
        raise NotSupportedError(
            f"dialect {dialect!r} is not known: use {', '.join(names[:-1])} or {names[-1]}"
        )


def translated(query: Query, dialect: str) -> str:
    """The query in the SQL of `dialect`, in one line; NotSupportedError that names the first thing that has no translation."""
    check_dialect(dialect)
    if query.functions:
        raise _refused(f"what needs the model ({', '.join(query.functions)})", dialect)
    try:
        tree = sqlglot.parse_one(query.sql, read="duckdb")
        _check(tree, dialect)
        needs = any(_unplain(tree))
        tree = pruned(with_own_names(_unwrapped(folded(written_out(tree)))))
        if needs:
            tree = annotate_types(
                qualify(tree, dialect="duckdb", schema=_COLUMNS, quote_identifiers=True),
                schema=_COLUMNS,
                dialect="duckdb",
            )
        tree = rewritten(tree, dialect)
        return tree.sql(ENGINES[dialect], unsupported_level=ErrorLevel.RAISE, comments=False)
    except UnsupportedError as error:
        raise NotSupportedError(f"not translated to {dialect}: {_line(error)}; run it in DuckDB") from None
    except OptimizeError as error:
        raise NotSupportedError(
            f"not translated to {dialect}: {_line(error)}; it is for the tables of a vindex alone"
        ) from None
    except SqlglotError as error:
        raise NotSupportedError(f"not translated to {dialect}: {_line(error)}; run it in DuckDB") from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _refused(what: str, dialect: str) -> NotSupportedError:
    return NotSupportedError(f"{what} is not translated to {dialect}; run it in DuckDB")


def _unplain(tree: exp.Expr) -> Iterator[bool]:
    """What only a query whose columns are all resolved can be translated with."""
    for node in tree.walk():
        yield isinstance(node, exp.Table) and node.db == SCHEMA and node.name not in STORED
        yield isinstance(node, exp.Star) and (any(node.args.values()) or isinstance(node.parent, exp.Column))
        yield isinstance(node, exp.Qualify | exp.Comprehension | exp.Lateral)
        yield isinstance(node, exp.Window) and not node.args.get("order")
        yield isinstance(node, exp.Join) and bool(node.args.get("using"))
        yield isinstance(node, exp.Group | exp.Order) and is_all(node)
        yield isinstance(node, exp.Anonymous) or (isinstance(node, exp.Column) and bool(node.args.get("db")))


def _check(tree: exp.Expr, dialect: str) -> None:
    """Raise NotSupportedError for what the user's own part of a query says that is not known to mean the same."""
    for table in tree.find_all(exp.Table):
        if isinstance(table.this, exp.Anonymous) and table.db != SCHEMA:
            raise _refused(f"function {table.this.name.lower()}", dialect)
        if table.db not in ("", SCHEMA) or table.catalog:
            raise _refused(f"the table {table.sql('duckdb')}, which is of another database,", dialect)
        if extra := [k for k in ("pivots", "sample", "ordinality", "when") if table.args.get(k)]:
            raise _refused(f"{extra[0]} of a table", dialect)
    for node in tree.walk(prune=_of_lowering):
        if _of_lowering(node):
            continue
        if type(node) not in _KNOWN and not (isinstance(node, exp.Var) and node.name.upper() == "ALL"):
            raise _refused(_name_of(node), dialect)
        _check_node(node, dialect)


def _of_lowering(node: exp.Expr) -> bool:
    """Whether a part was made by lowering, and is translated with the macros: their calls, and layers of ENTITIES."""
    if isinstance(node, exp.Table):
        return isinstance(node.this, exp.Anonymous)
    if isinstance(node, exp.Cast):
        return isinstance(node.this, exp.Null)
    return (
        isinstance(node, exp.Length)
        and isinstance(node.this, exp.ArrayFilter)
        and any(part.name == _LAYERS_MARK for part in node.find_all(exp.Identifier))
    )


def _check_node(node: exp.Expr, dialect: str) -> None:
    if isinstance(node, exp.Join):
        sides = {str(node.args.get("kind") or "").upper(), str(node.args.get("method") or "").upper()}
        if not sides <= _JOINS:
            raise _refused(f"{' '.join(sorted(sides)).strip()} JOIN", dialect)
    elif isinstance(node, exp.DataType) and (node.this.name not in _TYPES or node.expressions):
        raise _refused(f"type {node.sql('duckdb')}", dialect)
    elif isinstance(node, exp.With) and node.args.get("recursive"):
        raise _refused("WITH RECURSIVE", dialect)
    elif isinstance(node, exp.Distinct) and node.args.get("on") is not None:
        raise _refused("DISTINCT ON", dialect)
    elif (isinstance(node, exp.Min | exp.Max) and node.expressions) or (
        isinstance(node, exp.Trim) and node.expression is not None
    ):
        raise _refused(f"{_name_of(node)} with two arguments", dialect)
    elif isinstance(node, exp.Array) and not isinstance(
        next(iter(node.expressions), None), exp.Comprehension
    ):
        raise _refused("a list", dialect)
    elif isinstance(node, exp.Limit) and not isinstance(node.expression, exp.Literal):
        raise _refused("LIMIT with an expression", dialect)


def _name_of(node: exp.Expr) -> str:
    if isinstance(node, exp.Anonymous | exp.Func):
        return f"function {str(node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()}"
    return f"{type(node).__name__} ({node.sql('duckdb')[:40]})"


def _unwrapped(tree: exp.Expr) -> exp.Expr:
    """SELECT * FROM (query) as that query: engines keep the order of the outermost query alone."""
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1:
        return tree
    [star], source = tree.expressions, tree.args.get("from_")
    plain = isinstance(star, exp.Star) and not any(star.args.values())
    others = {key for key, value in tree.args.items() if value} - {"expressions", "from_", "limit", "offset"}
    if not plain or source is None or others or not isinstance(source.this, exp.Subquery):
        return tree
    inner = source.this.this
    if source.this.args.get("joins") or not isinstance(inner, exp.Select) or inner.args.get("limit"):
        return tree
    for key in ("limit", "offset"):
        inner.set(key, tree.args.get(key))
    return inner
