"""The statement table: every statement's syntax, in the order of the help page.

It stands in statements.txt. The parser, the printer, the help, the grammar page, completion and did-you-mean are all
made from its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from larql_duck.lql import bodies, statements
from larql_duck.lql import values as v
from larql_duck.lql.checks import CHECKS
from larql_duck.lql.grammar import Clause, Field, Part, Syntax, Words

_ALONE = (v.Integer(), v.Number(), v.LayerList(), v.LayerList(all_allowed=True), v.Side(), v.Components())
_WHOLE = (
    v.SlotValue(),
    v.AblateValue(),
    v.SteerValue(),
    v.PatchFromValue(),
    bodies.Condition(),
    bodies.Names(),
    bodies.RequireValue(),
)
_VALUES = {kind.syntax: kind for kind in (*_ALONE, *_WHOLE)}
_VERB = re.compile(r"(?P<verb>[A-Z ]+) \((?P<statement>\w+)(?P<preset>[^)]*)\): (?P<about>.+)")
# How an example stands in the table, and how the page marks it: see tests/docs.
_EXAMPLES = {"e.g.": "", "slow:": "slow", "elsewhere:": "elsewhere"}
_FIELD = re.compile(r"(?:(?P<noise>[A-Z ]+) )?(?P<name>\w+)(?P<optional>\??): (?P<value>.+)")


def _read_table(text: str) -> dict[str, tuple[Syntax, ...]]:
    """Group -> its rows, of a text that is written as statements.txt says."""
    shared: dict[str, list[str]] = {}
    groups: dict[str, tuple[Syntax, ...]] = {}
    for block in re.split(r"\n(?=[^\s#])", text):
        first, *lines = block.splitlines()
        indented = [line.strip() for line in lines if line.startswith(" ")]
        lines = [line for found in indented for line in shared.get(found, [found])]
        if first.startswith("*"):
            shared[first] = lines
        elif first.startswith("=="):
            groups[first[3:]] = ()
        elif not first.startswith("#"):
            group, rows = groups.popitem()
            groups[group] = (*rows, _syntax(first, lines))
    return groups


def _syntax(first: str, lines: list[str]) -> Syntax:
    verb = _VERB.fullmatch(first)
    assert verb, first
    head: tuple[Part, ...] = ()
    clauses, hints, example, run, instead = [], {}, "", "", ""
    for line in lines:
        mark, _, rest = line.partition(" ")
        if mark == ">":
            head = tuple(map(_part, _columns(rest)))
        elif mark == "?":
            word, _, hint = rest.partition(": ")
            hints[word] = hint
        elif mark in _EXAMPLES:
            example, run = rest, _EXAMPLES[mark]
        elif mark == "!":
            instead = rest
        else:
            words, name, value, about, *options = _columns(line)
            how = dict.fromkeys(" ".join(options).split(), True)
            clauses.append(Clause(tuple(words.split()), name, _value(value), about, **how))
    return Syntax(
        tuple(verb["verb"].split()),
        getattr(statements, verb["statement"]),
        verb["about"],
        example,
        run,
        head,
        tuple(clauses),
        preset=dict(pair.split("=") for pair in verb["preset"].split()),
        check=CHECKS.get(verb["statement"]),
        hints=hints,
        instead=instead,
    )


def _columns(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def _part(written: str) -> Part:
    if written.startswith("<"):
        body: Part = getattr(bodies, written.strip("<>"))()
        return body
    found = _FIELD.fullmatch(written)
    if found is None:
        return Words(tuple(written.split()))
    noise = tuple((found["noise"] or "").split())
    return Field(found["name"], _value(found["value"]), bool(found["optional"]), noise)


def _value(written: str) -> v.Value:
    """The kind of value whose syntax is written like this."""
    if written in _VALUES:
        return _VALUES[written]
    if written.startswith("= "):
        return v.Constant(True if written == "= TRUE" else written[2:])
    if written.startswith('"'):
        one = v.Text(written.removesuffix(", ..."))
        return v.ListOf(one) if written.endswith(", ...") else one
    pairs = (word.partition("=") for word in written.strip("[]").split(" | "))
    words = {word: stored or word.lower() for word, _, stored in pairs}
    return v.OptionalChoice(words) if written.startswith("[") else v.Choice(words)


GROUPS: Mapping[str, tuple[Syntax, ...]] = _read_table(
    (Path(__file__).parent / "statements.txt").read_text(encoding="utf-8")
)
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
            if isinstance(each.value, v.ListOf) and isinstance(each.value.one, v.Choice):
                yield from each.value.one.words
