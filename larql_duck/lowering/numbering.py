"""row_number() OVER () over a sorted query: in DuckDB the rows' places in that order, elsewhere none in particular."""

from __future__ import annotations

import itertools

from sqlglot import exp

# What a query between the number and the order may say: it keeps the order of the rows.
_KEEPING = frozenset({"expressions", "from_", "where", "with_", "qualify", "kind", "operation_modifiers"})


def numbered_by_order(tree: exp.Expr) -> exp.Window | None:
    """A number that no order is behind, None without one; the others are given that of the query below them."""
    names = (f"place_{i}" for i in itertools.count(1))
    for window in list(tree.find_all(exp.Window)):
        if not isinstance(window.this, exp.RowNumber) or window.args.get("order"):
            continue
        select = window.parent_select
        keys = None
        if isinstance(select, exp.Select) and not window.args.get("partition_by"):
            keys = _keys_below(select, next(names))
        if keys is None:
            return window
        window.set("order", exp.Order(expressions=keys))
    return None


def _keys_below(select: exp.Select, name: str) -> list[exp.Expr] | None:
    """What the rows of a query's source are sorted by, in terms of its columns; None where they are not, or it joins."""
    source = select.args.get("from_")
    if source is None or select.args.get("joins") or not isinstance(source.this, exp.Subquery):
        return None
    inner = source.this.this
    if not isinstance(inner, exp.Select) or source.this.args.get("joins"):
        return None
    order = inner.args.get("order")
    number: exp.Expr
    if order is not None and not inner.args.get("distinct") and not inner.args.get("group"):
        keys = [_in_terms_of_sources(key, inner) for key in order.expressions]
        number = exp.Window(this=exp.RowNumber(), order=exp.Order(expressions=keys))
    elif {key for key, value in inner.args.items() if value} <= _KEEPING:
        below = _keys_below(inner, name)
        if below is None:
            return None
        number = below[0].this
    else:
        return None
    inner.append("expressions", exp.alias_(number, name, quoted=True))
    return [exp.Ordered(this=exp.column(name, table=source.this.alias, quoted=True), nulls_first=False)]


def _in_terms_of_sources(key: exp.Expr, select: exp.Select) -> exp.Expr:
    """A key of ORDER BY, which may name a column that is shown, as a window needs it."""
    shown = {column.alias: column.unalias() for column in select.expressions if isinstance(column, exp.Alias)}

    def filled(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Column) and not node.table and node.name in shown:
            return exp.paren(shown[node.name].copy())
        return node

    return key.copy().transform(filled)
