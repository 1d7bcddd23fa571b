"""The program `larql-duck`: its commands, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from larql_duck._version import __version__
from larql_duck.cli import (
    auditing,
    cache,
    distilling,
    edits,
    exchange,
    inference,
    knowledge,
    mcp,
    query,
    serving,
    vindex,
)
from larql_duck.cli.errors import ClickError, report, say
from larql_duck.cli.options import epilog
from larql_duck.errors import LarqlError, cut_middle, out_of_memory

app = typer.Typer(
    name="larql-duck",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=epilog(
        "extract model.gguf -o X.vindex",
        "lql X.vindex 'DESCRIBE \"France\"'",
        "repl X.vindex",
        "lql --help",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)


# What those who type another program's command may want.
_STATS = "What a vindex holds: larql-duck lql X.vindex STATS"
_MEANT = {
    **dict.fromkeys(("info", "status", "summary", "ls"), _STATS),
    **dict.fromkeys(("shell", "cli", "interactive"), "The prompt: larql-duck repl X.vindex"),
    **dict.fromkeys(("query", "ask"), "Statements are run by larql-duck lql and larql-duck sql"),
    **dict.fromkeys(
        ("build", "convert", "create", "import", "index"), "A vindex is made by larql-duck extract"
    ),
}


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 not understood."""
    # OpenMP's threads spin while they wait. Beside any other busy process that made probing twelve times slower
    # (measured on two cores); it must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # numpy's remarks on numbers of a damaged or odd model would stand in front of the result.
    warnings.simplefilter("ignore", RuntimeWarning)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status after the command line `arguments` were carried out."""
    try:
        status = app(arguments, prog_name="larql-duck", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except LarqlError as error:
        report(error)
        return error.exit_code
    except ClickError as error:
        say(f"error: {_explained(error, arguments)}")
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        # Before the command began.
        say("interrupted")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        say("error: out of memory; close other programs, or use a machine with more")
        return 1
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        say(f"error: {error.filename or ''}{': ' if error.filename else ''}{error.strerror or error}")
        return 1


def _explained(error: Any, arguments: list[str]) -> str:
    """What is wrong with a command line, and where its help is; a statement in a command's place is told so."""
    from larql_duck.lql.table import BY_VERB

    context = getattr(error, "ctx", None)
    # typer writes so in front of the text of a ValueError.
    message = cut_middle(error.format_message().replace(" Value error, ", " "))
    word = arguments[0] if context is not None and context.parent is None and arguments else ""
    if message.startswith("No such command") and word.upper() in BY_VERB:
        message += f" {word.upper()} begins a statement of LQL: larql-duck lql X.vindex '{word.upper()} ...'"
    elif message.startswith("No such command") and word in _MEANT:
        message += f" {_MEANT[word]}"
    return f"{message} (see {context.command_path if context else 'larql-duck'} --help)"


def _print_version(asked_for: bool) -> None:
    if asked_for:
        print(f"larql-duck {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A transformer as a database that you query with SQL."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for group in (
    query,
    vindex,
    knowledge,
    inference,
    auditing,
    distilling,
    exchange,
    edits,
    serving,
    mcp,
    cache,
):
    app.add_typer(group.app)
