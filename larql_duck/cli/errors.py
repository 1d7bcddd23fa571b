"""What the command line says on stderr: remarks and errors, one line each."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import suppress
from typing import Any

import typer

from larql_duck.errors import LarqlError, LqlSyntaxError
from larql_duck.result import printable

# typer brings a click of its own or uses the installed one, depending on its version.
UsageError: type[Any] = typer.BadParameter.__bases__[0]
ClickError: type[Any] = UsageError.__bases__[0]


def say(text: str) -> None:
    """Write a line to stderr."""
    _write(printable(" ".join(text.split())))


def note(text: str) -> None:
    """Write a remark to stderr."""
    say(f"note: {text}")


def as_typed(*words: str) -> str:
    """A command line of larql-duck with these words, as it can be typed here: with its path where that is not searched."""
    program = "larql-duck"
    if shutil.which(program) is None and os.path.basename(sys.argv[0]) == program:
        program = os.path.relpath(sys.argv[0])
    return shlex.join([program, *words])


def report(error: LarqlError) -> None:
    """Write an error to stderr: one line; in a terminal a syntax error shows its place, too."""
    if isinstance(error, LqlSyntaxError) and sys.stderr.isatty():
        _write("\n".join(printable(line) for line in f"error: {error.highlight()}".split("\n")))
    else:
        say(f"error: {error}")


def _write(text: str) -> None:
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr)
