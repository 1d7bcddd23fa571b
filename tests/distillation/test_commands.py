"""larql-duck student and larql-duck distil as they are typed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from larql_duck.cli import app as cli
from larql_duck.distillation import settings
from larql_duck.models.opening import open_model
from tests.conftest import Make


def test_a_student_is_made_and_told(
    tiny_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    assert (
        cli.run(
            ["student", str(tiny_model("qwen2")), "-o", str(out), "--layers", "2", "--probes", "4", "--json"]
        )
        == 0
    )
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert row["layers"] == 2 and len(row["removed_layers"]) == 1 and 0 < row["parameters"] < 1
    assert "distil" in said.err and str(out) in said.err
    assert open_model(out).sizes().n_layers == 2
    assert cli.run(["student", str(tiny_model("qwen2")), "-o", str(out), "--layers", "2"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    assert cli.run(["distil", "X.vindex", "student", "-o", str(tmp_path / "out")]) == 1
    assert "pip install 'larql-duck[distil]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.extras
@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="the extra distil is not installed"
)
def test_a_run_is_typed_and_reported(
    probed_vindex: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, start = str(probed_vindex("llama")), str(tmp_path / "student")
    assert cli.run(["student", teacher, "-o", start, "--layers", "2"]) == 0
    capsys.readouterr()
    options = [
        "--steps",
        "2",
        "--rounds",
        "2",
        "--batch",
        "4",
        "--confidence",
        "0",
        "--report",
        str(tmp_path / "r.html"),
    ]
    assert cli.run(["distil", teacher, start, "-o", str(tmp_path / "taught"), *options, "--json"]) == 0
    said = capsys.readouterr()
    assert [row["round"] for row in json.loads(said.out)] == [0, 1, 2]
    assert "extract" in said.err and (tmp_path / "r.html").read_text().startswith("<!doctype html")
    assert cli.run(["distil", teacher, start, "-o", str(tmp_path / "other"), "--mix", "2"]) == 1
    assert "--mix 2 is out of range" in capsys.readouterr().err
