"""Which language a text is in, where its statements end, and whether it is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from larql_duck.databases import in_memory
from larql_duck.errors import LqlSyntaxError
from larql_duck.lql.table import BY_VERB
from larql_duck.lql.tokens import split

_BLANK = re.compile(r"(?:[\s;\ufeff]++|--[^\r\n]*+|/\*.*?\*/)*+", re.DOTALL)
_WORD = re.compile(r"[^\W\d]\w*")
# DuckDB's own literals: no backslash escapes, "x" is a name.
_SQL_HIDING = re.compile(
    r"""--[^\r\n]*+
      | /\*.*?(?:\*/|(?P<comment>\Z))
      | [eE]'(?:[^'\\]++|\\.|'')*+(?:'|(?P<escaped>\Z))
      | '(?:[^']++|'')*+(?:'|(?P<string>\Z))
      | "(?:[^"]++|"")*+(?:"|(?P<name>\Z))
      | (?P<tag>\$\w*\$).*?(?:(?P=tag)|(?P<dollar>\Z))""",
    re.DOTALL | re.VERBOSE,
)
_OPEN = ("comment", "escaped", "string", "name", "dollar")
_LOOK_AHEAD = 4096
COMMANDS_WITHOUT_DOT = frozenset({"exit", "quit", "help", "clear"})


@dataclass(frozen=True)
class Segment:
    """One text for the session: language 'lql' or 'sql'; blank lines before it keep its line numbers."""

    language: str
    text: str


def language(text: str) -> str:
    """'blank', 'command', 'lql' or 'sql': LQL begins with one of its verbs or WITH, `!` makes anything SQL."""
    start = _BLANK.match(text)
    rest = text[start.end() if start else 0 :]
    if not rest:
        return "blank"
    if is_command(rest):
        return "command"
    word = _WORD.match(rest)
    return "lql" if word and word[0].upper() in BY_VERB else "sql"


def is_command(text: str) -> bool:
    """Whether a text is a command: it begins with a dot or backslash, or is one of the words that need none."""
    return text[:1] in (".", "\\") or text.rstrip("; \t\r\n").lower() in COMMANDS_WITHOUT_DOT


def is_complete(text: str) -> bool:
    """Whether Enter should run the text: a command, nothing at all, or statements whose last one ends in `;`."""
    kind = language(text)
    if kind in ("blank", "command"):
        return True
    if kind == "sql":
        return _sql_is_complete(text)
    return is_finished(text)


def is_finished(text: str) -> bool:
    """Whether every statement of a text in both languages is ended by its `;`."""
    statements = list(_statements(text))
    return not statements or statements[-1].ended


def segments(text: str, *, each: bool = False) -> list[Segment]:
    """The text as segments in one language each; neighbours in LQL stay together, so that all of them are read first.

    A text that begins as plain SQL is one segment; with `each` (for files) its statements are told apart, too.
    """
    stripped = text.lstrip()
    if stripped.startswith("!") and not each:
        return [Segment("sql", stripped[1:])]
    if not each and language(text) == "sql":
        return [Segment("sql", text)]
    done: list[Segment] = []
    for statement in _statements(text):
        start, end = statement.start, statement.end
        if statement.language == "sql":
            done.append(Segment("sql", text[start:end].strip().removeprefix("!")))
        elif done and done[-1].language == "lql":
            before = done.pop().text
            done.append(Segment("lql", before + text[len(before) : end]))
        else:
            done.append(Segment("lql", re.sub(r"[^\r\n]", " ", text[:start]) + text[start:end]))
    return done


@dataclass(frozen=True)
class _Statement:
    """One statement: its language, its place, and whether a semicolon ends it."""

    language: str
    start: int
    end: int
    ended: bool


def _statements(text: str) -> Iterator[_Statement]:
    """The statements of a text in both languages, each cut by the rules of its own. Blank ones are left out."""
    start = 0
    while start < len(text):
        kind = language(text[start : start + _LOOK_AHEAD])
        if kind == "blank" and len(text) - start > _LOOK_AHEAD:
            kind = language(text[start:])
        end = _sql_end(text, start) if kind == "sql" else _lql_end(text, start)
        if kind != "blank" or language(text[start:end]) != "blank":
            yield _Statement("sql" if kind == "sql" else "lql", start, end, end < len(text))
        start = end + 1


def _lql_end(text: str, start: int) -> int:
    """Where the LQL statement that begins at start ends: at its semicolon, or the text's end."""
    try:
        return next(split(text, start))[1]
    except LqlSyntaxError:
        # The parser says where the open literal begins.
        return len(text)


def _sql_end(text: str, start: int) -> int:
    """The same for DuckDB's statements."""
    for match in _SQL_HIDING.finditer(text, start):
        semicolon = text.find(";", start, match.start())
        if semicolon >= 0:
            return semicolon
        start = match.end()
    semicolon = text.find(";", start)
    return semicolon if semicolon >= 0 else len(text)


def _sql_is_complete(text: str) -> bool:
    literals = list(_SQL_HIDING.finditer(text))
    if literals and any(literals[-1][name] is not None for name in _OPEN):
        return False
    return _SQL_HIDING.sub(" ", text).rstrip().endswith(";")


def is_duckdb(text: str) -> bool:
    """Whether DuckDB's parser accepts the text, so that `!` in front of it would run it."""
    import duckdb

    try:
        return bool(in_memory().extract_statements(text))
    except (duckdb.Error, UnicodeError):
        return False
