"""What other engines say otherwise than DuckDB: rewrites of a query's tree before sqlglot writes it.

The trees are those of `dialects`: macros written out, columns resolved, types known where it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from sqlglot import exp

from larql_duck.errors import NotSupportedError
from larql_duck.lowering.datafusion import DataFusion, keys_projected, structs_apart
from larql_duck.lowering.numbering import numbered_by_order

Rewrite: TypeAlias = Callable[[exp.Expr, str], exp.Expr]

_LARGEST = "1.7976931348623157E308"
# Lists that have three items at most, whatever the model.
_THREE_TOKENS = frozenset({"activates_on", "down_tokens", "opposite_tokens"})
# A range of layers that is written out as a list.
_LONGEST = 1000


ENGINES: Mapping[str, str | type[DataFusion]] = {"spark": "spark", "trino": "trino", "datafusion": DataFusion}
"""Dialect -> who writes it."""


def rewritten(tree: exp.Expr, engine: str) -> exp.Expr:
    """The query as `engine` can say it. NotSupportedError for what it cannot, by name."""
    unsorted = numbered_by_order(tree)
    if unsorted is not None:
        raise refused("row_number() without ORDER BY", engine)
    # Parts before what they are in.
    if engine == "datafusion":
        tree = keys_projected(structs_apart(tree))
    for node in reversed(list(tree.walk())):
        rewrite = _REWRITES.get(type(node)) or _BY_NAME.get(_function(node))
        if rewrite is None:
            continue
        new = rewrite(node, engine)
        if new is not node:
            node.replace(new)
    return tree


def refused(what: str, engine: str) -> NotSupportedError:
    """The error of what an engine cannot say."""
    return NotSupportedError(f"{what} is not translated to {engine}; run it in DuckDB")


def _function(node: exp.Expr) -> str:
    return node.name.lower() if isinstance(node, exp.Anonymous) else ""


def _call(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=list(arguments))


# -- queries --------------------------------------------------------------------------------------------------


def _cte(node: exp.Expr, engine: str) -> exp.Expr:
    node.set("materialized", None)
    return node


def _join(node: exp.Expr, engine: str) -> exp.Expr:
    """SEMI and ANTI JOIN have a side elsewhere; Trino has neither."""
    kind = str(node.args.get("kind") or "").upper()
    if kind in ("SEMI", "ANTI"):
        if engine == "trino":
            return _join_as_exists(node, kind)
        node.set("side", "LEFT")
    return node


def _join_as_exists(node: exp.Expr, kind: str) -> exp.Expr:
    select = node.parent
    condition = node.args.get("on")
    if not isinstance(select, exp.Select) or condition is None:
        raise refused(f"{kind} JOIN", "trino")
    there: exp.Expr = exp.Exists(this=exp.select("1").from_(node.this.copy()).where(condition.copy()))
    node.pop()
    select.where(there if kind == "SEMI" else exp.not_(there), copy=False)
    return node


def _union(node: exp.Expr, engine: str) -> exp.Expr:
    """The columns of both sides under the names of the first."""
    right = node.expression
    assert isinstance(node, exp.Union)
    if isinstance(right, exp.Select) and not right.is_star:
        columns = [
            exp.alias_(c.unalias(), n, quoted=True)
            for c, n in zip(right.selects, node.named_selects, strict=True)
        ]
        right.set("expressions", columns)
    return node


def is_all(node: exp.Group | exp.Order) -> bool:
    """Whether it is GROUP BY ALL or ORDER BY ALL."""
    if node.args.get("all") is not None:
        return True
    names = [e.this if isinstance(e, exp.Ordered) else e for e in node.expressions]
    return any(isinstance(n, exp.Var) and n.name.upper() == "ALL" for n in names)


def _order(node: exp.Expr, engine: str) -> exp.Expr:
    """ORDER BY ALL as the columns by their places."""
    parts = node.expressions
    if len(parts) == 1 and isinstance(parts[0].this, exp.Var) and isinstance(node.parent, exp.Select):
        wanted = parts[0]
        node.set(
            "expressions",
            [
                exp.Ordered(
                    this=exp.column(column.alias_or_name, quoted=True),
                    desc=wanted.args.get("desc"),
                    nulls_first=wanted.args.get("nulls_first"),
                )
                for column in node.parent.expressions
            ],
        )
    return node


def _group(node: exp.Expr, engine: str) -> exp.Expr:
    """GROUP BY ALL as the columns by their places."""
    select = node.parent
    if not isinstance(select, exp.Select) or not isinstance(node, exp.Group) or not is_all(node):
        return node
    if any(column.find(exp.Window) for column in select.expressions):
        raise refused("GROUP BY ALL with a window function", engine)
    places = [
        exp.Literal.number(i)
        for i, column in enumerate(select.expressions, 1)
        if not any(part.parent_select is select for part in column.find_all(exp.AggFunc))
    ]
    select.set("group", exp.Group(expressions=places) if places else None)
    return node


def _having(node: exp.Expr, engine: str) -> exp.Expr:
    """HAVING count(*) > 0 holds for every group; Spark 4.3 loses a column of UNION ALL over it."""
    test = node.this.unnest()
    if not isinstance(test, exp.GT) or test.expression != exp.Literal.number(0):
        return node
    counted = test.this.unnest()
    counted = counted.this.unnest() if isinstance(counted, exp.Cast) else counted
    select = node.parent
    grouped = isinstance(select, exp.Select) and bool(select.args.get("group"))
    if grouped and isinstance(counted, exp.Count) and isinstance(counted.this, exp.Star):
        node.pop()
    return node


# -- numbers and text -----------------------------------------------------------------------------------------


def _round(node: exp.Expr, engine: str) -> exp.Expr:
    """Digits that depend on the row are no argument elsewhere: the number is scaled instead."""
    digits = node.args.get("decimals")
    if digits is None or isinstance(digits, exp.Literal | exp.Neg):
        return node
    scale = _call("power", exp.cast(exp.Literal.number("10"), "DOUBLE"), digits)
    scaled = exp.Mul(this=exp.paren(node.this.copy()), expression=scale)
    return exp.paren(exp.Div(this=exp.Round(this=scaled), expression=scale.copy(), typed=False, safe=True))


def _is_finite(node: exp.Expr, engine: str) -> exp.Expr:
    # NaN is above every number there.
    return exp.paren(
        exp.LTE(
            this=exp.Abs(this=node.expressions[0]),
            expression=exp.cast(exp.Literal.number(_LARGEST), "DOUBLE"),
        )
    )


def _log(node: exp.Expr, engine: str) -> exp.Expr:
    return _call("log10", node.expression) if node.this.name == "10" else node


def _composed(node: exp.Expr, engine: str) -> exp.Expr:
    # The names of a vindex that were asked about are composed; the look-ups' keys are in any case.
    argument: exp.Expr = node.expressions[0]
    return argument


def _replaced(node: exp.Expr, engine: str) -> exp.Expr:
    """regexp_replace: Java's replacement is written $1, and its \\v is more than a vertical tab."""
    modifiers = node.args.get("modifiers")
    everywhere = modifiers is not None and "g" in modifiers.name
    anchored = node.expression.name.startswith("^")
    if not everywhere and not anchored:
        raise refused("regexp_replace of the first match alone", engine)
    if engine == "datafusion":
        return _call(
            "regexp_replace", node.this, node.expression, node.args["replacement"], exp.Literal.string("g")
        )
    replacement = node.args["replacement"].name
    for number in "12":
        replacement = replacement.replace(f"\\{number}", f"${number}")
    pattern = node.expression.name.replace("\\v", "\\x0B")
    return _call("regexp_replace", node.this, exp.Literal.string(pattern), exp.Literal.string(replacement))


