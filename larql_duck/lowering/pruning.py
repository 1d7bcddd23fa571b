"""WITH parts that hold no rows, and those that nobody reads, left out of a query.

Hops that nobody asked for are such parts of NEIGHBORS and PATHS. DuckDB sees that while it plans; engines that copy a WITH
part to each place that names it spend minutes on them.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from larql_duck.lowering.folding import folded, is_false
from larql_duck.lowering.macros import STORED


def pruned(tree: exp.Expr) -> exp.Expr:
    """The query without its empty WITH parts and without those that are not read. Names of parts are to be unique."""
    empty: set[str] = set()
    for cte in list(_parts(tree)):
        # What is within a part before it.
        for query in reversed(list(cte.this.find_all(exp.Select, exp.Union))):
            _emptied(query, empty)
        # A stored table may have the same name elsewhere in the query.
        if cte.alias not in STORED and _is_empty(cte.this, empty):
            empty.add(cte.alias)
    for query in reversed(list(tree.find_all(exp.Select, exp.Union))):
        if query is not tree and query.find_ancestor(exp.CTE) is None:
            _emptied(query, empty)
    return _without_unread(tree)


def _parts(node: exp.Expr) -> Iterator[exp.CTE]:
    """The WITH parts, each behind those that it can name."""
    clause = node.args.get("with_")
    if clause is not None:
        yield from _parts(clause)
    for part in node.iter_expressions():
        if part is not clause:
            yield from _parts(part)
    if isinstance(node, exp.CTE):
        yield node


def _emptied(query: exp.Expr, empty: set[str]) -> None:
    """Replace what a query asks of empty parts: IN (none) is false, and A UNION ALL none is A."""
    if isinstance(query, exp.Select):
        where = query.args.get("where")
        tests = list(where.find_all(exp.In)) if where is not None else []
        asked = [
            test for test in tests if test.args.get("query") and _is_empty(test.args["query"].unnest(), empty)
        ]
        for test in asked:
            test.replace(exp.false())
        if asked:
            # A condition that always holds takes its WHERE with it.
            query.set("where", folded(exp.Select(where=where)).args.get("where"))
    elif isinstance(query, exp.Union) and not query.args.get("distinct"):
        # The first side gives the columns their names, and stays.
        others = {key for key, value in query.args.items() if value} - {"this", "expression", "distinct"}
        if not others and _is_empty(query.expression.unnest(), empty):
            query.replace(query.this)


def _is_empty(query: exp.Expr, empty: set[str]) -> bool:
    """Whether a query has no rows, whatever the tables hold."""
    if isinstance(query, exp.Union):
        return _is_empty(query.this.unnest(), empty) and _is_empty(query.expression.unnest(), empty)
    if not isinstance(query, exp.Select) or (not query.args.get("group") and _aggregates(query)):
        # An aggregate over no rows is a row.
        return False
    where, source, joins = query.args.get("where"), query.args.get("from_"), query.args.get("joins") or ()
    if where is not None and is_false(where.this.unnest()):
        return True
    if source is None or any(join.side in ("RIGHT", "FULL") for join in joins):
        return False
    needed = [source.this, *(join.this for join in joins if not join.side and join.kind != "ANTI")]
    return any(isinstance(table, exp.Table) and not table.db and table.name in empty for table in needed)


def _aggregates(query: exp.Select) -> bool:
    if query.args.get("having"):
        return True
    return any(
        part.find_ancestor(exp.Window, exp.Select) is query
        for column in query.expressions
        for part in column.find_all(exp.AggFunc)
    )


def _without_unread(tree: exp.Expr) -> exp.Expr:
    while True:
        read = {table.name for table in tree.find_all(exp.Table) if not table.db}
        unread = [cte for cte in tree.find_all(exp.CTE) if cte.alias not in read]
        if not unread:
            return tree
        for cte in unread:
            clause = cte.parent
            cte.pop()
            if clause is not None and not clause.expressions:
                clause.pop()
