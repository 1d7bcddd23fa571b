"""Stars over tables whose columns have two spellings: `SELECT *` shows LQL's, a query around it may name either.

A star in FROM (a derived table, a CTE) passes on the other spellings that the query names; every other star leaves
them out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from sqlglot import exp
from sqlglot.optimizer.scope import Scope

TextEdit = tuple[int, int, str]
"""Offsets [start, end) of a text, and what stands there instead."""

Aliases = Mapping[str, str]
"""Other spelling -> the column that it means."""


def star_edits(
    text: str, scopes: Iterable[Scope], sources: Mapping[int, Aliases], words: Collection[str]
) -> list[TextEdit]:
    """The edits of a query's text that make its stars show one spelling.

    scopes are those of the query, inner ones first. sources: id of an exp.Table -> the aliases that its columns have.
    words: every name that the query mentions, in lower case.
    """
    stars = _Stars(text, sources, words)
    for scope in (all_scopes := list(scopes)):
        if scope.is_cte:
            stars.passed_by(scope)
    if all_scopes:
        stars.visit(all_scopes[-1], passes=False)
    return list(stars.edits.values())


class _Stars:
    def __init__(self, text: str, sources: Mapping[int, Aliases], words: Collection[str]) -> None:
        self.text, self.sources, self.words = text, sources, words
        self.edits: dict[int, TextEdit] = {}
        self._passed: dict[int, Aliases] = {}

    def passed_by(self, scope: Scope) -> Aliases:
        """The other spellings that a derived table or CTE has beside the columns that its star shows."""
        key = id(scope.expression)
        if key not in self._passed:
            self._passed[key] = {}
            self._passed[key] = self.visit(scope, passes=not _is_recursive(scope))
        return self._passed[key]

    def visit(self, scope: Scope, *, passes: bool) -> Aliases:
        """Edit the stars of a scope and of those within it, and give what it passes on."""
        inner = [self.visit(s, passes=passes and scope.is_udtf) for s in scope.subquery_scopes]
        if scope.is_udtf:
            return inner[0] if inner else {}
        if isinstance(scope.expression, exp.SetOperation):
            return self._set_operation(scope, passes)
        return (
            self._select(scope, scope.expression, passes) if isinstance(scope.expression, exp.Select) else {}
        )

    def _set_operation(self, scope: Scope, passes: bool) -> Aliases:
        before = dict(self.edits), dict(self._passed)
        halves = scope.set_operation_scopes
        first, second = (self.visit(half, passes=passes) for half in halves)
        if first == second:
            return first
        # Only one of the two has them: columns must pair up, so neither may.
        self.edits, self._passed = before
        for half in halves:
            self.visit(half, passes=False)
        return {}

    def _select(self, scope: Scope, select: exp.Select, passes: bool) -> Aliases:
        aliases: dict[str, Aliases] = {}
        for name, (node, source) in scope.selected_sources.items():
            found = self.passed_by(source) if isinstance(source, Scope) else self.sources.get(id(node), {})
            if not _is_filter(node):
                aliases[name] = found
        passed: dict[str, str] = {}
        for star, qualifier in _stars_of(select):
            excluded = {column.name for column in star.args.get("except_") or ()}
            replaced = {e.alias for e in star.args.get("replace") or ()}
            replaced |= {e.this.name for e in star.args.get("rename") or ()}
            left_out: list[str] = []
            for name in [qualifier] if qualifier else aliases:
                before = f"{name}." if not qualifier and len(aliases) > 1 else ""
                for other, column in aliases.get(name, {}).items():
                    if other in excluded | replaced:
                        # Who speaks of it means the column, whatever its name.
                        left_out += [before + column] if column not in excluded else []
                    elif passes and other in self.words:
                        passed[other] = column
                    else:
                        left_out.append(before + other)
            if left_out:
                self._exclude(select, star, ", ".join(left_out))
        return passed

    def _exclude(self, select: exp.Select, star: exp.Star, names: str) -> None:
        at = star.meta.get("start", 0)
        if self.text[at : at + 1] != "*":
            # FROM without SELECT.
            table = select.args["from_"].this.this
            if isinstance(table, exp.Identifier):
                at = self.text.upper().rindex("FROM", 0, table.meta["start"])
                self.edits[at] = (at, at, f"SELECT * EXCLUDE ({names}) ")
        elif excluded := star.args.get("except_"):
            at = min(name.meta["start"] for name in excluded[0].find_all(exp.Identifier))
            end = max(name.meta["end"] for name in excluded[0].find_all(exp.Identifier)) + 1
            in_brackets = self.text[:at].rstrip().endswith("(")
            listed = f"{names}, {self.text[at:end]}"
            self.edits[at] = (at, end, listed if in_brackets else f"({listed})")
        else:
            self.edits[at] = (at + 1, at + 1, f" EXCLUDE ({names})")


def _stars_of(select: exp.Select) -> Iterator[tuple[exp.Star, str]]:
    """The stars among a query's columns, each with the table's name before it or ''."""
    for projection in select.expressions:
        inner = projection.this if isinstance(projection, exp.Column | exp.Columns) else projection
        if isinstance(inner, exp.Star):
            yield inner, projection.table if isinstance(projection, exp.Column) else ""


def _is_recursive(scope: Scope) -> bool:
    clause = scope.expression.find_ancestor(exp.With)
    return scope.is_cte and clause is not None and bool(clause.recursive)


def _is_filter(node: exp.Expr) -> bool:
    """Whether a source only chooses rows, and shows none of its columns."""
    join = node.parent
    return isinstance(join, exp.Join) and join.kind in ("SEMI", "ANTI")