def _full_match(node: exp.Expr, engine: str) -> exp.Expr:
    return exp.RegexpLike(this=node.this, expression=exp.Literal.string(f"^(?:{node.expression.name})$"))


def _hex(node: exp.Expr, engine: str) -> exp.Expr:
    text = node.this.this if isinstance(node.this, exp.Encode) else node.this
    if engine == "spark":
        return _call("hex", text)
    if engine == "trino":
        return _call("to_hex", _call("to_utf8", text))
    return _call("upper", _call("encode", text, exp.Literal.string("hex")))


def _joined_text(node: exp.Expr, engine: str) -> exp.Expr:
    for side in ("this", "expression"):
        part = node.args[side]
        if part.type is not None and part.type.is_type(*exp.DataType.NUMERIC_TYPES):
            node.set(side, exp.cast(part.copy(), "VARCHAR"))
    return node


# -- aggregates -----------------------------------------------------------------------------------------------


def _ignore_nulls(node: exp.Expr, engine: str) -> exp.Expr:
    return exp.Max(this=node.this.this) if isinstance(node.this, exp.AnyValue) else node


def _any_value(node: exp.Expr, engine: str) -> exp.Expr:
    # Any is as good as the largest, which every engine has.
    return node if isinstance(node.parent, exp.IgnoreNulls) else exp.Max(this=node.this)


