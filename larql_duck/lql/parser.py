"""Text -> statements."""

from __future__ import annotations

from collections.abc import Mapping

from larql_duck.errors import NOTHING_RUN, LqlSyntaxError
from larql_duck.lql.bodies import RequireValue
from larql_duck.lql.grammar import Syntax
from larql_duck.lql.statements import Pipe, RequireClause, Statement
from larql_duck.lql.table import BY_VERB, STATEMENTS, keywords
from larql_duck.lql.tokens import Parameter, TokenKind, tokenize
from larql_duck.lql.values import Cursor

__all__ = ["parse", "parse_one", "requirements"]


def parse(text: str, parameters: Mapping[str, Parameter] | None = None) -> list[Statement]:
    """The statements of a text, at least one, in order.

    `$name` in the text stands for the value bound to it in parameters, wherever a value may stand. All of the text
    is read before anything is returned. Raises LqlSyntaxError with the position of what cannot be read, and a word on
    the statements before it; also for a text without a statement and for a statement of more than 256 kB.
    """
    try:
        return _parse(text, parameters)
    except LqlSyntaxError as error:
        if ";" in error.before:
            # Who runs a script must know what of it was done.
            error.add(NOTHING_RUN)
        raise


def _parse(text: str, parameters: Mapping[str, Parameter] | None) -> list[Statement]:
    c = Cursor(tokenize(text, parameters), read_pipe)
    found: list[Statement] = []
    while True:
        while c.take(";"):
            pass
        if c.kinds[c.at] is TokenKind.END:
            break
        found.append(read_pipe(c))
        if not c.has(";") and c.kinds[c.at] is not TokenKind.END:
            raise _stray(c)
    if not found:
        raise c.tokens.error("no statement in the text", 0, expected=tuple(BY_VERB))
    return found


def parse_one(text: str, parameters: Mapping[str, Parameter] | None = None) -> Statement:
    """The one statement of a text; LqlSyntaxError if it holds more (see parse)."""
    found = parse(text, parameters)
    if len(found) > 1:
        place = found[1].at
        raise LqlSyntaxError(
            "one statement expected, found more", line=place.line, column=place.column, text=text
        )
    return found[0]


def requirements(text: str) -> tuple[RequireClause, ...]:
    """What REQUIRE in front of the text means; LqlSyntaxError for what it cannot."""
    c = Cursor(tokenize(text), read_pipe)
    found = RequireValue().read(c)
    if c.kinds[c.at] is not TokenKind.END:
        raise c.unexpected("AND", "the end of the text")
    return found


def read_pipe(c: Cursor) -> Statement:
    """A statement, or all stages of a pipe. Semicolons may stand before `|>`."""
    first = c.at
    stages = [_read_statement(c)]
    while True:
        end = c.at
        while c.take(";"):
            pass
        if not c.take("|>"):
            # The semicolons belong to whoever reads statements.
            c.at = end
            break
        stages.append(_read_statement(c))
    if len(stages) == 1:
        return stages[0]
    return Pipe(tuple(stages), at=c.tokens.position(first, c.at - 1))


def _read_statement(c: Cursor) -> Statement:
    first = c.at
    rows = BY_VERB.get(c.word)
    if rows is None:
        raise _no_verb(c)
    for row in rows:
        if c.take_words(row.verb):
            return row.read(c, first)
    c.at += 1
    raise _half_verb(c, rows)


# ---- errors

_OF_THE_PROMPT = ("EXIT", "QUIT", "HELP", "CLEAR")


def _no_verb(c: Cursor) -> LqlSyntaxError:
    """Nothing starts like this."""
    verbs = tuple(BY_VERB)
    word = c.word
    if word in _OF_THE_PROMPT or (not word and c.has(".")):
        return c.fail(
            f"{c.describe()} begins no statement: the commands of the prompt, such as .exit, are run by larql-duck repl, "
            "and a text ends by itself",
            expected=verbs,
        )
    if not word:
        return c.fail(f"expected a statement, found {c.describe()}", expected=verbs)
    suggestion = c.suggestion(verbs)
    hint = f"did you mean {suggestion}?" if suggestion else f"statements begin with {', '.join(verbs)}"
    return c.fail(f"{c.describe()} begins no statement; {hint}", expected=verbs, suggestion=suggestion)


def _half_verb(c: Cursor, rows: tuple[Syntax, ...]) -> LqlSyntaxError:
    """The first word of a verb is there and the second is not."""
    hint = next((row.hints[c.word] for row in rows if c.word in row.hints), "")
    nexts: list[str] = []
    for row in sorted(rows, key=STATEMENTS.index):
        known = 1
        # SHOW COMPACT without STATUS: the cursor moves on to where the verb breaks off.
        while known < len(row.verb) and c.has_words(row.verb[1 : known + 1]):
            known += 1
        if known > 1 and known < len(row.verb):
            c.at += known - 1
            return c.unexpected(row.verb[known])
        if len(row.verb) > 1:
            nexts.append(row.verb[1])
    return c.unexpected(*nexts, hint=f"; {hint}" if hint else "")


def _stray(c: Cursor) -> LqlSyntaxError:
    """Something stands behind a statement that is neither `;` nor one of its clauses."""
    form = c.form
    if c.word in form.hints:
        return c.fail(f"{form.name} has no {c.word}: {form.hints[c.word]}", expected=(*form.leads, ";", "|>"))
    if c.word in BY_VERB and c.word not in form.by_word and c.word not in ("WITH", "FROM"):
        return c.fail(f"write ; before the next statement ({c.word})", expected=(";", "|>"))
    if c.word in keywords() and form.leads and not c.suggestion(form.leads):
        clauses = ", ".join(form.leads)
        return c.fail(
            f"{form.name} has no clause {c.word}; it takes {clauses}", expected=(*form.leads, ";", "|>")
        )
    return c.unexpected(*form.leads, ";", "|>")
