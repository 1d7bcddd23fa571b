"""What can be typed next: completion from the parser, the statement table and the names in the session."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.cli.render import MODES
from larql_duck.errors import LqlSyntaxError
from larql_duck.lql.literals import quote
from larql_duck.lql.parser import parse
from larql_duck.lql.sql import QUERY_WORDS
from larql_duck.lql.table import BY_VERB, STATEMENTS, keywords
from larql_duck.lql.tokens import Tokens, tokenize

if TYPE_CHECKING:
    from larql_duck.session import Session

MOST = 200
_LQL_TABLES = ("EDGES", "FEATURES", "ENTITIES", "RELATIONS", "LAYERS", "TOKENS", "FACTS", "PATCHES")
# A word that no statement has, put where the cursor is: the parser then says what could stand there.
_NOTHING = "\u00b6"
_LAST_WORD = re.compile(r"[\w]*\Z")
_SQL_TEXT = """
    SELECT FROM WHERE GROUP BY HAVING ORDER LIMIT OFFSET JOIN LEFT INNER CROSS ON USING AS AND OR NOT IN IS NULL LIKE ILIKE
    BETWEEN CASE WHEN THEN ELSE END DISTINCT UNION ALL EXCEPT INTERSECT QUALIFY WITH ASC DESC COUNT NEAREST TO AT LAYER BASIS
"""
_SQL_WORDS = _SQL_TEXT.split()


@dataclass(frozen=True)
class Completion:
    """One proposal: text replaces the last `length` characters before the cursor; about is shown beside it."""

    text: str
    length: int
    about: str = ""


class NameLookup:
    """Names of the session's tables, columns, relations and entities, looked up when first asked for.

    Every look-up that fails gives nothing: completion never gets in the way.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lists: dict[str, list[str]] = {}
        self._vindex: object = None

    def tables(self) -> list[str]:
        """LQL's tables, those of the vindex, and those of the connection."""
        return [*_LQL_TABLES, *self.stored_tables()]

    def stored_tables(self) -> list[str]:
        """The tables and views of the vindex and of the connection, sorted, each once."""
        sql = "SELECT DISTINCT table_name FROM information_schema.tables WHERE NOT starts_with(table_name, 'lql_')"
        return self._list("tables", sql)

    def columns(self) -> list[str]:
        """Names of columns of all tables, sorted."""
        return self._list("columns", "SELECT DISTINCT column_name FROM information_schema.columns")

    def relations(self) -> list[str]:
        """Names of the vindex's relations, sorted."""
        return self._list("relations", f"SELECT relation FROM {self.session.schema}.relations")

    def entities(self, start: str) -> list[str]:
        """Entities that begin with the text, best known first."""
        sql = (
            f"SELECT entity FROM {self.session.schema}.entities WHERE starts_with(lower(entity), lower($start)) "
            f"ORDER BY n_facts DESC, entity LIMIT {MOST}"
        )
        return self._ask(sql, {"start": start})

    def paths(self, typed: str) -> list[str]:
        """Directories and files that begin like this."""
        return _paths(typed)

    def _list(self, name: str, sql: str) -> list[str]:
        if self._vindex is not self.session.vindex:
            self._lists.clear()
            self._vindex = self.session.vindex
        if name not in self._lists:
            self._lists[name] = sorted(self._ask(sql, None))
        return self._lists[name]

    def forget(self) -> None:
        """Look everything up anew: a statement may have made tables."""
        self._lists.clear()

    def _ask(self, sql: str, parameters: dict[str, str] | None) -> list[str]:
        try:
            # On the session's own connection it would end a result that is not read to its end.
            with self.session.cursor() as cursor:
                return [str(row[0]) for row in cursor.execute(sql, parameters).fetchall()]
        except Exception:
            return []


def complete(text: str, names: NameLookup) -> Iterator[Completion]:
    """Proposals for the text before the cursor, best first, at most MOST, each text once."""
    seen: set[str] = set()
    for proposal in _complete(text, names):
        if proposal.text not in seen and len(seen) < MOST:
            seen.add(proposal.text)
            yield proposal


def _complete(text: str, names: NameLookup) -> Iterator[Completion]:
    opened = _open_string(text)
    if opened is not None:
        yield from _in_string(*opened, names)
        return
    word = _LAST_WORD.search(text)
    assert word is not None
    typed, before = word[0], text[: word.start()]
    try:
        tokens = tokenize(before + _NOTHING)
    except LqlSyntaxError:
        return
    first = _statement_start(tokens)
    verb = tokens.values[first] if first < len(tokens) - 2 else ""
    if verb in QUERY_WORDS or _in_sql(tokens, first):
        yield from _in_query(tokens, typed, names)
    yield from _matching(typed, _expected(before[tokens.starts[first] :] if first else before), _about)


# ---- strings


def _open_string(text: str) -> tuple[str, str, str] | None:
    """(text before, quote, typed so far) if the cursor is inside a string."""
    try:
        tokenize(text)
        return None
    except LqlSyntaxError as error:
        unfinished = error
    if "unfinished string" not in unfinished.message:
        return None
    lines = text.split("\n")
    at = sum(len(line) + 1 for line in lines[: unfinished.line - 1]) + unfinished.column - 1
    return text[:at], text[at], text[at + 1 :]


