"""What is written for Trino is Trino's grammar, as the ANTLR grammar in npm's dt-sql-parser has it. No server runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck.errors import NotSupportedError
from larql_duck.session import Session
from tests.lowering.engine_tables import browse_statements

pytestmark = pytest.mark.extras
SCRIPT = Path(__file__).with_name("trino_grammar.js")
# Where make test-extras installs it.
MODULES = Path(sys.prefix) / "npm" / "node_modules"


def test_trinos_grammar_takes_every_statement(s: Session) -> None:
    node = shutil.which("node")
    environment = {"NODE_PATH": str(MODULES)} | os.environ
    if (
        node is None
        or subprocess.run(
            [node, "-e", "require('dt-sql-parser')"], env=environment, capture_output=True
        ).returncode
    ):
        pytest.skip("needs node and: npm install --prefix .venv/npm dt-sql-parser")
    translated = {}
    for text in browse_statements(s):
        try:
            translated[text] = lq.transpile(text, s, "trino") + ";"
        except NotSupportedError as refused:
            assert "PATHS" in str(refused)
    said = subprocess.run(
        [node, str(SCRIPT)],
        input=json.dumps(list(translated.values())),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    errors = dict(zip(translated, json.loads(said.stdout), strict=True))
    assert len(errors) > 45 and {text: found for text, found in errors.items() if found} == {}
