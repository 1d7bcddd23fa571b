"""DuckDB's errors as ours: one line that says what is wrong and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import duckdb

from larql_duck.catalog import tables as catalog
from larql_duck.catalog.sql_files import PUBLIC, PYTHON, sql_files
from larql_duck.errors import NOTHING_RUN, LarqlError, LqlSyntaxError, QueryError, SemanticError, VindexError
from larql_duck.lowering.names import TABLES, LqlTable
from larql_duck.lql.parser import parse
from larql_duck.spelling import did_you_mean

if TYPE_CHECKING:
    from larql_duck.lql.statements import Statement
    from larql_duck.lql.tokens import Position
    from larql_duck.session.failures import Failures

_COLUMN = re.compile(
    r'Referenced column "((?:[^"]|"")*)" not found|does not have a column named "((?:[^"]|"")*)"'
)
_TABLE = re.compile(r"Table with name (\S+) does not exist")
_MISSING = re.compile(r"(?:Table|Table Function|Scalar Function) with name \"?(\w+)\"? does not exist")
_VALUE = re.compile(r"Could not convert string '(.*?)' to ")
_QUALIFIER = re.compile(r'Referenced table "((?:[^"]|"")*)" not found')


def query_error(
    error: duckdb.Error, sql: str, failures: Failures, how_to_open: str | None = None
) -> LarqlError:
    """The error of a plain SQL query, with a hint where one fits; how_to_open: no vindex is open, and how one is."""
    message = str(error)
    cause = failures.behind(message)
    if cause is not None:
        return cause
    line = _one_line(message)
    missing = _MISSING.search(message)
    if how_to_open is not None and missing is not None and missing[1].lower() in _of_a_vindex():
        return VindexError(f"no vindex is open, and {missing[1]} is one's: {how_to_open}")
    column = _name(_COLUMN.search(message))
    if column in _LQL_COLUMNS:
        # DuckDB's candidates and its word on LATERAL lead nowhere.
        line = f"no column {column} here: plain SQL calls it {_LQL_COLUMNS[column]}; LQL knows both names"
    elif column is not None and f'"{column}"' in sql:
        text = "'" + column.replace('""', '"').replace("'", "''") + "'"
        line += f"; double quotes name a column: for text write {text}"
    elif (verb := _verb_of_lql(sql)) is not None:
        line += f"; {verb} as LQL has it is run by lql: larql-duck lql, s.lql(...)"
    elif isinstance(error, duckdb.ParserException) and ";" in sql.rstrip("; \n"):
        line += f"; {NOTHING_RUN}"
    return QueryError(line, sql=sql)


def _verb_of_lql(text: str) -> str | None:
    """The verb of a text that is LQL and no query."""
    try:
        verbs = [s.verb for s in parse(text) if s.kind not in ("Pipe", "Select")]
    except LqlSyntaxError:
        return None
    return verbs[0] if verbs else None


_LQL_COLUMNS = {"entity": "subject", "target": "object", "relationship": "relation"}


@cache
def _of_a_vindex() -> frozenset[str]:
    """Names that a vindex brings: tables, views, macros."""
    macros = (text for _, text in (*sql_files(PUBLIC), *sql_files(PYTHON)))
    names = (name for text in macros for name in re.findall(r"CREATE (?:MACRO|VIEW) \w+\.(\w+)", text))
    return frozenset((*TABLES, *catalog.TABLES, *catalog.VIEWS, *names))


def statement_error(
    error: duckdb.Error, sql: str, statement: Statement, text: str, failures: Failures
) -> LarqlError:
    """The error of an LQL statement's query: semantic where a name is unknown, with the place in the text."""
    message = str(error)
    cause = failures.behind(message)
    if cause is not None:
        return cause
    for pattern, what in ((_COLUMN, "column"), (_QUALIFIER, "table"), (_TABLE, "table")):
        name = _name(pattern.search(message))
        if name is not None:
            return _unknown(what, name, statement, text)
    wrong_type = isinstance(error, duckdb.ConversionException) and _is_typed(error, statement, text)
    if wrong_type or isinstance(error, duckdb.BinderException | duckdb.CatalogException):
        line, column = _place_of_value(message, statement, text)
        return SemanticError(f"line {line}, column {column}: {_one_line(message)}", line=line, column=column)
    return QueryError(_one_line(message), sql=sql)


def _place_of_value(message: str, statement: Statement, text: str) -> tuple[int, int]:
    """Where the value that DuckDB could not convert stands; the statement's place for everything else."""
    value, place = _VALUE.search(message), statement.at
    source = text[place.start : place.end]
    quoted = next((f"{q}{value[1]}{q}" for q in "'\"" if f"{q}{value[1]}{q}" in source), "") if value else ""
    return _place_of(quoted, source, place) if quoted else (place.line, place.column)


def _is_typed(error: duckdb.Error, statement: Statement, text: str) -> bool:
    """Whether the value that does not convert stands in the statement: then it was found before anything ran."""
    value = _VALUE.search(str(error))
    typed = text[statement.at.start : statement.at.end]
    return value is not None and any(f"{q}{value[1]}{q}" in typed for q in "'\"")


def _unknown(what: str, name: str, statement: Statement, text: str) -> SemanticError:
    place = statement.at
    source = text[place.start : place.end]
    if what == "column":
        used = [TABLES[t] for t in re.findall(r"\w+", source.lower()) if t in TABLES]
        other = _other_spelling(name, used)
        if other is not None:
            hint = f"; what it is read from calls it {other}"
        else:
            names = {c for table in used for c in (*table.columns, *table.aliases)}
            hint = did_you_mean(name, sorted(names))
    elif name == "_":
        hint = ": it is the result piped in, as in DESCRIBE ... |> SELECT ... FROM _"
    else:
        hint = did_you_mean(name, sorted(n.upper() if n != "model_graph" else n for n in TABLES))
    line, column = _place_of(name, source, place)
    return SemanticError(
        f"line {line}, column {column}: unknown {what} {name}{hint}", line=line, column=column
    )


def _other_spelling(name: str, used: Iterable[LqlTable]) -> str | None:
    """The other spelling of a column of these tables: a subquery that lists one shows that one alone."""
    for table in used:
        if name in table.aliases:
            return table.aliases[name]
        if name in table.columns:
            return next((other for other, column in table.aliases.items() if column == name), None)
    return None


def _place_of(name: str, source: str, place: Position) -> tuple[int, int]:
    """Line and column of a name within the statement; the statement's own where it is not found."""
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source, re.IGNORECASE)
    if found is None:
        return place.line, place.column
    before = source[: found.start()].replace("\r\n", "\n")
    if "\n" not in before:
        return place.line, place.column + len(before)
    return place.line + before.count("\n"), len(before) - before.rindex("\n")


def _name(match: re.Match[str] | None) -> str | None:
    return None if match is None else next(g for g in match.groups() if g is not None)


def _one_line(message: str) -> str:
    """DuckDB's message without its picture of the query, on one line."""
    kept = []
    for line in message.split("\n"):
        if line.startswith("LINE "):
            break
        if line.strip():
            kept.append(line.strip())
    return " ".join(kept)
