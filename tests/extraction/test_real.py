"""The real SmolLM2: what the README promises of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.inference.model import Model
from larql_duck.vindex.store import Vindex
from tests.duckdb_cli import run_cli

pytestmark = pytest.mark.real


def test_the_sentence_everything_serves(smollm2_vindex: Path) -> None:
    database = smollm2_vindex / "model.duckdb"
    (rows,) = run_cli(database, "SELECT relationship, object FROM model_graph WHERE subject = 'France';")
    assert rows[0] == {"relationship": "capital", "object": "Paris"}
    query = (
        "SELECT relationship, object FROM model_graph WHERE subject = 'France' AND relationship = 'capital'"
    )
    assert run_cli(database, query)[0][0]["object"] == "Paris"


def test_probabilities_are_the_models_own(smollm2_vindex: Path, smollm2_gguf: Path) -> None:
    query = "SELECT prompt, p FROM probes WHERE subject = 'France' AND relation = 'capital' ORDER BY prompt"
    (rows,) = run_cli(smollm2_vindex / "model.duckdb", query)
    assert rows
    engine = Model.open(smollm2_gguf).engine
    for row in rows:
        p = float(engine.logits(row["prompt"]).softmax(-1).max())
        assert abs(row["p"] - p) < 0.01, row


def test_zeroing_a_facts_features_lowers_it(smollm2_vindex: Path) -> None:
    facts = Vindex.open(smollm2_vindex).table("facts").to_pandas()
    sure = facts[(facts["rank"] == 1) & (facts.relation == "capital") & (facts.p >= 0.3)]
    assert len(sure) >= 20
    halved = (sure.effect >= 0.693).mean()
    assert halved >= 0.8, f"zeroing the listed features halves p for {halved:.0%} of the facts"


def test_memory_of_the_arrays_is_not_in_the_tables(smollm2_vindex: Path) -> None:
    arrays = sum(p.stat().st_size for p in smollm2_vindex.glob("*.bin"))
    tables = [*(smollm2_vindex / "tables").iterdir(), smollm2_vindex / "model.duckdb"]
    assert sum(p.stat().st_size for p in tables) <= 0.45 * arrays
