"""The real SmolLM2 as a database: the sentence everything serves, in the CLI and in LQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.commands.opening import connect
from larql_duck.inference.model import Model
from tests.duckdb_cli import run_cli

pytestmark = pytest.mark.real


def test_in_the_cli(smollm2_vindex: Path) -> None:
    first, probed = run_cli(
        smollm2_vindex / "model.duckdb",
        "SELECT relationship, object FROM model_graph WHERE subject = 'France' AND relationship = 'capital'",
        "SELECT prompt, predicted, p FROM probes WHERE subject = 'France' AND relation = 'capital' LIMIT 1",
    )
    assert first[0] == {"relationship": "capital", "object": "Paris"}
    engine = Model.open(smollm2_vindex).engine
    best = engine.logits(probed[0]["prompt"])[0].softmax(-1).max(0)
    assert engine.tokenizer.token(int(best.indices)) == probed[0]["predicted"]
    assert probed[0]["p"] == pytest.approx(float(best.values), abs=0.01)


def test_in_lql(smollm2_vindex: Path) -> None:
    with connect(smollm2_vindex) as session:
        described = session.lql('DESCRIBE "france"').dicts()
        assert (described[0]["relation"], described[0]["target"], described[0]["source"]) == (
            "capital",
            "Paris",
            "probe",
        )
        assert "France" in {r["subject"] for r in session.sql("FROM who('capital', 'Paris')").dicts()}
        (path, *_) = session.lql('NEIGHBORS OF "Paris" RELATIONS "capital"').dicts()
        assert (path["subject"], path["object"]) == ("France", "Paris")
        walked = session.lql('WALK "The capital of France is" TOP 3').dicts()
        assert {r["basis"] for r in walked} == {"context"} and len(walked) == 90
        assert session.lql('SELECT count(*) FROM FEATURES NEAREST TO "France" AT LAYER 24').one() == 1536
