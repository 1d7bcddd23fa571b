"""SELECT: DuckDB's own, with LQL's table names resolved and NEAREST TO made a function.

The query's text is kept as it was typed and only edited in places, because a generator would rewrite (and for some
DuckDB forms silently change) what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sqlglot
from sqlglot import exp
from sqlglot.tokens import TokenType

from larql_duck.errors import LqlSyntaxError
from larql_duck.lowering.build import call, text_of
from larql_duck.lowering.checks import check_layer, fail
from larql_duck.lowering.names import NEAREST, TABLES, Table
from larql_duck.lowering.types import Query
from larql_duck.lql.statements import NEAREST_FUNCTION, Select, Sql, Statement

if TYPE_CHECKING:
    from sqlglot.tokens import Token

    from larql_duck.lowering.types import Catalog

_NEAREST_FUNCTIONS = ("lq_udf_entity_vectors", "lq_udf_distances")
_NEAREST_ROWS = 20
_QUOTED = frozenset(
    {TokenType.STRING, TokenType.IDENTIFIER, TokenType.NATIONAL_STRING, TokenType.HEREDOC_STRING}
)
_COMPARISONS = frozenset({"=", "==", "!=", "<>", "<", "<=", ">", ">="})


def select(s: Select, facts: Catalog) -> Query:
    """SELECT as a query; `_` stays a name, for whoever pipes into it."""
    return lower(s, s.query, facts)


def lower(s: Statement, part: Sql, facts: Catalog) -> Query:
    """A SQL part of statement `s` as a query on the session's tables."""
    work = _Lowering(s, part, facts)
    work.run()
    return Query(
        work.text(),
        tuple(work.notices),
        _NEAREST_FUNCTIONS if work.nearest else (),
        uses_pipe=work.uses_pipe,
        uses_vindex=bool(work.edits),
        relations=tuple(work.relations),
    )


@dataclass
class _Source:
    """One of our tables as it stands in a FROM clause."""

    table: Table
    name: str
    scope: exp.Expr | None


