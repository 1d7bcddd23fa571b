"""Values that hold SQL, and the body of INSERT: what needs to know the clauses of the statement around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from larql_duck.lql.clauses import METRICS, RequireClause
from larql_duck.lql.grammar import Fields, Part, Syntax
from larql_duck.lql.literals import Sql, quote
from larql_duck.lql.sql import QUERY_WORDS, read_condition, read_query, read_value
from larql_duck.lql.statements import Assignment, Audit, Insert, InsertRow, Probe, Statement, Update
from larql_duck.lql.tokens import TokenKind
from larql_duck.lql.values import Cursor, ListOf, Text, Value

COLUMNS = {
    "ENTITY": "entity",
    "RELATION": "relation",
    "TARGET": "target",
    "SUBJECT": "entity",
    "RELATIONSHIP": "relation",
    "OBJECT": "target",
}
"""INSERT's columns: LQL's names, and those of the tables."""


def stops(c: Cursor, form: Syntax, *, strict: bool) -> Callable[[int], bool]:
    """Whether a clause of the form begins at an index; strict: only where its value follows, too."""

    def stop(i: int) -> bool:
        if c.kinds[i] is not TokenKind.WORD:
            return False
        candidates = form.by_word.get(c.values[i], ())
        return any(clause.starts(c, i, strict=strict) for clause in candidates)

    return stop


@dataclass(frozen=True)
class Condition(Value):
    """The condition of WHERE. The form is that of the statement being read (see Cursor.form)."""

    syntax: str = "condition"
    equals: ClassVar[bool] = False

    def read(self, c: Cursor) -> Sql:
        return read_condition(c, stops(c, c.form, strict=False))

    def starts(self, c: Cursor, at: int) -> bool:
        return c.kinds[at] is not TokenKind.END


class SelectBody(Part):
    """The whole of SELECT: the verb is part of the query."""

    syntax = '... FROM source [NEAREST TO "entity" AT LAYER n [BASIS EMBEDDING | CONTEXT]] ...'
    whole = True

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        c.at -= 1
        into["query"] = read_query(c, lambda i: False)

    def show(self, statement: Statement) -> str:
        return str(statement.query)  # type: ignore[attr-defined]


class ExplainedBody(Part):
    """The statement that EXPLAIN SQL is about, with everything that is piped behind it."""

    syntax = "statement"

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        if c.has_words(("EXPLAIN", "SQL")):
            raise c.fail("EXPLAIN SQL explains another statement, not itself")
        into["statement"] = c.read_pipe(c)
        c.form, c.places = form, {}

    def show(self, statement: Statement) -> str:
        return str(statement.statement)  # type: ignore[attr-defined]


class ExportBody(Part):
    """[select | CURRENT]."""

    syntax = "[select | CURRENT]"

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        if c.word in QUERY_WORDS:
            first = c.at
            into["query"] = read_query(c, stops(c, form, strict=True))
            c.places["query"] = c.tokens.position(first, c.at - 1)
        else:
            c.take_words(("CURRENT",))

    def show(self, statement: Statement) -> str:
        query = statement.query  # type: ignore[attr-defined]
        return "CURRENT" if query is None else str(query)


class Assignments(Part):
    """column = value, ..."""

    syntax = "column = value, ..."

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        stop = stops(c, form, strict=False)
        into["assignments"] = c.several(lambda: self._one(c, stop))

    def _one(self, c: Cursor, stop: Callable[[int], bool]) -> Assignment:
        first = c.at
        if c.kinds[first] not in (TokenKind.WORD, TokenKind.NAME):
            raise c.unexpected("a column")
        column = c.tokens.raw(first) if c.kinds[first] is TokenKind.WORD else c.values[first]
        place = f"assignments.{column.lower()}"
        if place in c.places:
            raise c.fail(f"{column} is set twice")
        c.places[place] = c.tokens.position(first)
        c.at += 1
        c.expect("=")
        return Assignment(column, read_value(c, stop))

    def show(self, statement: Statement) -> str:
        assert isinstance(statement, Update)
        return ", ".join(f"{column_name(a.column)} = {a.value}" for a in statement.assignments)


def column_name(name: str) -> str:
    """A column as LQL: in backticks unless it is a plain word."""
    return name if name.isidentifier() and name.isascii() else "`" + name.replace("`", "``") + "`"


class InsertBody(Part):
    """(columns) VALUES (...), ... or (columns) select, or CASES "file" [LIMIT n]."""

    syntax = '((entity, relation, target) (VALUES ("entity", "relation", "target"), ... | select) | CASES "file" [LIMIT n])'

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        first = c.at
        if c.take_words(("CASES",)):
            into["cases"] = c.string("the file of cases")
            c.places["cases"] = c.tokens.position(first, c.at - 1)
            first = c.at
            if c.take_words(("LIMIT",)):
                into["limit"] = c.integer()
                c.places["limit"] = c.tokens.position(first, c.at - 1)
            return
        columns = self._columns(c)
        if c.take_words(("VALUES",)):
            into["rows"] = c.several(lambda: self._row(c, columns))
        elif c.word in QUERY_WORDS:
            into["columns"] = columns
            into["query"] = read_query(c, stops(c, form, strict=True))
        elif c.has("("):
            c.at += 1
            into["columns"] = columns
            into["query"] = read_query(c, lambda i: False, inside=True)
            c.expect(")")
        else:
            raise c.unexpected("VALUES", *QUERY_WORDS)

    def _columns(self, c: Cursor) -> tuple[str, ...]:
        if c.word in ("VALUES", *QUERY_WORDS):
            raise c.unexpected(
                "(", hint=": name the columns first, as in EDGES (entity, relation, target) VALUES ..."
            )
        c.expect("(")
        found: list[str] = []
        while True:
            left = [word for word in ("ENTITY", "RELATION", "TARGET") if COLUMNS[word] not in found]
            column = (
                COLUMNS.get(c.values[c.at].upper())
                if c.kinds[c.at] in (TokenKind.WORD, TokenKind.NAME)
                else None
            )
            if column is None or column in found:
                raise c.unexpected(*(left or [")"]))
            found.append(column)
            c.at += 1
            if len(found) == 3:
                c.expect(")")
                return tuple(found)
            c.expect(",")

    def _row(self, c: Cursor, columns: tuple[str, ...]) -> InsertRow:
        at = c.at
        c.expect("(")
        row: Fields = {}
        for i, column in enumerate(columns):
            if i:
                c.expect(",")
            row[column] = c.string(f"a string for {column}")
        c.expect(")")
        c.places.setdefault("rows", c.tokens.position(at, c.at - 1))
        return InsertRow(**row)

    def show(self, statement: Statement) -> str:
        assert isinstance(statement, Insert)
        columns = ", ".join(statement.columns)
        if statement.cases is not None:
            limit = "" if statement.limit is None else f" LIMIT {statement.limit}"
            return f"CASES {quote(statement.cases)}{limit}"
        if statement.query is not None:
            return f"({columns}) {statement.query}"
        rows = ", ".join(
            f"({quote(r.entity)}, {quote(r.relation)}, {quote(r.target)})" for r in statement.rows
        )
        return f"({columns}) VALUES {rows}"


@dataclass(frozen=True)
class Names(Value):
    """ENTITIES of PROBE and AUDIT: strings, or a query in brackets; the planner sees two fields, entities and query."""

    syntax: str = '"entity", ... | (select)'

    def read(self, c: Cursor) -> tuple[str, ...] | Sql:
        if not c.take("("):
            if not Text().starts(c, c.at):
                raise c.unexpected("a string", "(", hint=c.quote_hint())
            return ListOf(Text()).read(c)
        query = read_query(c, lambda i: False, inside=True)
        c.expect(")")
        return query

    def show(self, value: tuple[str, ...] | Sql) -> str:
        return f"({value})" if isinstance(value, Sql) else ListOf(Text()).show(value)

    def of(self, statement: Statement, name: str) -> tuple[str, ...] | Sql:
        assert isinstance(statement, Probe | Audit)
        return statement.entities if statement.query is None else statement.query


@dataclass(frozen=True)
class RequireValue(Value):
    """What stands behind REQUIRE."""

    syntax: str = "metric <= x | metric >= x [AND ...]"
    equals: ClassVar[bool] = False

    def read(self, c: Cursor) -> tuple[RequireClause, ...]:
        found = [self._one(c)]
        while c.take_words(("AND",)):
            found.append(self._one(c))
        return tuple(found)

    def _one(self, c: Cursor) -> RequireClause:
        metric = c.word.lower()
        if metric not in METRICS:
            raise c.unexpected(*(name.upper() for name in METRICS))
        c.at += 1
        side = METRICS[metric]
        if not c.take(side):
            raise c.unexpected(side)
        return RequireClause(metric, side, c.number())

    def show(self, value: tuple[RequireClause, ...]) -> str:
        return " AND ".join(f"{r.metric} {r.operator} {r.limit!r}" for r in value)

    def starts(self, c: Cursor, at: int) -> bool:
        return c.kinds[at] is TokenKind.WORD and c.values[at].lower() in METRICS
