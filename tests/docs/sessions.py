"""Sessions in Markdown: what is typed in `pycon` and `console` blocks is run, and what it answers is compared.

A `pycon` block holds Python with `>>>`, a `console` block shell commands with `$ `. All blocks of a page run in order,
in one directory and one Python namespace. `larql-duck` and `duckdb` are those of the Python that runs this.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

_BLOCK = re.compile(r"^```(pycon|console)\n(.*?)^```$", re.M | re.S)
_PROGRAM = f'"{sys.executable}" -c "from larql_duck.cli.app import main; main()"'
# A number with a fraction: what another processor or dtype may end differently.
_FRACTION = re.compile(r"-?\d[\d,]*\.\d+(?:e[-+]?\d+)?|-?\d+e[-+]?\d+")
RELATIVE, ABSOLUTE = 0.05, 0.02


@dataclass(frozen=True)
class Step:
    """One thing that is typed, and the lines that the page says it answers."""

    kind: str
    typed: str
    expected: str


def steps(block: str, kind: str) -> Iterator[Step]:
    """The steps of a block's text."""
    if kind == "pycon":
        for example in doctest.DocTestParser().get_examples(block):
            first, *others = example.source.rstrip("\n").split("\n")
            typed = "\n".join([f">>> {first}", *(f"... {line}".rstrip() for line in others)])
            yield Step(kind, typed, example.want)
        return
    for part in re.split(r"^(?=\$ )", block, flags=re.M)[1:]:
        lines = part.splitlines(keepends=True)
        # A command goes on after a backslash at the end of a line.
        length = next(n for n, line in enumerate(lines, 1) if not line.endswith("\\\n"))
        yield Step(kind, "".join(lines[:length]).rstrip("\n"), "".join(lines[length:]))


class Runner:
    """Runs steps in a directory, all of one page with the same variables."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables: dict[str, Any] = {}

    def run(self, step: Step) -> str:
        """What the step prints; RuntimeError with its errors where it fails."""
        # Tables are as wide as the terminal; every page's is the same.
        with contextlib.chdir(self.directory), mock.patch.dict(os.environ, COLUMNS="110"):
            return self._console(step.typed) if step.kind == "console" else self._python(step.typed)

    def _console(self, typed: str) -> str:
        command = typed.removeprefix("$ ").replace(".venv/bin/", "")
        command = re.sub(r"^larql-duck\b", lambda _: _PROGRAM, command)
        bin_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # The package is found beside the tests, wherever the page's directory is.
        path = os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        environment = os.environ | {"PATH": bin_path, "PYTHONPATH": path}
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{typed}\n{done.stderr}")
        return done.stderr + done.stdout

    def _python(self, typed: str) -> str:
        source = "\n".join(line[4:] for line in typed.split("\n"))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(source, "<docs>", "single"), self.variables)
        return out.getvalue()


def run_page(text: str, directory: Path) -> Iterator[tuple[Step, str]]:
    """Every step of a page with what it printed."""
    runner = Runner(directory)
    for match in _BLOCK.finditer(text):
        for step in steps(match[2], match[1]):
            yield step, runner.run(step)


def rewritten(text: str, directory: Path) -> str:
    """The page with what its steps print now."""
    runner = Runner(directory)

    def block(match: re.Match[str]) -> str:
        lines = [
            f"{step.typed}\n{_without_trailing_space(runner.run(step))}" for step in steps(match[2], match[1])
        ]
        return f"```{match[1]}\n{''.join(lines)}```"

    return _BLOCK.sub(block, text)


def _without_trailing_space(text: str) -> str:
    lines = "".join(f"{line.rstrip()}\n" for line in text.rstrip("\n").split("\n"))
    return lines if text.strip() else ""


def same(expected: str, printed: str) -> bool:
    """Whether two outputs agree: words and whole numbers exactly, numbers with a fraction nearly; spaces are free."""
    theirs, ours = _words(expected), _words(printed)
    return len(theirs) == len(ours) and all(map(_agree, theirs, ours))


def _words(text: str) -> list[str]:
    # Rules of tables are as long as their columns are wide.
    return [word for word in re.split(r"[\s│,()\[\]]+", text) if word.strip("─┌┐└┘├┤┬┴┼")]


def _agree(a: str, b: str) -> bool:
    if a == b:
        return True
    if not (_FRACTION.fullmatch(a) or _FRACTION.fullmatch(b)):
        return False
    try:
        x, y = float(a), float(b)
    except ValueError:
        return False
    return abs(x - y) <= max(ABSOLUTE, RELATIVE * max(abs(x), abs(y)))
