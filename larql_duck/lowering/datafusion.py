"""What DataFusion says otherwise than PostgreSQL, and what its planner wants said in other words."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.generators.postgres import PostgresGenerator


class DataFusionGenerator(PostgresGenerator):
    """Writes lists as make_array, structs as named_struct."""

    TRANSFORMS: ClassVar[dict[type[exp.Expr], Any]] = {
        **PostgresGenerator.TRANSFORMS,
        exp.Array: lambda self, e: self.func("make_array", *e.expressions),
        exp.ArrayContains: lambda self, e: self.func("array_has", e.this, e.expression),
        exp.ArrayConcat: lambda self, e: self.func("array_concat", e.this, *e.expressions),
        exp.ArrayAppend: lambda self, e: self.func("array_append", e.this, e.expression),
        exp.ArrayPrepend: lambda self, e: self.func("array_prepend", e.expression, e.this),
        exp.ArrayDistinct: lambda self, e: self.func("array_distinct", e.this),
        exp.ArraySort: lambda self, e: self.func("array_sort", e.this),
        exp.First: lambda self, e: self.func("first_value", e.this),
        exp.Struct: lambda self, e: self.func("named_struct", *_names_and_values(e)),
        exp.Dot: lambda self, e: self.func("get_field", e.this, exp.Literal.string(e.expression.name)),
        exp.TryCast: lambda self, e: f"TRY_CAST({self.sql(e, 'this')} AS {self.sql(e, 'to')})",
        exp.Qualify: lambda self, e: f"{self.seg('QUALIFY')} {self.sql(e, 'this')}",
    }
    # It has QUALIFY itself; PostgreSQL's transformation of SELECT would take it out.
    TRANSFORMS.pop(exp.Select, None)


class DataFusion(Postgres):
    """PostgreSQL's SQL, with DataFusion's functions on lists and structs."""

    Generator = DataFusionGenerator


def _names_and_values(struct: exp.Expr) -> list[exp.Expr]:
    parts: list[exp.Expr] = []
    for field in struct.expressions:
        parts += [exp.Literal.string(field.name), field.expression]
    return parts


def structs_apart(tree: exp.Expr) -> exp.Expr:
    """The query with first({'a': x, 'b': y} ORDER BY ...) as a column a field: DataFusion 55 loses itself in fields that it
    takes out of structs below joins.
    """
    structs: set[str] = set()
    for first in list(tree.find_all(exp.First)):
        named, order = first.parent, first.this
        if not isinstance(named, exp.Alias):
            continue
        select = named.parent
        if not (
            isinstance(select, exp.Select)
            and isinstance(order, exp.Order)
            and isinstance(order.this, exp.Struct)
        ):
            continue
        columns: list[exp.Expr] = []
        for field in order.this.expressions:
            part = exp.Order(
                this=field.expression.copy(), expressions=[key.copy() for key in order.expressions]
            )
            columns.append(exp.alias_(exp.First(this=part), f"{named.alias}_{field.name}", quoted=True))
        kept = [[column] if column is not named else columns for column in select.expressions]
        select.set("expressions", [column for group in kept for column in group])
        structs.add(named.alias)
    for dot in list(tree.find_all(exp.Dot)):
        if isinstance(dot.this, exp.Column) and dot.this.name in structs:
            dot.replace(
                exp.column(
                    f"{dot.this.name}_{dot.expression.name}", table=dot.this.args.get("table"), quoted=True
                )
            )
    return tree


def keys_projected(tree: exp.Expr) -> exp.Expr:
    """The query with what it sorts by in columns of their own: DataFusion takes a key for the column of that name which is
    shown.
    """
    for select in reversed(list(tree.find_all(exp.Select))):
        order = select.args.get("order")
        if order is None or all(_is_shown(part.this, select) for part in order.expressions):
            continue
        outer = exp.select(*(exp.column(name, quoted=True) for name in select.named_selects))
        inner = select.copy()
        for i, part in enumerate(inner.args["order"].expressions):
            key = exp.to_identifier(f"key_{i}", quoted=True)
            inner.append("expressions", exp.alias_(part.this.copy(), key))
            part.set("this", exp.column(key.copy()))
        outer.set("order", inner.args["order"].pop())
        for clause in ("limit", "offset", "with_"):
            if inner.args.get(clause) is not None:
                outer.set(clause, inner.args[clause].pop())
        outer.set(
            "from_",
            exp.From(this=exp.Subquery(this=inner, alias=exp.TableAlias(this=exp.to_identifier("sorted")))),
        )
        if select is tree:
            tree = outer
        else:
            select.replace(outer)
    return tree


def _is_shown(key: exp.Expr, select: exp.Select) -> bool:
    """Whether a key is a column that the query shows as it is."""
    if not isinstance(key, exp.Column):
        return isinstance(key, exp.Var)
    shown = {column.alias_or_name: column.unalias() for column in select.expressions}
    return key.name in shown and (not key.table or shown[key.name] == key)
