"""Transpiled statements run by the engines themselves: the same rows as in DuckDB."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.session import Session
from tests.lowering.engine_tables import ENGINES, browse_statements, export, failures

pytestmark = pytest.mark.extras
# The least share of statements with equal rows.
SHARE = 0.95


@pytest.fixture(scope="module")
def tables(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(world, tmp_path_factory.mktemp("engines") / "tables")


@pytest.mark.parametrize(("dialect", "package"), [("datafusion", "datafusion"), ("spark", "pyspark")])
def test_the_golden_corpus_has_equal_rows(dialect: str, package: str, s: Session, tables: Path) -> None:
    pytest.importorskip(package, reason=f"pip install {package}")
    statements = browse_statements(s)
    with ENGINES[dialect](tables) as run:
        found = failures(s, statements, dialect, run)
    assert len(statements) > 50
    # What an engine cannot say is refused by name, not by the engine.
    assert not [why for why in found.values() if why.startswith("refused by the engine")]
    assert 1 - len(found) / len(statements) >= SHARE, "\n".join(
        f"{text}: {why}" for text, why in found.items()
    )
