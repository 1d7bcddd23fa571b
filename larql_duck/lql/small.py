"""The reference's own small SELECT and WHERE grammar, which is tried before DuckDB's.

It allows what SQL does not: any keyword as a column (`SELECT from FROM EDGES WHERE and = 5`), any value behind any
operator (`layer IN 5`, `entity IN ()`). Accepting returns rewrites: token index -> (canonical LQL, DuckDB text) for
the tokens that DuckDB would read differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from larql_duck.lql.cursor import Cursor
from larql_duck.lql.literals import literal_token
from larql_duck.lql.nearest import Nearest
from larql_duck.lql.tokens import Kind

Rewrites = dict[int, tuple[str, str]]

SOURCES = frozenset({"EDGES", "FEATURES", "ENTITIES"})

# Words that DuckDB does not take as a column's name, or only in some places (duckdb_keywords()).
_RESERVED_TEXT = """
    all analyse analyze and anti any array as asc asof asymmetric at authorization between bigint binary
    bit boolean both by case cast char character check coalesce collate collation column columns
    concurrently constraint create cross dec decimal default deferrable desc describe distinct do else
    end except exists extract false fetch float for foreign freeze from full generated glob group
    grouping grouping_id having ilike in initially inner inout int integer intersect interval into is
    isnull join lambda lateral leading left like limit map national natural nchar none not notnull null
    nullif numeric offset on only or order out outer overlaps overlay pivot pivot_longer pivot_wider
    placing position positional precision primary qualify real references returning right row select
    semi setof show similar smallint some struct substring summarize symmetric table tablesample then
    time timestamp to trailing treat trim true try_cast tuple union unique unpack unpivot using values
    varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists
    xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
"""
RESERVED = frozenset(_RESERVED_TEXT.split())

_OPERATORS = frozenset({"=", "!=", ">", "<", ">=", "<="})
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
MAX_LISTS = 50


class _NotSmall(Exception):
    """The tokens are not of the small grammar."""


def small_query(c: Cursor, first: int, end: int, nearest: Mapping[int, Nearest]) -> Rewrites | None:
    """Rewrites if the tokens [first, end), which begin with SELECT, are a query of the small grammar, else None."""
    reader = _Reader(c, first + 1, end)
    try:
        reader.query(nearest)
    except _NotSmall:
        return None
    return reader.rewrites


def small_condition(c: Cursor, first: int, end: int) -> Rewrites | None:
    """Rewrites if the tokens [first, end) are comparisons joined by AND, else None."""
    reader = _Reader(c, first, end)
    try:
        reader.conditions()
        reader.finish()
    except _NotSmall:
        return None
    return reader.rewrites


def small_value(c: Cursor, first: int, end: int) -> Rewrites | None:
    """Rewrites if the tokens [first, end) are a literal or a list of literals, else None."""
    reader = _Reader(c, first, end)
    try:
        reader.value()
        reader.finish()
    except _NotSmall:
        return None
    return reader.rewrites


class _Reader:
    def __init__(self, c: Cursor, at: int, end: int) -> None:
        self.c, self.at, self.end = c, at, end
        self.rewrites: Rewrites = {}
        self.depth = 0

    # ---- tokens

    def take_word(self, word: str) -> bool:
        if self.at < self.end and self.c.tokens.is_word(self.at, word):
            self.at += 1
            return True
        return False

    def take(self, operator: str) -> bool:
        if self.at < self.end and self.c.tokens.is_operator(self.at, operator):
            self.at += 1
            return True
        return False

    def finish(self) -> None:
        if self.at != self.end:
            raise _NotSmall

    # ---- rules

    def query(self, nearest: Mapping[int, Nearest]) -> None:
        if not self.take("*"):
            self.field_item()
            while self.take(","):
                self.field_item()
        if not self.take_word("FROM") or self.at >= self.end:
            raise _NotSmall
        if self.c.kinds[self.at] is not Kind.WORD or self.c.values[self.at] not in SOURCES:
            raise _NotSmall
        found = nearest.get(self.at)
        if found is not None and found.alias is not None:
            raise _NotSmall
        self.at = self.at + 1 if found is None else found.end
        if self.take_word("WHERE"):
            self.conditions()
        if self.take_word("ORDER BY") or (self.take_word("ORDER") and self.take_word("BY")):
            self.field()
            if not self.take_word("ASC"):
                self.take_word("DESC")
        if self.take_word("LIMIT"):
            if self.at >= self.end or not (
                self.c.kinds[self.at] is Kind.NUMBER and self.c.values[self.at].isdigit()
            ):
                raise _NotSmall
            self.at += 1
        self.finish()

    def field_item(self) -> None:
        if not self.take("*"):
            self.field()

    def field(self) -> None:
        c, i = self.c, self.at
        if i >= self.end:
            raise _NotSmall
        if c.kinds[i] is Kind.WORD:
            typed = c.tokens.raw(i)
            if not (typed.isidentifier() and typed.isascii()):
                raise _NotSmall
            if typed.lower() in RESERVED:
                self.rewrites[i] = (f"`{typed.lower()}`", f'"{typed.lower()}"')
        elif c.kinds[i] is not Kind.NAME:
            raise _NotSmall
        self.at += 1

    def conditions(self) -> None:
        self.condition()
        while self.take_word("AND"):
            self.condition()

    def condition(self) -> None:
        self.field()
        c, i = self.c, self.at
        if i >= self.end:
            raise _NotSmall
        operator = c.values[i]
        if c.kinds[i] is Kind.OPERATOR and operator in _OPERATORS:
            self.at += 1
            self.value()
        elif c.kinds[i] is Kind.WORD and operator in ("LIKE", "IN"):
            self.at += 1
            start = self.at
            self.value()
            if operator == "IN" and not c.tokens.is_operator(start, "("):
                self.bracket(start, self.at - 1)
        else:
            raise _NotSmall

    def bracket(self, first: int, last: int) -> None:
        """`IN 5` and `IN "x"` mean a list of one."""
        for i in range(first, last + 1):
            lql, text = literal_token(self.c.tokens, i)
            opening, closing = "(" if i == first else "", ")" if i == last else ""
            self.rewrites[i] = (opening + lql + closing, opening + text + closing)

    def value(self) -> None:
        c = self.c
        negative = self.take("-")
        if self.at >= self.end:
            raise _NotSmall
        kind = c.kinds[self.at]
        if kind is Kind.NUMBER:
            if not (_NUMBER.fullmatch(c.tokens.raw(self.at)) or self.at in c.tokens.bound):
                raise _NotSmall
        elif kind is Kind.STRING and not negative:
            pass
        elif not negative and self.take("("):
            self.list_value()
            return
        else:
            raise _NotSmall
        self.at += 1

    def list_value(self) -> None:
        opening = self.at - 1
        self.depth += 1
        if self.depth > MAX_LISTS:
            raise _NotSmall
        if self.take(")"):
            # DuckDB has no empty list of values; nothing equals NULL, and nothing is in an empty list.
            self.rewrites[opening] = ("(", "(NULL")
        else:
            self.value()
            while self.take(","):
                self.value()
            if not self.take(")"):
                raise _NotSmall
        self.depth -= 1
