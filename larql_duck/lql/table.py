"""The statement table: every statement's syntax, in the order of the help page.

The parser, the printer, the help, the grammar page, completion and did-you-mean are all made from its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

from larql_duck.lql.grammar import Syntax
from larql_duck.lql.rows_ask import INTROSPECTION, QUERIES
from larql_duck.lql.rows_do import MODELS, MUTATIONS, PATCHES
from larql_duck.lql.values import Components

GROUPS: Mapping[str, tuple[Syntax, ...]] = {
    "Models": MODELS,
    "Queries": QUERIES,
    "Looking around": INTROSPECTION,
    "Editing": MUTATIONS,
    "Patches": PATCHES,
}
STATEMENTS: tuple[Syntax, ...] = tuple(row for rows in GROUPS.values() for row in rows)
for _row in STATEMENTS:
    _row.statement.syntax = (*_row.statement.syntax, _row)


# ---- look-ups

BY_VERB: dict[str, tuple[Syntax, ...]] = {
    first: tuple(sorted((r for r in STATEMENTS if r.verb[0] == first), key=lambda r: -len(r.verb)))
    for first in dict.fromkeys(row.verb[0] for row in STATEMENTS)
}
"""Rows by the first word of their verb, longest verb first."""


def find(name: str) -> list[Syntax]:
    """The rows whose verb begins with these words (any case); all rows where the words name a group; else none."""
    wanted = name.upper().split()
    for group, rows in GROUPS.items():
        if group.upper().split() == wanted:
            return list(rows)
    return [row for row in STATEMENTS if list(row.verb[: len(wanted)]) == wanted] if wanted else []


_not_run: dict[str, str] = {}


def declare_not_run(reasons: Mapping[str, str]) -> None:
    """Say which statements this version parses and does not run: verb (as in Syntax.name) -> one line for the user."""
    unknown = set(reasons) - {row.name for row in STATEMENTS}
    if unknown:
        raise ValueError(f"no such statements: {', '.join(sorted(unknown))}")
    _not_run.clear()
    _not_run.update(reasons)


def not_run(row: Syntax) -> str | None:
    """Why this version does not run the row's statement, or None if it does."""
    return _not_run.get(row.name)


@cache
def keywords() -> frozenset[str]:
    """Every word of the language outside SQL, in upper case."""
    return frozenset(_words())


def _words() -> Iterator[str]:
    for row in STATEMENTS:
        # Every second piece between quotes is text.
        for piece in f"{row.name} {row.syntax}".split('"')[::2]:
            for word in re.split(r"[\s()\[\],|=]+", piece):
                if word.isupper() and word.replace("_", "").isalnum():
                    yield word
        for each in row.clauses:
            yield from each.words
            if isinstance(each.value, Components):
                yield from each.value.words
