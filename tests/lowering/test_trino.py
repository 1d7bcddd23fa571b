"""Statements in Trino's SQL, read by Trino's own grammar: no server runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck.errors import NotSupportedError
from larql_duck.session import Session
from tests.lowering.engine_tables import browse_statements
from tests.lowering.trino import installed, objections

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trino")
    if why := installed(folder):
        pytest.skip(why)
    return folder


def test_the_golden_corpus_is_its_grammar(s: Session, grammar: Path) -> None:
    statements, refused = {}, {}
    for text in browse_statements(s):
        try:
            statements[text] = lq.transpile(text, s, "trino")
        except NotSupportedError as error:
            refused[text] = str(error)
    assert len(statements) > 50
    assert all(text.startswith("PATHS") and "PATHS" in why for text, why in refused.items())
    assert objections(grammar, statements) == {}


def test_the_grammar_refuses_what_is_not_trino(grammar: Path) -> None:
    wrong = {
        "all": "SELECT a, count(*) FROM t GROUP BY ALL ORDER BY a",
        "semi": "SELECT a FROM t LEFT SEMI JOIN u ON 1 = 1",
    }
    assert set(objections(grammar, {"right": "SELECT 1", **wrong})) == set(wrong)
