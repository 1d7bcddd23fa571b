"""EXTRACT from LQL and from the command line, on a tiny model."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from larql_duck.cli.app import run
from larql_duck.commands import extracting
from larql_duck.commands.opening import connect
from larql_duck.errors import LarqlError, SemanticError


def test_extract_from_lql_opens_what_it_made(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Probing a random model takes its time and finds nothing.
    monkeypatch.setattr(extracting, "make_vindex", functools.partial(extracting.make_vindex, probe=False))
    out = tmp_path / "tiny.vindex"
    seen: list[str] = []
    with connect() as session:
        session.configure(progress=lambda stage, done, total: seen.append(stage))
        result = session.lql(f'EXTRACT MODEL "{tiny_model("llama")}" INTO "{out}" WITH BROWSE')
        (row,) = result.dicts()
        assert row["path"] == str(out) and row["level"] == "browse" and row["bytes"] > 10_000
        assert session.vindex is not None and session.vindex.path == out
        assert session.lql("SHOW LAYERS").dicts()[0]["n_features"] == 64
        assert session.lql('WALK "the capital" TOP 1').dicts()[0]["basis"] == "embedding"
        with pytest.raises(LarqlError, match="exists already"):
            session.lql(f'EXTRACT MODEL "{tiny_model("llama")}" INTO "{out}"')
        with pytest.raises(SemanticError, match="one range of layers"):
            session.lql('EXTRACT MODEL "x" INTO "y" LAYERS 1, 3')
    assert seen


def test_extract_verify_and_ask_on_the_command_line(
    tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(tiny_model("gpt2")), str(tmp_path / "tiny.vindex")
    assert run(["extract", model, "--estimate"]) == 0
    estimate = capsys.readouterr()
    assert all(word in estimate.out for word in ("time", "disk", "memory")) and estimate.err == ""
    assert (
        run(
            [
                "extract",
                model,
                "-o",
                out,
                "--no-probe",
                "--in-basis",
                "embedding",
                "--top-k",
                "4",
                "--layers",
                "0-1",
            ]
        )
        == 0
    )
    assert f"made {out}" in capsys.readouterr().err
    assert run(["verify", out]) == 0
    assert "everything holds" in capsys.readouterr().out
    query = "SELECT max(rank) AS k, max(layer) AS layer FROM feature_tokens"
    assert run(["lql", out, query, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"k": 4, "layer": 1}]
    assert run(["extract", model, "-o", out]) == 1
    captured = capsys.readouterr()
    assert "exists already" in captured.err and captured.err.count("\n") == 1
    # A plain FFN has activations without an up matrix.
    assert run(["lql", out, 'WALK "the capital of" MODE DENSE TOP 1', "--json"]) == 0
    assert all(row["activation"] is not None for row in json.loads(capsys.readouterr().out))


def test_plain_ffn_activations_equal_the_models(tiny_model, tiny_vindex) -> None:
    with connect(tiny_vindex("gpt2")) as session:
        captured = session.model.engine.capture("the capital of", ["activation"]).need("activation")
        rows = session.lql('WALK "the capital of" MODE DENSE TOP 2').dicts()
        assert len(rows) == 2 * len(captured)
        for row in rows:
            assert row["activation"] == pytest.approx(
                float(captured[row["layer"]][0, row["feature"]]), rel=1e-3, abs=1e-6
            )