@dataclass
class _Lowering:
    statement: Statement
    part: Sql
    facts: Catalog
    notices: list[str] = field(default_factory=list)
    nearest: bool = False
    uses_pipe: bool = False
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    sources: list[_Source] = field(default_factory=list)
    relations: list[str] = field(default_factory=list)

    def run(self) -> None:
        try:
            tree: exp.Expr | None = self.part.tree
        except LqlSyntaxError:
            # DuckDB knows a form that sqlglot does not: names are then found by what stands before them.
            tree = None
        self.tokens = sqlglot.tokenize(self.part.text, read="duckdb")
        if tree is None:
            self._tables_by_token()
        else:
            self._tables(tree)
        self._order_by_all()
        calls = self._nearest_calls(tree)
        if tree is not None:
            self._columns(tree)
            self._mentioned_relations(tree)
            if calls:
                self._nearest_defaults(tree)

    def text(self) -> str:
        """The query's text after all edits."""
        pieces, end = [], 0
        for start, stop, new in sorted(self.edits, key=lambda edit: edit[:2]):
            pieces += [self.part.text[end:start], new]
            end = stop
        return "".join([*pieces, self.part.text[end:]])

    # -- tables -------------------------------------------------------------------------------------------

    def _tables(self, tree: exp.Expr) -> None:
        for node in tree.find_all(exp.Table):
            name = node.this
            if not isinstance(name, exp.Identifier) or node.args.get("db") is not None:
                continue
            if name.name == "_":
                self.uses_pipe = True
            if name.name.lower() in _visible_ctes(node) or name.name.lower() not in TABLES:
                continue
            table = TABLES[name.name.lower()]
            self._name_table(name.meta["start"], name.meta["end"] + 1, name.name, table, bool(node.alias))
            self.sources.append(_Source(table, node.alias or name.name, node.find_ancestor(exp.Select)))

    def _tables_by_token(self) -> None:
        for before, token, after in _triples(self.tokens):
            named = before is not None and _said(before).upper() in ("FROM", "JOIN")
            name = token.text.lower()
            if not named or (after is not None and _said(after) in (".", "(")):
                continue
            self.uses_pipe = self.uses_pipe or name == "_"
            if name in TABLES:
                aliased = after is not None and _said(after).upper() == "AS"
                self._name_table(token.start, token.end + 1, token.text, TABLES[name], aliased)

    def _name_table(self, start: int, end: int, name: str, table: Table, aliased: bool) -> None:
        new = f"{self.facts.schema}.{table.view}"
        # `EDGES.entity` must go on meaning the same table.
        alias = "" if aliased else f" AS {name}"
        self.edits.append((start, end, new + alias))

    def _order_by_all(self) -> None:
        # The reference's grammar takes any word as a column's name, so ORDER BY ALL arrives as ORDER BY "all"; no
        # table of ours has such a column.
        for before, token, _ in _triples(self.tokens):
            quoted = self.part.text[token.start : token.end + 1] == '"all"'
            if quoted and before is not None and _said(before).upper() in ("ORDER BY", "BY"):
                self.edits.append((token.start, token.end + 1, "ALL"))

    # -- NEAREST TO ---------------------------------------------------------------------------------------

    def _nearest_calls(self, tree: exp.Expr | None) -> int:
        found = 0
        for i, token in enumerate(self.tokens):
            if _said(token) != NEAREST_FUNCTION or _said(self.tokens[i + 1]) != "(":
                continue
            found += 1
            close = _closing(self.tokens, i + 1)
            arguments = self._arguments(self.part.text[token.start : self.tokens[close].end + 1])
            source, entity, layer, basis = arguments
            aliased = close + 1 < len(self.tokens) and _said(self.tokens[close + 1]).upper() == "AS"
            self._nearest_call(
                (token.start, self.tokens[close].end + 1), str(source), str(entity), layer, basis, aliased
            )
        self._nearest_sources(tree)
        return found

    def _arguments(self, text: str) -> list[str | int | None]:
        node = sqlglot.parse_one(text, read="duckdb")
        values: list[str | int | None] = []
        for argument in node.expressions:
            if isinstance(argument, exp.Neg):
                values.append(-int(argument.this.name))
            elif isinstance(argument, exp.Literal):
                values.append(argument.name if argument.is_string else int(argument.name))
            else:
                values.append(None)
        return values

    def _nearest_call(
        self, span: tuple[int, int], source: str, entity: str, layer: object, basis: object, aliased: bool
    ) -> None:
        table = NEAREST.get(source.lower())
        if table is None:
            raise fail(
                self.statement,
                f"NEAREST TO needs rows with a layer and a feature: write EDGES or FEATURES, not {source}",
            )
        assert isinstance(layer, int)
        check_layer(self.statement, self.facts, layer)
        if basis == "context":
            self.facts.require("inference", "BASIS CONTEXT")
        if basis is None:
            basis = "context" if self.facts.has_weights else "embedding"
            if basis == "embedding" and self.facts.opened:
                self.notices.append(
                    "no weights are stored: the entity's embedding was used (BASIS EMBEDDING)"
                )
        self.nearest = True
        new = text_of(call(self.facts.schema, table.view, entity, layer, p_basis=str(basis)))
        alias = "" if aliased else f" AS {source}"
        self.edits.append((*span, new + alias))

    def _nearest_sources(self, tree: exp.Expr | None) -> None:
        for node in [] if tree is None else tree.find_all(exp.Table):
            function = node.this
            if isinstance(function, exp.Anonymous) and function.name.lower() == NEAREST_FUNCTION:
                source = function.expressions[0].name
                if source.lower() in NEAREST:
                    found = NEAREST[source.lower()]
                    scope = node.find_ancestor(exp.Select)
                    self.sources.append(_Source(found, node.alias or source, scope))

    def _nearest_defaults(self, tree: exp.Expr) -> None:
        """ORDER BY and LIMIT for a plain `SELECT ... FROM x NEAREST TO ...`: the nearest first, twenty of them."""
        if not isinstance(tree, exp.Select) or tree.args.get("joins") or len(self.sources) != 1:
            return
        source = tree.args.get("from_") or tree.args.get("from")
        direct = source is not None and isinstance(source.this, exp.Table)
        grouped = any(tree.args.get(key) for key in ("group", "distinct", "having", "qualify"))
        aggregated = any(tree.find_all(exp.AggFunc, exp.Window))
        if not direct or grouped or aggregated:
            return
        behind = end = len(self.part.text)
        for token in self._outer_tokens():
            if _said(token).upper() in ("LIMIT", "OFFSET"):
                behind = token.start
                break
        if not tree.args.get("order"):
            self.edits.append(
                (behind, behind, " ORDER BY distance" if behind == end else "ORDER BY distance ")
            )
        if not tree.args.get("limit"):
            self.edits.append(
                (behind, behind, f" LIMIT {_NEAREST_ROWS}" if behind == end else f"LIMIT {_NEAREST_ROWS} ")
            )

    def _outer_tokens(self) -> Iterator[Token]:
        """The tokens that stand in no bracket."""
        depth = 0
        for token in self.tokens:
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(_said(token), 0)
            if depth == 0:
                yield token

    # -- columns ------------------------------------------------------------------------------------------

    def _columns(self, tree: exp.Expr) -> None:
        for column in tree.find_all(exp.Column):
            name = column.this
            if not isinstance(name, exp.Identifier) or "start" not in name.meta:
                continue
            source = self._source_of(column)
            if source is None:
                continue
            lowered = name.name.lower()
            if source.table.view == "lql_entities" and lowered == "layer":
                self._membership(name, column)
            elif lowered in source.table.aliases:
                self._rename(column, name, source.table.aliases[lowered])

    def _mentioned_relations(self, tree: exp.Expr) -> None:
        for equality in tree.find_all(exp.EQ):
            column, value = equality.this, equality.expression
            named = isinstance(column, exp.Column) and column.name.lower() in ("relation", "relationship")
            if named and self.sources and isinstance(value, exp.Literal) and value.is_string:
                self.relations.append(value.name)

    def _source_of(self, column: exp.Column) -> _Source | None:
        """Our table that a column belongs to by its qualifier, or because it is the query's only source."""
        scope = column.find_ancestor(exp.Select)
        here = [s for s in self.sources if s.scope is scope]
        if column.table:
            return next((s for s in here if s.name.lower() == column.table.lower()), None)
        if len(here) != 1 or scope is None:
            return None
        source = scope.args.get("from_") or scope.args.get("from")
        alone = source is not None and not scope.args.get("joins") and not scope.args.get("laterals")
        lowered = column.name.lower()
        return here[0] if alone and lowered not in here[0].table.columns else None

    def _rename(self, column: exp.Column, name: exp.Identifier, new: str) -> None:
        start, end = name.meta["start"], name.meta["end"] + 1
        parent = column.parent
        shown = isinstance(parent, exp.Select) and column.arg_key == "expressions"
        # A projected column keeps the name by which it was asked for.
        self.edits.append((start, end, f"{new} AS {name.sql('duckdb')}" if shown else new))

    def _membership(self, name: exp.Identifier, column: exp.Column) -> None:
        """`layer = 5` on ENTITIES: whether one of its layers is 5."""
        at = next(i for i, t in enumerate(self.tokens) if t.start == name.meta["start"])
        first = at - 2 if column.table else at
        last = _predicate_end(self.tokens, at)
        if last is None:
            raise fail(
                self.statement,
                "ENTITIES has a list of layers, not one: write layer = 5 (or <, >, IN, BETWEEN), or use the column layers",
            )
        qualifier = self.part.text[self.tokens[first].start : name.meta["start"]]
        operator = _said(self.tokens[at + 1]).upper()
        # `layer <> 5` asks for entities without layer 5, not for those that have another one too.
        negated = operator in ("!=", "<>", "NOT")
        operand = self.part.text[self.tokens[at + 1].end + 1 : self.tokens[last].end + 1]
        comparison = f"{'' if operator == 'NOT' else '=' if negated else operator}{operand}".strip()
        found = f"len(list_filter({qualifier}layers, lambda one_layer: one_layer {comparison}))"
        new = f"({found} {'=' if negated else '>'} 0)"
        self.edits.append((self.tokens[first].start, self.tokens[last].end + 1, new))