def _filter(node: exp.Expr, engine: str) -> exp.Expr:
    return node if node.expression else node.this


def _first(node: exp.Expr, engine: str) -> exp.Expr:
    """first(x ORDER BY ...): the one with the least key."""
    if not isinstance(node.this, exp.Order) or engine == "datafusion":
        return node
    if engine == "trino":
        return _call("element_at", exp.ArrayAgg(this=node.this), exp.Literal.number(1))
    return _call("min_by", node.this.this, _key(node.this.expressions, engine))


def _list(node: exp.Expr, engine: str) -> exp.Expr:
    """list(x ORDER BY ...), which Spark makes by sorting keys with values."""
    if not isinstance(node.this, exp.Order) or engine != "spark":
        return node
    # The value stands behind its keys in the same struct, so that it is sorted with them.
    pair = exp.Struct(
        expressions=[
            exp.PropertyEQ(this=exp.to_identifier("k"), expression=_key(node.this.expressions, engine)),
            exp.PropertyEQ(this=exp.to_identifier("v"), expression=node.this.this),
        ]
    )
    collected = exp.ArrayAgg(this=pair)
    if isinstance(node.parent, exp.Filter):
        raise refused("list(... ORDER BY ...) FILTER", "spark")
    return _values(collected)


def _values(collected: exp.Expr) -> exp.Expr:
    item = exp.to_identifier("item")
    value = exp.Dot(this=exp.to_identifier("item"), expression=exp.to_identifier("v"))
    return _call("transform", _call("array_sort", collected), exp.Lambda(this=value, expressions=[item]))


def _key(ordered: list[exp.Expr], engine: str) -> exp.Expr:
    """The columns of an ORDER BY as a struct that sorts as they do, NULLs last."""
    parts: list[exp.Expr] = []
    for part in ordered:
        value = part.this
        if part.args.get("nulls_first"):
            raise refused("ORDER BY ... NULLS FIRST in an aggregate", engine)
        if part.args.get("desc"):
            if value.type is None or not value.type.is_type(*exp.DataType.NUMERIC_TYPES):
                raise refused("ORDER BY text DESC in an aggregate", engine)
            parts += [exp.Is(this=value.copy(), expression=exp.null()), exp.Neg(this=exp.paren(value.copy()))]
        else:
            parts += [exp.Is(this=value.copy(), expression=exp.null()), value.copy()]
    return _call("struct", *parts)


# -- lists and structs ----------------------------------------------------------------------------------------


def _contains(node: exp.Expr, engine: str) -> exp.Expr:
    if isinstance(node.this, exp.Array):
        return exp.In(this=node.expression, expressions=list(node.this.expressions))
    return node