def _in_string(before: str, mark: str, typed: str, names: NameLookup) -> Iterator[Completion]:
    kind = _string_kind(before)
    candidates: Iterable[str] = ()
    if kind == "relation":
        candidates = names.relations()
    elif kind == "path":
        candidates = names.paths(typed)
    elif kind == "entity" and typed:
        candidates = names.entities(typed)
    for candidate in candidates:
        if candidate.casefold().startswith(typed.casefold()):
            written = (
                quote(candidate)[1:-1] if mark == '"' else candidate.replace("\\", "\\\\").replace("'", "''")
            )
            yield Completion(written + ("" if candidate.endswith("/") else mark), len(typed), kind)


_AFTER = {
    "entity": r"(?:DESCRIBE|WALK|OF|TO|ENTITIES|ENTITY|PATHS\s+FROM|entity|subject|target|object)\s*(?:=|\bIN\s*\()?\s*",
    "relation": r"(?:RELATIONS?|relationship)\s*(?:=|\bIN\s*\()?\s*",
    "path": r"(?:USE|MERGE|STATS|DIFF|AUDIT|AGAINST|TEXTS|INTO|PATCH|SAVE|PACK|\.read|\.output)\s*",
}


@cache
def _after(kind: str) -> re.Pattern[str]:
    more = r'(?:"[^"]*"\s*,\s*)*' if kind != "path" else r'(?:"[^"]*"\s*|CURRENT\s*)?'
    return re.compile(_AFTER[kind] + more + r"\Z", re.IGNORECASE)


def _string_kind(before: str) -> str:
    """What the string that begins here names: an entity, a relation, a path or something else."""
    tail = before[-300:]
    return next((kind for kind in ("relation", "entity", "path") if _after(kind).search(tail)), "")


def _paths(typed: str) -> list[str]:
    """Directories and files that begin like this."""
    directory, _, start = typed.rpartition("/")
    try:
        entries = sorted(Path(directory or ("/" if typed.startswith("/") else ".")).expanduser().iterdir())
    except OSError:
        return []
    prefix = f"{directory}/" if "/" in typed else ""
    return [
        # A vindex is a directory, and an end: nothing in it is opened by itself.
        f"{prefix}{e.name}{'/' if e.is_dir() and e.suffix != '.vindex' else ''}"
        for e in entries
        if not e.name.startswith(".") or start.startswith(".")
    ]


# ---- words


def _statement_start(tokens: Tokens) -> int:
    """Index of the first token of the statement (or pipe stage) that the last token belongs to."""
    starts = [i + 1 for i in range(len(tokens)) if tokens.is_operator(i, ";", "|>")]
    return starts[-1] if starts else 0


def _in_sql(tokens: Tokens, first: int) -> bool:
    """Whether a query or a condition has begun in the statement."""
    return any(tokens.is_word(i, "SELECT", "WHERE") for i in range(first, len(tokens)))


def _in_query(tokens: Tokens, typed: str, names: NameLookup) -> Iterator[Completion]:
    last = len(tokens) - 3
    if last >= 0 and (
        tokens.is_word(last, "FROM", "JOIN") or (tokens.is_operator(last, ",") and _in_from(tokens, last))
    ):
        yield from _matching(typed, [*names.tables(), "_"], lambda _: "table")
        return
    yield from _matching(typed, names.columns(), lambda _: "column")
    yield from _matching(typed, _SQL_WORDS, lambda _: "")


def _in_from(tokens: Tokens, at: int) -> bool:
    """Whether a comma stands in a list of tables."""
    for i in range(at, -1, -1):
        if tokens.is_word(i, "FROM", "JOIN"):
            return True
        if tokens.is_word(i, "SELECT", "WHERE", "GROUP BY", "ORDER BY", "USING", "ON") or tokens.is_operator(
            i, "(", ";"
        ):
            return False
    return False


def _expected(before: str) -> list[str]:
    """The keywords that the parser would take here."""
    try:
        parse(before + " " + _NOTHING)
    except LqlSyntaxError as error:
        return [word for word in error.expected if word.isupper()]
    return []


def _matching(typed: str, candidates: Iterable[str], about: Callable[[str], str]) -> Iterator[Completion]:
    lower = typed and typed.islower()
    for candidate in candidates:
        if candidate.casefold().startswith(typed.casefold()) and candidate != typed:
            # Keywords follow the case that was begun; names keep their own.
            keyword = candidate.isupper() and lower and candidate.split()[0] in all_keywords()
            yield Completion(candidate.lower() if keyword else candidate, len(typed), about(candidate))


@cache
def all_keywords() -> frozenset[str]:
    """LQL's keywords and SQL's, in capitals."""
    return keywords() | frozenset(_SQL_WORDS)


def _about(word: str) -> str:
    """What a word that begins a statement does."""
    rows = BY_VERB.get(word, ())
    return rows[-1].about if len(rows) == 1 else ""


# ---- commands


def complete_command(text: str, commands: Iterable[str]) -> Iterator[Completion]:
    """Proposals for a line that begins with a dot."""
    name, space, rest = text.lstrip().partition(" ")
    if not space:
        yield from _matching(name, commands, lambda _: "")
    elif name == ".mode":
        yield from _matching(rest, MODES, lambda _: "")
    elif name == ".help":
        candidates = [row.name for row in STATEMENTS]
        yield from (Completion(c, len(rest), _row_about(c)) for c in candidates if c.startswith(rest.upper()))
    elif name in (".read", ".output"):
        yield from (Completion(p, len(rest)) for p in _paths(rest) if p.startswith(rest))


def _row_about(name: str) -> str:
    return next((row.about for row in STATEMENTS if row.name == name), "")
