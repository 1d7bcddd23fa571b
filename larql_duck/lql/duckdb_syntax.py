"""DuckDB's own parser, asked whether a text is a SELECT. Nothing is run."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from larql_duck.databases import in_memory
from larql_duck.lql.tokens import TokenKind, Tokens
from larql_duck.spelling import closest

if TYPE_CHECKING:
    import duckdb

_KEYWORDS_TEXT = """
    SELECT DISTINCT FROM WHERE GROUP HAVING ORDER LIMIT OFFSET JOIN INNER LEFT RIGHT FULL OUTER CROSS USING UNION
    EXCEPT INTERSECT QUALIFY WINDOW BETWEEN LIKE ILIKE AND NOT NULL CASE WHEN THEN ELSE END NEAREST VALUES RECURSIVE
"""
_KEYWORDS = tuple(_KEYWORDS_TEXT.split())
_BEFORE_COLUMN = ("SELECT", "DISTINCT", "WHERE", "HAVING", "AND", "OR", "ON", "BY", "ORDER BY", "GROUP BY")

# Kinds of DuckDB's statements after which there is nothing to show.
_WITHOUT_ROWS = frozenset(
    ("ALTER", "ATTACH", "CREATE", "DETACH", "DROP", "LOAD", "SET", "TRANSACTION", "VARIABLE_SET")
)
_local = threading.local()


def duckdb_syntax_error(text: str) -> tuple[str, int] | None:
    """DuckDB's objection to a text that should be one SELECT, and the character offset it points to; None if it has none."""
    import duckdb

    connection = _connection()
    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as error:
        return _objection(connection, text, str(error))
    if len(statements) == 1:
        kind = statements[0].type
        # A pivot whose columns come from the data is two statements to DuckDB; it might end in an INSERT as well.
        if kind == duckdb.StatementType.SELECT or (kind == duckdb.StatementType.MULTI and _is_query(text)):
            return None
    return "only SELECT may stand here", 0


class SqlStatement(NamedTuple):
    """A statement of DuckDB's SQL: its text, the names of its parameters, whether it has something to show."""

    text: str
    parameters: set[str]
    gives_rows: bool


def sql_statements(text: str) -> list[SqlStatement]:
    """The statements of a text in DuckDB's SQL; a text that is none is one."""
    import duckdb

    try:
        return [
            SqlStatement(
                s.query.strip(),
                {*s.named_parameters},
                s.type.name not in _WITHOUT_ROWS,
            )
            for s in _connection().extract_statements(text)
        ]
    except (duckdb.Error, UnicodeError):
        # Running it says why.
        return [SqlStatement(text, set(), True)]


def _connection() -> duckdb.DuckDBPyConnection:
    """An empty database of this thread's own."""

    if not hasattr(_local, "connection"):
        _local.connection = in_memory()
    connection: duckdb.DuckDBPyConnection = _local.connection
    return connection


def _is_query(text: str) -> bool:
    """Whether sqlglot reads the text as a query."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        return isinstance(sqlglot.parse_one(text, dialect="duckdb"), exp.Query)
    except (SqlglotError, RecursionError):
        return False


def hint(tokens: Tokens, first: int, index: int) -> tuple[str, str | None]:
    """What to add to DuckDB's message at token index, and the keyword that a word near it was meant to be."""
    if tokens.kinds[index] is TokenKind.STRING and tokens.raw(index).startswith('"'):
        name = tokens.values[index]
        return f' (in LQL "{name}" is a string: write `{name}` or AS "{name}" for a name)', None
    for i in (index, index - 1):
        if i >= max(first, 1) and _is_reserved(tokens, i):
            return f" (a column of that name is written `{tokens.raw(i)}`)", None
    for i in (index, index - 1, index - 2):
        if i <= first or tokens.kinds[i] is not TokenKind.WORD or len(tokens.values[i]) < 3:
            continue
        word = tokens.values[i]
        meant = closest(word, _KEYWORDS)
        if meant and meant != word and word not in _KEYWORDS:
            return f"; did you mean {meant} instead of {tokens.raw(i)}?", meant
    return "", None


def _is_reserved(tokens: Tokens, i: int) -> bool:
    """Whether a word of DuckDB's own stands where a column's name does."""
    if tokens.kinds[i] is not TokenKind.WORD or not (
        tokens.is_operator(i - 1, ",") or tokens.is_word(i - 1, *_BEFORE_COLUMN)
    ):
        return False
    rows = _connection().execute(
        "SELECT 1 FROM duckdb_keywords() WHERE keyword_name = lower(?) AND keyword_category = 'reserved'",
        [tokens.values[i]],
    )
    return rows.fetchone() is not None


def _objection(connection: Any, text: str, fallback: str) -> tuple[str, int]:
    """Message and offset, from json_serialize_sql, which reports positions as data (in bytes)."""
    message, position = fallback.split("\n", 1)[0], 0
    row = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchone()
    answer = json.loads(row[0])
    if answer.get("error"):
        message = answer.get("error_message", message)
        position = int(answer.get("position", 0) or 0)
    message = " ".join(message.removeprefix("Parser Error: ").split("\n", 1)[0].split())
    return message, len(text.encode()[:position].decode(errors="ignore"))
