"""The quality report: its figures from tables made to order, its page, and the control by random features."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from larql_duck.cli import app as cli
from larql_duck.commands.opening import connect
from larql_duck.probing.control import _drawn, controls
from larql_duck.probing.page import page
from larql_duck.probing.quality import quality
from larql_duck.vindex.store import Vindex
from tests.world import write_vindex

WHERE = {"found <in>": ["The capital of {} is", "{}'s capital is"]}


@pytest.fixture(scope="module")
def probed(tiny_vindex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shutil.copytree(tiny_vindex("gpt2"), tmp_path_factory.mktemp("report") / "m.vindex")
    with connect(path) as session:
        session.probe(["France", "Germany", "Japan", "Italy"], WHERE, specific=True)
    return path


def figures(path: Path) -> dict[str, Any]:
    with connect(path) as session:
        return quality(session.workspace.vindex, session.sql("FROM accuracy").arrow())


def test_accuracy_counts_the_held_out_subjects_only(tmp_path: Path) -> None:
    path = write_vindex(tmp_path / "world.vindex")
    facts = [f for f in Vindex.open(path).table("facts").to_pylist() if f["rank"] == 1]
    held_out = [f for f in facts if f["held_out"]]
    assert 0 < len(held_out) < len(facts)
    found = figures(path)
    assert found["pooled"]["answered"] == len(held_out)
    assert found["pooled"]["accuracy"] == pytest.approx(sum(f["correct"] for f in held_out) / len(held_out))
    assert sum(b["n"] for b in found["calibration"]) == len(held_out)


def test_facts_and_layers_are_counted(probed: Path) -> None:
    vindex = Vindex.open(probed)
    found = figures(probed)
    stated = [r for r in vindex.table("facts").to_pylist() if r["rank"] == 1 and r["p"] >= 0.3]
    assert found["effects"]["facts"] == len(stated)
    (relation,) = found["relations"]
    assert (relation["asked"], relation["answered"], relation["refused"]) == (4, 4, 0)
    assert sum(relation["layers"]) == pytest.approx(1)


def test_random_features_are_of_the_same_layers_and_not_the_listed_ones() -> None:
    import numpy as np
    import torch

    activation = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    slots = [(0, 1), (0, 2), (2, 7)]
    drawn = _drawn(activation, slots, np.random.default_rng(0))
    assert [layer for layer, _ in drawn] == [0, 0, 2]
    assert not set(drawn) & set(slots) and len(set(drawn)) == 3
    for (layer, feature), (_, other) in zip(slots, drawn, strict=True):
        nearer = (activation[layer] - activation[layer, feature]).abs() < abs(
            activation[layer, feature] - activation[layer, other]
        )
        assert int(nearer.sum()) <= 20


def test_controls_measure_the_stored_effect_again(probed: Path) -> None:
    with connect(probed) as session:
        vindex = session.vindex
        facts, edges = vindex.table("facts"), vindex.table("edges")
        found = controls(session.model.engine, facts, edges, least_p=0.0)
        assert found and found == controls(session.model.engine, facts, edges, least_p=0.0)
        stored = {(r["subject"], r["object"]): r["effect"] for r in facts.to_pylist() if r["rank"] == 1}
        for control in found:
            assert control.listed == pytest.approx(stored[control.subject, control.object], abs=1e-3)
            assert control.random != control.listed


def test_page_is_whole_and_escaped(probed: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["report", str(probed), "-o", str(tmp_path / "out"), "--measure", "5"]) == 0
    out = tmp_path / "out" / "report.html"
    assert capsys.readouterr().out == f"{out}\n"
    text = out.read_text()
    assert "found &lt;in&gt;" in text and "found <in>" not in text
    assert not re.search(r"(src|href)=|url\(|@import", text)
    plots = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(plots) >= 3
    for plot in plots:
        for node in ElementTree.fromstring(plot).iter():
            for name in ("x", "y", "width", "height", "cx", "cy"):
                assert math.isfinite(float(node.get(name, "0")))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["facts"] == 4


def test_report_of_a_vindex_without_facts(tiny_vindex) -> None:
    text = page(figures(tiny_vindex("gpt2")))
    assert "No facts yet" in text and "nan" not in text.lower().replace("name", "")
