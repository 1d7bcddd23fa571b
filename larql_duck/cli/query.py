"""The commands that run a text: lql, sql, repl."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from larql_duck.cli.errors import UsageError, report
from larql_duck.cli.options import (
    OptionalVindexArgument,
    OutputOptions,
    ScriptOptions,
    SessionOptions,
    command,
)
from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    from larql_duck.result import Result
    from larql_duck.session import Session

app = typer.Typer()


@command(
    app,
    "lql X.vindex 'DESCRIBE \"France\"'",
    "lql X.vindex 'INFER \"The capital of France is\" TOP 3' --json",
    "lql X.vindex 'DESCRIBE $name' --param name=France",
    "lql -c 'SHOW MODELS'",
)
def lql(
    script: ScriptOptions,
    options: SessionOptions,
    output: OutputOptions,
    continue_on_error: Annotated[
        bool, typer.Option("--continue-on-error", help="Go on after a statement that failed.")
    ] = False,
) -> int:
    """Run LQL statements, in a vindex or (behind -c) without one."""
    text, parameters = script.read(), script.parameters()
    failures: list[LarqlError] = []

    def results(session: Session) -> Iterator[Result]:
        from larql_duck.lql import parse

        for statement in parse(text, parameters):
            try:
                yield from session.run(statement, text)
            except LarqlError as error:
                if not continue_on_error:
                    raise
                report(error)
                failures.append(error)

    with options.session(script.vindex) as session:
        output.write(results(session))
    return max((error.exit_code for error in failures), default=0)


@command(
    app,
    "sql X.vindex \"SELECT subject, object, p FROM who('capital', 'Paris')\"",
    "sql X.vindex 'FROM help()'",
    "sql X.vindex -f query.sql --csv",
)
def sql(script: ScriptOptions, options: SessionOptions, output: OutputOptions) -> None:
    """Run plain DuckDB SQL.

    The vindex's tables, views and macros are there, and the functions that need Python. Without a vindex: -c.
    """
    from larql_duck.lql.duckdb_syntax import sql_statements

    text, parameters = script.read(), script.parameters()
    statements = sql_statements(text)
    if not statements:
        raise UsageError("no statement in the text")
    named = {name for statement in statements for name in statement.parameters}

    def results(session: Session) -> Iterator[Result]:
        for statement in statements:
            # DuckDB refuses values that a statement does not name; those that none does are told at the first.
            given = {n: v for n, v in parameters.items() if n in statement.parameters or n not in named}
            result = session.sql(statement.text, given or None)
            if statement.gives_rows or statement is statements[-1]:
                yield result

    with options.session(script.vindex) as session:
        output.write(results(session))


@command(
    app,
    "transpile 'DESCRIBE \"France\"'",
    "transpile 'SELECT * FROM EDGES WHERE layer = 5' --dialect spark",
    "transpile X.vindex 'WALK \"France\"' --dialect datafusion",
)
def transpile(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[VINDEX] STATEMENT", help="A statement, behind the vindex if one is to check it."
        ),
    ],
    dialect: Annotated[
        Literal["duckdb", "spark", "trino", "datafusion"], typer.Option(help="Whose SQL it becomes.")
    ] = "duckdb",
) -> None:
    """Print the SQL of a statement, for DuckDB or for another engine.

    Other engines read the tables that export --tables (or --format delta, iceberg) writes.
    """
    from larql_duck.commands.transpiling import transpile as to_sql

    if len(words) > 2:
        raise UsageError("give one statement, in quotes, and at most a vindex before it")
    *vindex, text = words
    print(to_sql(text, vindex[0] if vindex else None, dialect))


@command(app, "repl X.vindex", "repl X.vindex --patch atlantis.vlp")
def repl(options: SessionOptions, vindex: OptionalVindexArgument = None) -> int:
    """Ask interactively, in LQL or SQL."""
    from larql_duck.repl import run

    with options.session(vindex) as session:
        return run(session)
