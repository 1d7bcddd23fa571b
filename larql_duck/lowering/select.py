"""SELECT: DuckDB's own, with LQL's table names resolved and NEAREST TO made a function.

The query's text is kept as it was typed and only edited in places, because a generator would rewrite (and for some
DuckDB forms silently change) what it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlglot import exp
from sqlglot.errors import OptimizeError
from sqlglot.optimizer.scope import Scope, build_scope
from sqlglot.tokens import TokenType

from larql_duck.errors import LqlSyntaxError
from larql_duck.lowering.build import call, text_of
from larql_duck.lowering.names import NEAREST, TABLES, LqlTable
from larql_duck.lowering.spellings import star_edits
from larql_duck.lowering.types import Query, check_layer, fail, not_described
from larql_duck.lql.literals import NEAREST_FUNCTION, Sql
from larql_duck.lql.statements import Select, Statement

if TYPE_CHECKING:
    from sqlglot.tokens import Token

    from larql_duck.lowering.types import Catalog

_NEAREST_FUNCTIONS = ("lq_udf_entity_vectors", "lq_udf_distances")
_NEAREST_ROWS = 20
_QUOTED = frozenset(
    {TokenType.STRING, TokenType.IDENTIFIER, TokenType.NATIONAL_STRING, TokenType.HEREDOC_STRING}
)
_NEGATION = re.compile(r"!=|<>|NOT\b", re.IGNORECASE)


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
class _Lowering:
    statement: Statement
    part: Sql
    facts: Catalog
    notices: list[str] = field(default_factory=list)
    nearest: bool = False
    uses_pipe: bool = False
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    sources: dict[int, LqlTable] = field(default_factory=dict)  # id of an exp.Table -> ours that it is
    named: list[tuple[exp.Identifier, LqlTable]] = field(default_factory=list)
    relations: list[str] = field(default_factory=list)

    def run(self) -> None:
        self.tokens = self.part.tokens()
        self.words = {t.text.lower() for t in self.tokens if t.token_type is not TokenType.STRING}
        try:
            tree = _lower_names(self.part.parsed(self.tokens))
            root = build_scope(tree)
            scopes = [] if root is None else list(root.traverse())
            ctes = {
                id(node)
                for scope in scopes
                for node, source in scope.selected_sources.values()
                if isinstance(source, Scope)
            }
        except (LqlSyntaxError, OptimizeError):
            # DuckDB knows a form that sqlglot does not: names are then found by what stands before them.
            self._tables_by_token()
            return
        self._tables(tree, ctes)
        if aliases := self._both_spellings(tree, scopes):
            self.edits += star_edits(self.part.text, scopes, aliases, self.words)
        for name, table in self.named:
            self._name_table(name, table, both=id(name.parent) in aliases)
        if any(table.view == "lql_entities" for table in self.sources.values()):
            self._memberships(scopes)
        self._mentioned_relations(tree)
        if self.nearest:
            self._nearest_defaults(tree)

    def text(self) -> str:
        """The query's text after all edits."""
        pieces, end = [], 0
        for start, stop, new in sorted(self.edits, key=lambda edit: edit[:2]):
            pieces += [self.part.text[end:start], new]
            end = stop
        return "".join([*pieces, self.part.text[end:]])

    # -- tables -------------------------------------------------------------------------------------------

    def _tables(self, tree: exp.Expr, ctes: set[int]) -> None:
        for node in tree.find_all(exp.Table):
            name = node.this
            if isinstance(name, exp.Anonymous) and name.name == NEAREST_FUNCTION:
                self.sources[id(node)] = self._nearest(name, bool(node.alias))
            if not isinstance(name, exp.Identifier) or node.args.get("db") is not None:
                continue
            self.uses_pipe = self.uses_pipe or name.name == "_"
            table = TABLES.get(name.name)
            if table is not None and id(node) not in ctes:
                self.sources[id(node)] = table
                self.named.append((name, table))

    def _both_spellings(self, tree: exp.Expr, scopes: list[Scope]) -> dict[int, Mapping[str, str]]:
        """The aliases of the tables that are read with both spellings, by the id of their exp.Table.

        Those are EDGES, and others where the query names a column by a spelling that no other table beside it has.
        """
        qualified = {(c.table, c.name) for c in tree.find_all(exp.Column) if c.table}
        beside: dict[int, set[str]] = {}
        for scope in scopes:
            ours = [id(node) for node, _ in scope.selected_sources.values() if id(node) in self.sources]
            for key in ours:
                beside[key] = {name for other in ours if other != key for name in self.sources[other].columns}
        found: dict[int, Mapping[str, str]] = {}
        for node in tree.find_all(exp.Table):
            table = self.sources.get(id(node))
            if table is None:
                continue
            named = {
                name
                for name in self.words & table.aliases.keys()
                if name not in beside.get(id(node), ()) or (node.alias_or_name, name) in qualified
            }
            if named or (table.aliases and table.view == table.both):
                found[id(node)] = table.aliases
        return found

    def _tables_by_token(self) -> None:
        if NEAREST_FUNCTION in self.words:
            raise fail(
                self.statement,
                "NEAREST TO in a query that cannot be taken apart; pipe it: "
                "SELECT * FROM EDGES NEAREST TO ... |> SELECT ... FROM _",
            )
        for before, token, after in _triples(self.tokens):
            named = before is not None and _said(before).upper() in ("FROM", "JOIN")
            name = token.text.lower()
            if not named or (after is not None and _said(after) in (".", "(")):
                continue
            self.uses_pipe = self.uses_pipe or name == "_"
            if name in TABLES:
                aliased = after is not None and _said(after).upper() == "AS"
                table = TABLES[name]
                view = table.both if self.words & table.aliases.keys() else table.view
                self._read(token.start, token.end + 1, view, aliased)

    def _name_table(self, name: exp.Identifier, table: LqlTable, *, both: bool) -> None:
        aliased = isinstance(name.parent, exp.Table) and bool(name.parent.alias)
        view = table.both if both else table.view
        self._read(name.meta["start"], name.meta["end"] + 1, view, aliased)

    def _read(self, start: int, end: int, view: str, aliased: bool) -> None:
        # `EDGES.entity` must go on meaning the same table.
        typed = self.part.text[start:end].strip('"')
        alias = "" if aliased else f" AS {typed}"
        self.edits.append((start, end, f"{self.facts.schema}.{view}{alias}"))

    # -- NEAREST TO ---------------------------------------------------------------------------------------

    def _nearest(self, function: exp.Anonymous, aliased: bool) -> LqlTable:
        """The table that NEAREST TO makes of its source, now called in the function's place."""
        source, entity, number, how = function.expressions
        table = NEAREST.get(source.name.lower())
        if table is None:
            raise fail(
                self.statement,
                f"NEAREST TO needs rows with a layer and a feature: write EDGES or FEATURES, not {source.name}",
            )
        layer, basis = int(number.sql()), how.name if isinstance(how, exp.Literal) else ""
        check_layer(self.statement, self.facts, layer)
        self.notices += not_described(self.facts, [layer])
        if basis == "context":
            self.facts.require("inference", "BASIS CONTEXT")
        if not basis:
            basis = "context" if self.facts.has_weights else "embedding"
            if basis == "embedding" and self.facts.opened:
                self.notices.append(
                    "no weights are stored: the entity's embedding was used (BASIS EMBEDDING)"
                )
        self.nearest = True
        last = max(literal.meta["end"] for literal in function.find_all(exp.Literal))
        macro = text_of(call(self.facts.schema, table.view, entity.name, layer, p_basis=basis))
        alias = "" if aliased else f" AS {source.name}"
        self.edits.append((function.meta["start"], self.part.text.index(")", last) + 1, macro + alias))
        return table

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

    def _memberships(self, scopes: list[Scope]) -> None:
        """`layer = 5` on ENTITIES: whether one of its layers is 5."""
        for scope in scopes:
            if isinstance(scope.expression, exp.Select):
                ours = {
                    name: self.sources.get(id(node)) for name, (node, _) in scope.selected_sources.items()
                }
                for column in scope.find_all(exp.Column):
                    table = ours.get(column.table) if column.table else _only(ours)
                    if column.name == "layer" and table is not None and table.view == "lql_entities":
                        self._membership(column)

    def _membership(self, column: exp.Column) -> None:
        predicate = column.parent
        numbers: list[exp.Expr] = []
        if isinstance(predicate, exp.Binary | exp.Between | exp.In) and predicate.this is column:
            numbers = [n for n in predicate.iter_expressions() if n is not column]
        literals = [n.this if isinstance(n, exp.Neg) else n for n in numbers]
        if not literals or not all(isinstance(n, exp.Literal) and n.is_number for n in literals):
            raise fail(
                self.statement,
                "ENTITIES has a list of layers, not one: write layer = 5 (or <, >, IN, BETWEEN), or use the column layers",
            )
        text, name = self.part.text, column.this.meta
        start = column.args["table"].meta["start"] if column.table else name["start"]
        end = max(n.meta["end"] for n in literals) + 1
        end = text.index(")", end) + 1 if isinstance(predicate, exp.In) else end
        comparison = text[name["end"] + 1 : end].strip()
        # `layer <> 5` asks for entities without layer 5, not for those that have another one too.
        negated = _NEGATION.match(comparison)
        if negated:
            comparison = ("= " if negated[0] in ("!=", "<>") else "") + comparison[negated.end() :].strip()
        found = (
            f"len(list_filter({text[start : name['start']]}layers, lambda one_layer: one_layer {comparison}))"
        )
        self.edits.append((start, end, f"({found} {'=' if negated else '>'} 0)"))

    def _mentioned_relations(self, tree: exp.Expr) -> None:
        for equality in tree.find_all(exp.EQ):
            column, value = equality.this, equality.expression
            named = isinstance(column, exp.Column) and column.name.lower() in ("relation", "relationship")
            if named and self.sources and isinstance(value, exp.Literal) and value.is_string:
                self.relations.append(value.name)


def _lower_names(tree: exp.Expr) -> exp.Expr:
    """The tree with its names in lower case, as DuckDB compares them."""
    for name in tree.find_all(exp.Identifier):
        name.set("this", name.name.lower())
    return tree


def _only(tables: dict[str, LqlTable | None]) -> LqlTable | None:
    """The table of a query that has one source alone, and that ours."""
    return next(iter(tables.values())) if len(tables) == 1 else None


def _said(token: Token) -> str:
    """The token's text where it is a word or a sign of SQL; '' for literals and quoted names, whatever they hold."""
    return "" if token.token_type in _QUOTED else token.text


def _triples(tokens: list[Token]) -> Iterator[tuple[Token | None, Token, Token | None]]:
    yield from zip([None, *tokens[:-1]], tokens, [*tokens[1:], None], strict=True)