def _visible_ctes(node: exp.Expr) -> set[str]:
    """Lower-case names of the CTEs that a table name at this node would mean."""
    names: set[str] = set()
    inside: exp.Expr = node
    parent = node.parent
    while parent is not None:
        clause = parent.args.get("with_") or parent.args.get("with")
        if isinstance(clause, exp.With):
            recursive = bool(clause.args.get("recursive"))
            for cte in clause.expressions:
                if inside is clause and _contains(cte, node):
                    # A CTE sees itself only when it is recursive, and never those behind it.
                    names |= {cte.alias.lower()} if recursive else set()
                    break
                names.add(cte.alias.lower())
        inside, parent = parent, parent.parent
    return names


def _contains(tree: exp.Expr, node: exp.Expr) -> bool:
    current: exp.Expr | None = node
    while current is not None:
        if current is tree:
            return True
        current = current.parent
    return False


def _said(token: Token) -> str:
    """The token's text where it is a word or a sign of SQL; '' for literals and quoted names, whatever they hold."""
    return "" if token.token_type in _QUOTED else token.text


def _closing(tokens: list[Token], opening: int) -> int:
    depth = 0
    for i in range(opening, len(tokens)):
        depth += {"(": 1, ")": -1}.get(_said(tokens[i]), 0)
        if depth == 0:
            return i
    raise AssertionError("DuckDB's parser accepted unbalanced brackets")


def _predicate_end(tokens: list[Token], at: int) -> int | None:
    """Index of the last token of a comparison whose left side is the token `at`; None for other forms."""
    words = [_said(t).upper() for t in tokens[at + 1 : at + 3]]
    if not words:
        return None
    if words[0] in _COMPARISONS:
        return _number_end(tokens, at + 2)
    if words[0] == "IN" or words == ["NOT", "IN"]:
        opening = at + 2 if words[0] == "IN" else at + 3
        return _closing(tokens, opening) if opening < len(tokens) and _said(tokens[opening]) == "(" else None
    if words[0] == "BETWEEN":
        middle = _number_end(tokens, at + 2)
        if middle is not None and middle + 1 < len(tokens) and _said(tokens[middle + 1]).upper() == "AND":
            return _number_end(tokens, middle + 2)
    return None


def _number_end(tokens: list[Token], at: int) -> int | None:
    if at < len(tokens) and _said(tokens[at]) == "-":
        at += 1
    return at if at < len(tokens) and tokens[at].text.replace(".", "", 1).isdigit() else None


def _triples(tokens: list[Token]) -> Iterator[tuple[Token | None, Token, Token | None]]:
    yield from zip([None, *tokens[:-1]], tokens, [*tokens[1:], None], strict=True)
