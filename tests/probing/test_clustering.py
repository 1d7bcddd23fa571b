"""Relations found by clustering: directions, labels with their sources, and what is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from larql_duck.cli import app as cli
from larql_duck.commands.opening import connect
from larql_duck.probing.clustering import (
    Clusters,
    FeatureDirections,
    Label,
    _Namer,
    _patterns,
    discover,
    feature_directions,
    tables_of,
)
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify


@pytest.fixture(scope="module")
def base(tiny_vindex) -> Path:
    return tiny_vindex("llama")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "m.vindex")


def named(base: Path, answers: list[str], writes: list[str], member: list[int]) -> list[Label | None]:
    n = len(answers)
    found = FeatureDirections(np.zeros(n, int), np.arange(n), answers, writes, np.zeros((n, 2), np.float32))
    return _Namer(Vindex.open(base), found, np.array(member), max(member) + 1).labels()


def test_directions_are_unit_and_lead_from_the_activating_to_the_promoted_token(base: Path) -> None:
    vindex = Vindex.open(base)
    found = feature_directions(vindex)
    assert len(found.layer) == len(found.activates_on) == len(found.unit) > 10
    assert np.linalg.norm(found.unit, axis=1) == pytest.approx(np.ones(len(found.unit)), abs=1e-5)
    tokens = {r["token_id"]: r for r in vindex.table("tokens").to_pylist()}
    rows = vindex.table("feature_tokens").to_pylist()
    at = {(r["layer"], r["feature"], r["side"], r["rank"]): r for r in rows}
    signs = {(r["layer"], r["feature"]): r["sign"] for r in vindex.table("features").to_pylist()}
    embeddings = vindex.embeddings().float().numpy()
    for i in range(0, len(found.layer), 7):
        slot = (int(found.layer[i]), int(found.feature[i]))
        inner = at[*slot, "in", 1]
        side = "out_neg" if signs[slot] < 0 else "out"
        outer = at[*slot, side, 1]
        offset = embeddings[outer["token_id"]] - embeddings[inner["token_id"]]
        assert found.unit[i] == pytest.approx(offset / np.linalg.norm(offset), abs=1e-5)
        assert found.promotes[i] == tokens[outer["token_id"]]["text"]


def test_clusters_are_the_same_for_a_seed_and_cover_every_direction(base: Path) -> None:
    vindex = Vindex.open(base)
    one, two = (discover(vindex, k=8, seed=3) for _ in range(2))
    assert (one.member == two.member).all() and np.array_equal(one.centres, two.centres)
    assert one.labels == two.labels
    assert set(one.member) <= set(range(8)) and len(one.centres) == 8
    assert len(discover(vindex, k=100_000).centres) <= len(one.member)


def test_references_name_a_cluster_that_turns_countries_into_capitals(base: Path) -> None:
    capitals = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid"}
    noise = [f"word{i}" for i in range(60)]
    labels = named(
        base,
        [*capitals, *noise],
        [*capitals.values(), *(f"other{i}" for i in range(60))],
        [0] * 5 + [1] * 60,
    )
    assert labels[0] is not None and (labels[0].text, labels[0].source) == ("capital", "reference")
    assert 0.5 < labels[0].confidence < 1
    assert labels[1] is None


def test_patterns_come_after_references_and_tokens_last(base: Path) -> None:
    words = ["cat", "dog", "tree", "house", "river", "stone", "cloud", "chair"]
    noise = [f"word{i}" for i in range(80)]
    labels = named(
        base,
        [*words, *noise, *(f"a{i}" for i in range(10))],
        [*(w + "s" for w in words), *(f"other{i}" for i in range(80)), *["the"] * 10],
        [0] * 8 + [1] * 80 + [2] * 10,
    )
    assert labels[0] is not None and labels[0].source in ("pattern", "reference")
    assert labels[1] is None
    assert labels[2] is not None and (labels[2].text, labels[2].source) == ("the", "tokens")


def test_what_all_features_do_names_no_cluster(base: Path) -> None:
    labels = named(base, [f"word{i}" for i in range(40)], ["the"] * 40, [0] * 20 + [1] * 20)
    assert labels == [None, None]


@pytest.mark.parametrize(
    ("answer", "written", "name"),
    [
        ("third", "march", "month"),
        ("x", "12", "number"),
        ("cat", "cats", "plural"),
    ],
)
def test_patterns(answer: str, written: str, name: str) -> None:
    assert _patterns(answer, written) == (name,)


def test_an_ending_goes_on_within_a_word() -> None:
    assert _patterns("walk", "ing", True) == ("ending",)
    assert _patterns("walk", "to", False) == ()


def test_confident_labels_reach_features_but_not_over_probed_ones(base: Path) -> None:
    vindex = Vindex.open(base)
    found = discover(vindex, k=4)
    labels = [
        Label("sure", "pattern", 0.9),
        Label("unsure", "pattern", 0.2),
        Label("the/of", "tokens", 0.9),
        None,
    ]
    made = Clusters(found.directions, found.member, found.centres, labels, found.top_tokens)
    tables = tables_of(vindex, made)
    rows = tables["features"].to_pylist()
    for row in rows:
        assert (row["relation"] == "sure") == (row["cluster_id"] == 0)
        assert (row["relation_source"] == "cluster") == (row["cluster_id"] == 0)
    assert tables["relations"].column("relation").to_pylist() == ["sure"]
    assert tables["clusters"].column("label").to_pylist() == ["sure", "unsure", "the/of", None]
    assert sum(tables["clusters"].column("size").to_pylist()) == tables["feature_clusters"].num_rows


def test_cli_publishes_clusters_beside_facts(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with connect(copy) as s:
        s.probe(["France", "Germany"], {"situated in": ["The capital of {} is", "{}'s capital is"]})
        before = s.sql("FROM facts").rows()
        labelled = s.sql(
            "SELECT layer, feature FROM features WHERE relation_source = 'probe' ORDER BY ALL"
        ).rows()
    assert cli.run(["cluster", str(copy), "-k", "6", "--jsonl"]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 6 and "of 6 clusters" in err
    assert verify(copy) == []
    clusters = json.loads((copy / "relation_clusters.json").read_text())
    assert (
        clusters["k"]
        == len(clusters["centres"])
        == len(clusters["labels"])
        == len(clusters["top_tokens"])
        == 6
    )
    members = [json.loads(line) for line in (copy / "feature_clusters.jsonl").read_text().splitlines()]
    assert sum(clusters["counts"]) == len(members) and set(members[0]) == {"l", "f", "c"}
    with connect(copy) as s:
        assert s.sql("FROM facts").rows() == before
        now = s.sql("SELECT layer, feature FROM features WHERE relation_source = 'probe' ORDER BY ALL").rows()
        assert now == labelled
        assert s.sql("SELECT count(cluster_id) FROM features").one() == len(members)
        s.probe(["Japan"], {"situated in": ["The capital of {} is"]})
        assert s.sql("SELECT count(cluster_id) FROM features").one() == len(members)
        names = s.sql("SELECT relation FROM relations").arrow()
        assert isinstance(names, pa.Table) and len(set(names.column(0).to_pylist())) == names.num_rows