def _array(node: exp.Expr, engine: str) -> exp.Expr:
    """[expression FOR x IN list IF condition]."""
    [part] = node.expressions if len(node.expressions) == 1 else [None]
    if not isinstance(part, exp.Comprehension):
        return node
    name, items, condition = part.expression.name, part.args["iterator"], part.args.get("condition")
    if engine == "datafusion":
        return _without(part, name, items, condition)
    if condition is not None:
        items = _call("filter", items, _lambda(name, condition))
    same = _is_bound(part.this, name)
    return items if same else _call("transform", items, _lambda(name, part.this))


def _is_bound(node: exp.Expr, name: str) -> bool:
    """Whether a node is the variable of a comprehension."""
    if isinstance(node, exp.Column):
        return node.name == name and not node.table
    return isinstance(node, exp.Identifier) and node.name == name and not isinstance(node.parent, exp.Column)


def _with(body: exp.Expr, name: str, value: exp.Expr) -> exp.Expr:
    """A copy of the body of a comprehension with a value in place of its variable."""
    return body.copy().transform(lambda node: value.copy() if _is_bound(node, name) else node)


def _lambda(name: str, body: exp.Expr) -> exp.Expr:
    variable = exp.to_identifier(name)
    return exp.Lambda(this=_with(body, name, variable), expressions=[variable.copy()])


def _without(part: exp.Expr, name: str, items: exp.Expr, condition: exp.Expr | None) -> exp.Expr:
    """DataFusion has no lambdas: a list without one value it can say."""
    if isinstance(condition, exp.NEQ) and _is_bound(part.this, name) and _is_bound(condition.this, name):
        return _call("array_remove_all", items, condition.expression)
    if condition is not None and all(value.name in _THREE_TOKENS for value in _values_of(items)):
        return _call(
            "array_compact", exp.Array(expressions=[_kept(part, name, items, place) for place in (1, 2, 3)])
        )
    raise refused("a list comprehension", "datafusion")


def _values_of(node: exp.Expr) -> list[exp.Expr]:
    """What an expression can be: itself, or the values of a CASE."""
    if not isinstance(node, exp.Case):
        return [node]
    return [branch.args["true"] for branch in node.args["ifs"]] + [node.args.get("default") or exp.null()]


def _kept(part: exp.Expr, name: str, items: exp.Expr, place: int) -> exp.Expr:
    """The value of a comprehension for the item at a place, NULL where its condition does not hold."""
    item = _call("array_element", items.copy(), exp.Literal.number(place))
    return exp.case().when(_with(part.args["condition"], name, item), _with(part.this, name, item))


def _length(node: exp.Expr, engine: str) -> exp.Expr:
    """len(list_filter(layers, ...)) as a number of items."""
    if isinstance(node.this, exp.Anonymous) and node.this.name in ("array_intersect", "list_intersect"):
        return exp.ArraySize(this=node.this)
    if not isinstance(node.this, exp.ArrayFilter):
        return node
    if engine != "datafusion":
        return exp.ArraySize(this=node.this)
    return exp.case().when(_any_of(node.this), "1").else_("0")


def _any_of(found: exp.Expr) -> exp.Expr:
    """Whether a list has an item for which a lambda holds: =, IN or BETWEEN numbers."""
    items, condition = found.this, found.expression.this
    if isinstance(condition, exp.EQ):
        return exp.ArrayContains(this=items, expression=condition.expression)
    if isinstance(condition, exp.In) and condition.expressions:
        return _call("array_has_any", items, exp.Array(expressions=list(condition.expressions)))
    if isinstance(condition, exp.Between):
        low, high = (int(condition.args[side].name) for side in ("low", "high"))
        if high - low < _LONGEST:
            numbers = [exp.Literal.number(n) for n in range(low, high + 1)]
            return _call("array_has_any", items, exp.Array(expressions=numbers))
    raise refused("this condition on the layers of ENTITIES", "datafusion")


