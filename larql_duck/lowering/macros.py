"""Macros and views written out: a query over the schema as one over stored tables alone.

For engines that have neither: DuckDB expands its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import sqlglot
from sqlglot import exp
from sqlglot.tokens import Token, TokenType

from larql_duck.catalog import LOOKUPS, TABLES, VIEWS
from larql_duck.catalog.ddl import views_and_macros
from larql_duck.errors import NotSupportedError

SCHEMA = "lq"
"""The schema's name in the SQL that is written out."""

STORED = frozenset({*TABLES, *LOOKUPS, "model_graph"})
"""What is a table of its own in the files that `larql-duck export` writes."""

# Made a constant, bottom up, as soon as its parts are.
Fold: TypeAlias = Callable[[exp.Expr], exp.Expr]


@dataclass(frozen=True)
class Macro:
    """A macro of the schema: its parameters with their defaults (None: to be given), and its body: a query, or for a
    scalar one an expression.
    """

    name: str
    parameters: Mapping[str, exp.Expr | None]
    body: exp.Expr

    def call(self, arguments: list[exp.Expr]) -> exp.Expr:
        """The body with these arguments in the places of the parameters."""
        given: dict[str, exp.Expr] = {}
        for place, argument in zip(self.parameters, arguments, strict=False):
            if not isinstance(argument, exp.PropertyEQ):
                given[place] = argument
        for argument in arguments:
            if isinstance(argument, exp.PropertyEQ):
                given[argument.name] = argument.expression
        values = {name: given.get(name, default) for name, default in self.parameters.items()}

        def filled(node: exp.Expr) -> exp.Expr:
            if isinstance(node, exp.Column) and not node.table and values.get(node.name) is not None:
                value = values[node.name]
                assert value is not None
                return exp.paren(value.copy()) if isinstance(value, exp.Binary) else value.copy()
            return node

        return self.body.copy().transform(filled)


def written_out(tree: exp.Expr) -> exp.Expr:
    """The query with macros and views in place; what is left are stored tables, by their bare names."""
    return tree.transform(_written)


def with_own_names(tree: exp.Expr) -> exp.Expr:
    """The query, each of whose WITH parts has a name of its own: Spark has one list of them for the whole query."""
    _rename(tree, {}, set())
    return tree


def _rename(node: exp.Expr, known: Mapping[str, str], taken: set[str]) -> None:
    """Give the WITH parts in `node` names that are not in `taken`; known: name in the text -> that in force around it."""
    named = node.args.get("with_")
    if named is not None:
        known = dict(known)
        for cte in named.expressions:
            _rename(cte.this, known, taken)
            name = cte.alias.lower()
            free = next(
                n for i in itertools.count(1) if (n := name if i == 1 else f"{name}_{i}") not in taken
            )
            taken.add(free)
            known[name] = free
            cte.args["alias"].set("this", exp.to_identifier(free))
    if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier) and not node.db:
        name = known.get(node.name.lower(), node.name)
        if name != node.name:
            alias = node.alias or node.name
            node.set("this", exp.to_identifier(name))
            node.set("alias", exp.TableAlias(this=exp.to_identifier(alias)))
    for part in node.iter_expressions():
        if part is not named:
            _rename(part, known, taken)


def _written(node: exp.Expr) -> exp.Expr:
    if isinstance(node, exp.Table) and node.db == SCHEMA:
        return _source(node)
    if isinstance(node, exp.Dot) and node.this.name == SCHEMA and isinstance(node.expression, exp.Anonymous):
        return written_out(_macro(node.expression.name).call(list(node.expression.expressions)))
    return node


def _source(table: exp.Table) -> exp.Expr:
    """A table of the schema as a stored table or a subquery under the same name."""
    called = isinstance(table.this, exp.Anonymous)
    name, alias = table.this.name if called else table.name, table.alias or table.this.name
    if not called and name in STORED:
        bare = exp.to_table(name)
        return bare if alias.lower() == name else exp.alias_(bare, alias, table=True)
    body = _macro(name).call(list(table.this.expressions)) if called else _view(name)
    inner = exp.Subquery(this=written_out(body))
    for key in ("joins", "pivots", "sample"):
        if table.args.get(key):
            inner.set(key, table.args[key])
    return exp.alias_(inner, alias, table=True)


def _view(name: str) -> exp.Expr:
    found = _definitions()[0].get(name)
    if found is None:
        raise NotSupportedError(f"{name} is of the session alone and in no file; run it in DuckDB")
    return found.copy()


def _macro(name: str) -> Macro:
    found = _definitions()[1].get(name)
    if found is None:
        raise NotSupportedError(f"function {name} needs a larql_duck session; run it in DuckDB")
    return found


@functools.cache
def _definitions() -> tuple[dict[str, exp.Expr], dict[str, Macro]]:
    """Name -> query of a view, and name -> macro, of everything in sql/ that needs no Python."""
    views: dict[str, exp.Expr] = {}
    macros: dict[str, Macro] = {}
    for _, text in views_and_macros(SCHEMA, columns=False):
        for statement in _statements(text):
            words = [token.text.upper() for token in statement[:2]]
            if words == ["CREATE", "VIEW"]:
                views[statement[4].text] = _body(text, statement, _index(statement, TokenType.ALIAS))
            elif words == ["CREATE", "MACRO"]:
                macro = _read_macro(text, statement)
                macros[macro.name] = macro
    return {name: query for name, query in views.items() if name in VIEWS or name not in STORED}, macros


def _statements(text: str) -> Iterator[list[Token]]:
    statement: list[Token] = []
    for token in sqlglot.tokenize(text, read="duckdb"):
        if token.token_type == TokenType.SEMICOLON:
            yield statement
            statement = []
        else:
            statement.append(token)


def _index(statement: list[Token], kind: TokenType) -> int:
    return next(i for i, token in enumerate(statement) if token.token_type == kind)


def _read_macro(text: str, statement: list[Token]) -> Macro:
    """CREATE MACRO schema.name(parameter [:= default], ...) AS [TABLE] body."""
    depth, start, parameters = 0, 6, {}
    for i in range(5, len(statement)):
        kind = statement[i].token_type
        depth += (kind in (TokenType.L_PAREN, TokenType.L_BRACKET)) - (
            kind in (TokenType.R_PAREN, TokenType.R_BRACKET)
        )
        if (depth == 1 and kind == TokenType.COMMA) or depth == 0:
            parts = statement[start:i]
            default = None
            if len(parts) > 1:
                default = sqlglot.parse_one(text[parts[2].start : parts[-1].end + 1], read="duckdb")
            if parts:
                parameters[parts[0].text] = default
            start = i + 1
        if depth == 0:
            break
    is_table = statement[i + 2].text.upper() == "TABLE"
    return Macro(statement[4].text, parameters, _body(text, statement, i + 1 + is_table))


def _body(text: str, statement: list[Token], before: int) -> exp.Expr:
    return sqlglot.parse_one(text[statement[before + 1].start : statement[-1].end + 1], read="duckdb")
