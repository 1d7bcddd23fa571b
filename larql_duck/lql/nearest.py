"""`source [AS alias] NEAREST TO "entity" AT LAYER n [BASIS b]` inside a query."""

from __future__ import annotations

import re
from dataclasses import dataclass

from larql_duck.lql.literals import quote
from larql_duck.lql.tokens import TokenKind
from larql_duck.lql.values import Cursor

_BEFORE_SOURCE = ("FROM", "JOIN")
_PLAIN = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_BASES = ("EMBEDDING", "CONTEXT")


@dataclass(frozen=True, slots=True)
class Nearest:
    """One such source: end is the index of the token behind it, lql its canonical text."""

    source: str
    alias: str | None
    entity: str
    layer: int
    basis: str | None
    end: int
    lql: str


def is_nearest(c: Cursor, at: int, start: int) -> bool:
    """Whether the word NEAREST at the index begins the clause, in a query that starts at start."""
    if at == start or c.kinds[at] is not TokenKind.WORD:
        return False
    if c.kinds[at + 1] is TokenKind.STRING:
        c.at = at + 1
        raise c.unexpected("TO")
    return c.has_words(("TO",), at + 1)


def read_nearest(c: Cursor, at: int, start: int) -> tuple[int, Nearest]:
    """The source whose NEAREST stands at the index, and the index where the source's name begins.

    LqlSyntaxError where no table stands before it, or not an entity and a layer behind it.
    """
    first, last, alias_at = _source(c, at, start)
    c.at = at + 2
    entity = c.string("the entity as a string")
    c.expect_words(("AT", "LAYER"))
    c.take("=")
    layer = c.integer("a layer")
    basis = None
    if c.take_words(("BASIS",)):
        c.take("=")
        if c.word == "INDEX":
            raise c.fail("NEAREST compares vectors, and BASIS INDEX has none: write EMBEDDING or CONTEXT")
        basis = c.choice(_BASES).lower()
    source = [_name(c, i) for i in range(first, last + 1, 2)]
    alias = None if alias_at is None else _name(c, alias_at)
    written = ".".join(map(_written, source)) + ("" if alias is None else f" AS {_written(alias)}")
    written += f" NEAREST TO {quote(entity)} AT LAYER {layer}" + (f" BASIS {basis.upper()}" if basis else "")
    return first, Nearest(".".join(source), alias, entity, layer, basis, c.at, written)


def _source(c: Cursor, at: int, start: int) -> tuple[int, int, int | None]:
    """First and last token of the source's name, and the alias's token if it has one, going back from NEAREST."""
    alias: int | None = None
    i = at - 1
    if i - 1 > start and c.has_words(("AS",), i - 1):
        alias, i = i, i - 2
    elif (
        i - 1 > start
        and _is_name(c, i)
        and _is_name(c, i - 1)
        and not c.tokens.is_word(i - 1, *_BEFORE_SOURCE)
    ):
        alias, i = i, i - 1
    last = i
    while i - 2 > start and _is_name(c, i) and c.tokens.is_operator(i - 1, ".") and _is_name(c, i - 2):
        i -= 2
    listed = c.tokens.is_word(i - 1, *_BEFORE_SOURCE) or c.tokens.is_operator(i - 1, ",")
    if not (_is_name(c, i) and listed):
        raise c.fail("NEAREST TO stands behind the name of a table, as in FROM EDGES NEAREST TO", at=at)
    return i, last, alias


def _name(c: Cursor, i: int) -> str:
    """The name that a token stands for."""
    return c.tokens.raw(i) if c.kinds[i] is TokenKind.WORD else c.values[i]


def _written(name: str) -> str:
    """A name as canonical LQL."""
    return name if _PLAIN.fullmatch(name) else "`" + name.replace("`", "``") + "`"


def _is_name(c: Cursor, i: int) -> bool:
    kind = c.kinds[i]
    return (
        kind is TokenKind.NAME
        or kind is TokenKind.WORD
        or (kind is TokenKind.STRING and c.tokens.raw(i)[0] == '"')
    )