def _bracket(node: exp.Expr, engine: str) -> exp.Expr:
    """list[n], NULL where the list is shorter; sqlglot counts from 0."""
    [index] = node.expressions
    if not isinstance(index, exp.Literal) or index.is_string:
        return node
    place = exp.Literal.number(int(index.name) + 1 - (node.args.get("offset") or 0))
    if engine == "spark":
        return _call("try_element_at", node.this, place)
    return _call("element_at" if engine == "trino" else "array_element", node.this, place)


def _tuple(node: exp.Expr, engine: str) -> exp.Expr:
    """count(DISTINCT (a, b))."""
    if isinstance(node.parent, exp.Distinct) and isinstance(node.parent.parent, exp.Count):
        if engine == "spark":
            return _call("struct", *node.expressions)
        return _call("row" if engine == "trino" else "struct", *node.expressions)
    return node


def _explode(node: exp.Expr, engine: str) -> exp.Expr:
    """unnest of a column, in Spark with the places of its items; a list of constants every engine takes apart."""
    if isinstance(node.this, exp.Array):
        return node
    select = node.find_ancestor(exp.Select)
    if engine == "datafusion":
        return node
    if engine != "spark" or select is None:
        raise refused("PATHS (a list of structs taken apart)", engine)
    items = _call("posexplode", node.this)
    names = exp.TableAlias(
        this=exp.to_identifier("taken"), columns=[exp.to_identifier("place_of"), exp.to_identifier("item")]
    )
    select.append("laterals", exp.Lateral(this=items, view=True, alias=names))
    return exp.column("item", table="taken")


def _places(node: exp.Expr, engine: str) -> exp.Expr:
    if engine == "datafusion":
        # Lists that are taken apart side by side go together.
        last = exp.Add(
            this=exp.cast(_call("array_length", node.expressions[0]), "BIGINT"),
            expression=exp.Literal.number(1),
        )
        return _call("unnest", _call("range", exp.Literal.number(1), last))
    # Behind `_explode`, which counts from 0.
    return exp.Add(this=exp.column("place_of", table="taken"), expression=exp.Literal.number(1))


def _cast(node: exp.Expr, engine: str) -> exp.Expr:
    """An empty list of structs: DataFusion has no name for the type, and cuts it off a list of one."""
    kind = node.args["to"]
    if engine != "datafusion" or not (isinstance(node.this, exp.Array) and not node.this.expressions):
        return node
    if not (kind.expressions and kind.expressions[0].is_type("struct")):
        return node
    fields = [
        exp.PropertyEQ(this=exp.to_identifier(f.name), expression=exp.cast(exp.null(), f.args["kind"]))
        for f in kind.expressions[0].expressions
    ]
    one = exp.Array(expressions=[exp.Struct(expressions=fields)])
    return _call("array_slice", one, exp.Literal.number(2), exp.Literal.number(1))


def _intersect(node: exp.Expr, engine: str) -> exp.Expr:
    return _call("array_intersect", *node.expressions)


_REWRITES: Mapping[type[exp.Expr], Rewrite] = {
    exp.Union: _union, exp.CTE: _cte, exp.Join: _join, exp.Order: _order, exp.Group: _group, exp.Having: _having,
    exp.Round: _round, exp.Log: _log, exp.RegexpReplace: _replaced,
    exp.RegexpFullMatch: _full_match, exp.Hex: _hex, exp.DPipe: _joined_text, exp.IgnoreNulls: _ignore_nulls,
    exp.AnyValue: _any_value, exp.Filter: _filter, exp.First: _first, exp.ArrayAgg: _list, exp.ArrayContains: _contains,
    exp.Array: _array, exp.Length: _length, exp.Bracket: _bracket, exp.Tuple: _tuple, exp.Cast: _cast, exp.Explode: _explode,
}  # fmt: skip
_BY_NAME: Mapping[str, Rewrite] = {
    "isfinite": _is_finite,
    "nfc_normalize": _composed,
    "generate_subscripts": _places,
    "list_intersect": _intersect,
}
