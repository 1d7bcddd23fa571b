"""Blocks in Markdown: each names the tool that it is typed into, is run, and what it answers is compared.

```` ```KIND MARK ````. KIND is `pycon` (Python with `>>>`) or `console` (shell commands with `$ `), which say what is
printed; `lql` and `sql` (statements of the page's session `s`), `python` and `sh` (a command a line), which do not; or
`text`, which is not typed anywhere. MARK is empty; `slow`: it takes above 2 s on SmolLM2; `elsewhere`: it needs a
network or the reader's own files and is parsed only. All blocks of a page run in order, in one directory and one
Python namespace. `larql-duck` and `duckdb` are those of the Python that runs this.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

_BLOCK = re.compile(r"^```(\w*)(?: (\w+))?\n(.*?)^```$", re.M | re.S)
KINDS = ("pycon", "console", "lql", "sql", "python", "sh", "text", "ipython", "yaml")
# Not typed into anything here: text, and what other tools take (test_other_tools.py).
UNREAD = ("text", "ipython", "yaml")
MARKS = ("", "slow", "elsewhere")
_PROGRAM = f'"{sys.executable}" -c "from larql_duck.cli.app import main; main()"'
# A number with a fraction: what another processor or dtype may end differently.
_FRACTION = re.compile(r"-?\d[\d,]*\.\d+(?:e[-+]?\d+)?|-?\d+e[-+]?\d+")
RELATIVE, ABSOLUTE = 0.02, 5e-4


@dataclass(frozen=True)
class Step:
    """One thing that is typed, and the lines that the page says it answers."""

    kind: str
    typed: str
    expected: str = ""
    mark: str = ""

    @property
    def source(self) -> str:
        """What is typed, without prompts."""
        if self.kind == "pycon":
            return "\n".join(line[4:] for line in self.typed.split("\n"))
        return (
            self.typed.removeprefix("$ ").replace(".venv/bin/", "")
            if self.kind in ("console", "sh")
            else self.typed
        )


def steps(block: str, kind: str) -> Iterator[Step]:
    """The steps of a block's text."""
    if kind == "sh":
        lines = (re.sub(r"\s+# .*", "", line) for line in re.sub(r"\\\n\s*", "", block).splitlines())
        yield from (Step(kind, line) for line in lines if line.strip())
        return
    if kind not in ("pycon", "console"):
        yield Step(kind, block)
        return
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
            if step.kind in ("console", "sh"):
                return self._console(step.source)
            # A slow block may run without those before it.
            if "s" not in self.variables and (step.kind != "pycon" or step.mark == "slow"):
                self._python('import larql_duck as lq; s = lq.connect("smollm2.vindex")', "exec")
            if step.kind == "pycon":
                return self._python(step.source, "single")
            if step.kind == "python":
                return self._python(step.typed, "exec")
            ask = self.variables["s"].script if step.kind == "lql" else self.variables["s"].sql
            ask(step.typed)
            return ""

    def close(self) -> None:
        """Close the page's session, whose edits are wanted no more."""
        if "s" in self.variables:
            with contextlib.redirect_stderr(io.StringIO()):
                self.variables["s"].close()

    def _console(self, typed: str) -> str:
        command = re.sub(r"^larql-duck\b", lambda _: _PROGRAM, typed)
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

    def _python(self, source: str, mode: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(source, "<docs>", mode), self.variables)
        return out.getvalue()


def steps_of(text: str) -> Iterator[Step]:
    """Every step of a page, with its block's mark."""
    for match in _BLOCK.finditer(text):
        kind, mark, block = match.groups(default="")
        if kind not in UNREAD:
            yield from (replace(step, mark=mark) for step in steps(block, kind))


def run_page(text: str, directory: Path, marks: Collection[str] = ("", "slow")) -> Iterator[tuple[Step, str]]:
    """Every step of a page that has one of the marks, with what it printed."""
    with contextlib.closing(Runner(directory)) as runner:
        for step in steps_of(text):
            if step.mark in marks:
                yield step, runner.run(step)


def rewritten(text: str, directory: Path) -> str:
    """The page with what its steps print now."""

    def block(match: re.Match[str]) -> str:
        kind, mark, inside = match.groups(default="")
        if kind in UNREAD or mark == "elsewhere":
            return match[0]
        printed = [(step, runner.run(step)) for step in steps(inside, kind)]
        if kind not in ("pycon", "console"):
            return match[0]
        lines = [f"{step.typed}\n{_without_trailing_space(answer)}" for step, answer in printed]
        return f"```{kind}{' ' * bool(mark)}{mark}\n{''.join(lines)}```"

    with contextlib.closing(Runner(directory)) as runner:
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
