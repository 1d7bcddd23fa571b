"""A SELECT over the tables in the SQL of Spark or Trino, which read the Parquet files.

What is known to mean the same there is listed; everything else is refused by name, because sqlglot turns several
DuckDB forms silently into something else (`unnest(..., recursive := true)`, USING KEY, list comprehensions,
POSITIONAL JOIN, sized arrays, read_parquet).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, UnsupportedError

from larql_duck.catalog import FILES, VIEWS
from larql_duck.catalog.ddl import views_and_macros
from larql_duck.errors import NotSupportedError
from larql_duck.lowering.names import TABLES
from larql_duck.lowering.select import lower
from larql_duck.lowering.types import EmptyCatalog

if TYPE_CHECKING:
    from larql_duck.lql.statements import Select, Statement

DIALECTS = ("spark", "trino")
_SCHEMA = "lq"
_LISTED = {view: table for table in TABLES.values() for view in (table.view, table.both)}

_NODES: tuple[type[exp.Expr], ...] = (
    exp.Select, exp.From, exp.Join, exp.Where, exp.Group, exp.Having, exp.Order, exp.Ordered, exp.Limit, exp.Offset,
    exp.Union, exp.Except, exp.Intersect, exp.Subquery, exp.With, exp.CTE, exp.Table, exp.TableAlias, exp.Alias,
    exp.Column, exp.Identifier, exp.Star, exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.And, exp.Or, exp.Not,
    exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between, exp.In, exp.Is, exp.Like, exp.ILike, exp.Escape,
    exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg, exp.Case, exp.If, exp.Cast, exp.DataType, exp.Exists,
    exp.Distinct, exp.Window, exp.WindowSpec, exp.Qualify, exp.DPipe,
)  # fmt: skip
_FUNCTIONS: tuple[type[exp.Expr], ...] = (
    exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.Coalesce, exp.Nullif, exp.Lower, exp.Upper, exp.Length,
    exp.Trim, exp.Abs, exp.Round, exp.Floor, exp.Ceil, exp.Sqrt,
    exp.RowNumber, exp.Rank, exp.DenseRank, exp.Lag, exp.Lead,
)  # fmt: skip
_KNOWN = frozenset((*_NODES, *_FUNCTIONS))
# Casts to integers round in DuckDB and truncate in Spark, casts to text format numbers differently.
_TYPES = frozenset({"FLOAT", "DOUBLE"})
_JOINS = frozenset({"", "INNER", "CROSS", "OUTER"})


def translate_select(statement: Statement, dialect: str) -> str:
    """The SELECT in the SQL of `dialect`; NotSupportedError that names the first thing that cannot be translated."""
    if dialect not in DIALECTS:
        raise NotSupportedError(f"dialect {dialect!r} is not known: use duckdb, {' or '.join(DIALECTS)}")
    if statement.kind != "Select":
        raise NotSupportedError(
            f"only SELECT over tables is translated to {dialect}; {statement.kind} runs in DuckDB"
        )
    select: Select = statement  # type: ignore[assignment]
    lowered = lower(select, select.query, EmptyCatalog(_SCHEMA))
    if lowered.functions:
        raise _refused("NEAREST TO", dialect)
    tree = sqlglot.parse_one(lowered.sql, read="duckdb")
    _list_columns(tree)
    _check(tree, dialect)
    tree = tree.transform(lambda node: _resolve(node, dialect))
    try:
        return tree.sql(dialect, unsupported_level=ErrorLevel.RAISE)
    except UnsupportedError as error:
        raise NotSupportedError(f"not translated to {dialect}: {str(error).splitlines()[0]}") from None


def _refused(what: str, dialect: str) -> NotSupportedError:
    return NotSupportedError(f"{what} is not translated to {dialect}; run it in DuckDB")


def _check(tree: exp.Expr, dialect: str) -> None:
    for node in tree.walk():
        if type(node) not in _KNOWN:
            raise _refused(_name_of(node), dialect)
        if isinstance(node, exp.Join):
            sides = {str(node.args.get("kind") or "").upper(), str(node.args.get("method") or "").upper()}
            if not sides <= _JOINS:
                raise _refused(f"{' '.join(sorted(sides)).strip()} JOIN", dialect)
        elif isinstance(node, exp.Table):
            if not isinstance(node.this, exp.Identifier):
                raise _refused(_name_of(node.this), dialect)
            extra = [k for k in ("pivots", "sample", "ordinality", "when") if node.args.get(k)]
            if extra:
                raise _refused(f"{extra[0]} of a table", dialect)
        elif isinstance(node, exp.DataType) and (node.this.name not in _TYPES or node.expressions):
            raise _refused(f"type {node.sql('duckdb')}", dialect)
        elif isinstance(node, exp.With) and node.args.get("recursive"):
            raise _refused("WITH RECURSIVE", dialect)
        elif isinstance(node, exp.Star) and any(node.args.values()):
            raise _refused("* EXCLUDE / REPLACE", dialect)
        elif isinstance(node, exp.Group | exp.Order) and _is_all(node):
            raise _refused(f"{type(node).__name__.upper()} BY ALL", dialect)
        elif isinstance(node, exp.Distinct) and node.args.get("on") is not None:
            raise _refused("DISTINCT ON", dialect)
        elif isinstance(node, exp.Qualify) and any(node.parent.find_all(exp.Star) if node.parent else ()):
            # It becomes a subquery with a column more, which the star would show.
            raise _refused("QUALIFY with *", dialect)
        elif (isinstance(node, exp.Min | exp.Max) and node.expressions) or (
            isinstance(node, exp.Trim) and node.expression is not None
        ):
            raise _refused(f"{_name_of(node)} with two arguments", dialect)
        elif isinstance(node, exp.Limit) and not isinstance(node.expression, exp.Literal):
            raise _refused("LIMIT with an expression", dialect)


def _is_all(node: exp.Group | exp.Order) -> bool:
    if node.args.get("all") is not None:
        return True
    names = [e.this if isinstance(e, exp.Ordered) else e for e in node.expressions]
    return any(isinstance(n, exp.Var) and n.name.upper() == "ALL" for n in names)


def _name_of(node: exp.Expr) -> str:
    if isinstance(node, exp.Anonymous | exp.Func):
        return f"function {str(node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()}"
    return f"{type(node).__name__} ({node.sql('duckdb')[:40]})"


def _resolve(node: exp.Expr, dialect: str) -> exp.Expr:
    """Our views as subqueries over the stored tables, our tables by their bare names."""
    if not isinstance(node, exp.Table) or node.db != _SCHEMA:
        return node
    body = _views().get(node.name)
    alias = node.alias or node.name
    if node.name == "lql_entities":
        select = node.find_ancestor(exp.Select)
        used = {c.name.lower() for c in select.find_all(exp.Column)} if select else {"layers"}
        if "layers" in used or (select is not None and any(select.find_all(exp.Star))):
            raise _refused("ENTITIES with its layers (they are kept in model.duckdb only)", dialect)
        return exp.alias_(exp.to_table("entities"), alias, table=True)
    if body is None:
        bare = exp.to_table(node.name)
        return bare if alias.lower() == node.name else exp.alias_(bare, alias, table=True)
    inner = exp.Subquery(this=body.copy().transform(lambda part: _resolve(part, dialect)))
    return exp.alias_(inner, alias, table=True)


@functools.cache
def _views() -> dict[str, exp.Select]:
    """Name -> query of the views that LQL reads and that are no file of their own."""
    return {
        create.this.name: create.expression
        for name, text in views_and_macros(_SCHEMA)
        if name in VIEWS or name == "20_views.sql"
        for create in sqlglot.parse(text, read="duckdb")
        if isinstance(create, exp.Create) and create.this.name not in FILES
    }


def _list_columns(tree: exp.Expr) -> None:
    """Columns in place of the stars that leave other spellings out."""
    for select in tree.find_all(exp.Select):
        joins = select.args.get("joins") or ()
        sources = [source.this for source in (select.args.get("from_"), *joins) if source is not None]
        ours = all(isinstance(s, exp.Table) and s.db == _SCHEMA and s.name in _LISTED for s in sources)
        if not ours or any(join.args.get("using") for join in joins):
            continue
        projections: list[exp.Expr] = []
        for projection in select.expressions:
            star = projection.this if isinstance(projection, exp.Column) else projection
            if not isinstance(star, exp.Star) or not star.args.get("except_"):
                projections.append(projection)
                continue
            shown = [s for s in sources if star is projection or projection.table == s.alias_or_name]
            if not {c.name for c in star.args["except_"]} <= {
                n for s in shown for n in _LISTED[s.name].aliases
            }:
                return
            projections += [
                exp.column(name, table=source.alias_or_name if len(sources) > 1 else None)
                for source in shown
                for name in _LISTED[source.name].columns
            ]
        select.set("expressions", projections)
