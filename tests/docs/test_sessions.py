"""Every block of README.md and docs/ names its tool, runs, and prints what the page says."""

from __future__ import annotations

import math
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer

from larql_duck.cli.app import app
from larql_duck.editing import background_corpus, evaluate, solve, value
from larql_duck.lql import parse
from tests.docs.__main__ import PAGES, ROOT
from tests.docs.sessions import KINDS, MARKS, Step, rewritten, run_page, same, steps, steps_of

BLOCKS = """\
```pycon
>>> x = [1,
...      2]
>>> x
```
text
```console
$ echo one \\
  two
wrong
$ true
```
```sh
echo three   # and why
```
```text
$ false
```
```sh elsewhere
false
```
"""


def test_blocks_are_read_run_and_written(tmp_path: Path) -> None:
    assert [s.typed for s in steps(">>> x = 1\n>>> if x:\n...     x\n1\n", "pycon")] == [
        ">>> x = 1",
        ">>> if x:\n...     x",
    ]
    now = rewritten(BLOCKS, tmp_path)
    assert ">>> x\n[1, 2]\n```" in now and "$ echo one \\\n  two\none two\n$ true\n```" in now
    assert rewritten(now, tmp_path) == now
    assert [printed for _, printed in run_page(BLOCKS, tmp_path)] == [
        "",
        "[1, 2]\n",
        "one two\n",
        "",
        "three\n",
    ]
    with pytest.raises(RuntimeError, match="false"):
        rewritten("```console\n$ false\n```\n", tmp_path)


def test_only_fractions_may_differ_a_little() -> None:
    assert same("a   0.7725\n───\n1  Paris", "a  0.771\n────\n1 Paris")
    assert not same("a 0.77", "a 0.79") and not same("1 a", "2 a") and not same("a", "a b")
    assert Step("pycon", ">>> 1", "1\n").expected == "1\n"


PRINTING = [
    page
    for page in PAGES
    if any(step.expected and step.mark in ("", "slow") for step in steps_of(page.read_text(encoding="utf-8")))
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_every_block_names_its_tool(page: Path) -> None:
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)[::2]
    for fence in fences:
        kind, _, mark = fence.partition(" ")
        assert kind in KINDS and mark in MARKS, fence


@every_page
def test_what_is_typed_can_be_read(page: Path) -> None:
    """Also where it is not run."""
    program = typer.main.get_command(app)
    for step in steps_of(page.read_text(encoding="utf-8")):
        if step.kind == "lql":
            assert parse(step.typed)
        elif step.kind == "sql":
            assert duckdb.extract_statements(step.typed)
        elif step.kind in ("python", "pycon"):
            compile(step.source, str(page), "exec")
        elif step.source.startswith("larql-duck "):
            _read_command(program, shlex.split(step.source, comments=True)[1:])


def _read_command(program: Any, words: list[str]) -> None:
    """Fails where the program has no such command or option."""
    context = program.make_context("larql-duck", list(words), resilient_parsing=True)
    name = words[0]
    command = program.get_command(context, name)
    assert command is not None, words
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[1:]:
        if word.startswith("-") and not re.fullmatch(r"-\d+", word):
            assert word.partition("=")[0] in known | {"--help"}, words


@pytest.mark.real
@every_page
def test_pages_print_what_they_say(
    page: Path, smollm2_vindex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every quick step runs on SmolLM2; what the model predicts is compared. Facts and their figures are those of the
    default extraction: see test_pages_print_what_they_say_of_the_default_extraction."""
    (tmp_path / "smollm2.vindex").symlink_to(smollm2_vindex)
    for step, printed in run_page(page.read_text(encoding="utf-8"), tmp_path, marks=("",)):
        assert printed or not step.expected
        if "INFER " in step.typed:
            assert same(step.expected, printed), _differs(step, printed)


@every_page
def test_slow_blocks_run_on_a_tiny_model(
    page: Path, quick_vindex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_corpus, "POSITIONS", 4)
    monkeypatch.setattr(evaluate, "TOKENS", 256)
    # A random model never says what it is taught: every form is run once, not until all steps are taken three times.
    monkeypatch.setattr(value, "DONE", math.inf)
    monkeypatch.setattr(solve, "_UNSAID", math.inf)
    (tmp_path / "smollm2.vindex").symlink_to(quick_vindex)
    for _ in run_page(page.read_text(encoding="utf-8"), tmp_path, marks=("slow",)):
        pass


@pytest.mark.extras
@pytest.mark.parametrize("page", PRINTING, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_print_what_they_say_of_the_default_extraction(
    page: Path, default_vindex: Path, tmp_path: Path
) -> None:
    """Up to the last step that prints or is slow: test_pages_print_what_they_say runs all others."""
    (tmp_path / "smollm2.vindex").symlink_to(default_vindex)
    text = page.read_text(encoding="utf-8")
    run = [step for step in steps_of(text) if step.mark in ("", "slow")]
    last = max(i for i, step in enumerate(run) if step.expected or step.mark == "slow")
    for step, printed in islice(run_page(text, tmp_path), last + 1):
        if step.expected:
            assert same(step.expected, printed), _differs(step, printed)


def _differs(step: Step, printed: str) -> str:
    return f"{step.typed}\nexpected:\n{step.expected}\nprinted:\n{printed}"
