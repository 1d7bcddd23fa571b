"""The same parser under `sqlglot[c]`, whose compiled classes behave a little differently.

Where sqlglotc is installed, every test of this directory runs on it. Beside a plain installation, name an interpreter
that has it (with pytest, hypothesis and duckdb) in LARQL_DUCK_COMPILED_PYTHON.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlglot import tokenizer_core

from larql_duck.lql import parse
from larql_duck.lql.tokens import _DIALECT, LqlTokenizer

ROOT = Path(__file__).parents[2]
# sqlglotc puts compiled files in the place of sqlglot's own.
COMPILED = not tokenizer_core.__file__.endswith(".py")
OTHER = os.environ.get("LARQL_DUCK_COMPILED_PYTHON", "")


@pytest.mark.skipif(not COMPILED, reason="sqlglot is not compiled here")
def test_the_tokenizer_may_be_a_subclass_of_a_compiled_class() -> None:
    assert [t.text for t in LqlTokenizer(_DIALECT).tokenize("STATS `a` 'b'")] == ["STATS", "a", "b"]
    assert parse("STATS")


@pytest.mark.skipif(not OTHER, reason="LARQL_DUCK_COMPILED_PYTHON names no interpreter")
def test_the_other_interpreter() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LARQL_DUCK_COMPILED_PYTHON": ""}
    check = "from sqlglot import tokenizer_core as t; import sys; sys.exit(t.__file__.endswith('.py'))"
    assert subprocess.run([OTHER, "-c", check], env=environment, check=False).returncode == 0, (
        "no sqlglotc there"
    )
    files = [str(p) for p in Path(__file__).parent.glob("test_*.py") if p.name != Path(__file__).name]
    command = [OTHER, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + sys.executable
