"""Probing with nodes: batches of prompts made elsewhere say the same words, with the same numbers but for last digits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import larql_duck as lq
from larql_duck import cluster as clusters
from larql_duck.cli import app as cli
from larql_duck.extraction import extract, pipeline
from larql_duck.inference.engine import Engine
from larql_duck.inference.engine_nodes import EngineNodes
from larql_duck.knowledge.relations import Pack
from larql_duck.models.opening import open_model
from larql_duck.probing import measure, replies
from larql_duck.vindex.store import Vindex
from tests.cluster import Backwards
from tests.editing.tables import RELATIONS, SUBJECTS
from tests.probing.support import probe_facts
from tests.probing.test_probe import CAPITAL, LANGUAGE

PACK = Pack("tiny", (CAPITAL, LANGUAGE))
FACTS = ("probes", "facts", "edges", "feature_relations", "relations")


@pytest.fixture(scope="module")
def engine(tiny_model: Any) -> Engine:
    return Engine.load(open_model(tiny_model("qwen3")))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "BATCH_CACHE", 1 << 16)
    monkeypatch.setattr(measure, "BATCH_CACHE", 1 << 16)


def close(a: pa.Table, b: pa.Table, name: str = "") -> None:
    """The same rows: strings and whole numbers equal, others within 1e-5 (of themselves, if above 1)."""
    assert a.schema.equals(b.schema) and a.num_rows == b.num_rows, name
    for column in a.column_names:
        left, right = a.column(column).to_pylist(), b.column(column).to_pylist()
        if pa.types.is_floating(a.schema.field(column).type):
            assert [v is None for v in left] == [v is None for v in right], (name, column)
            numbers = np.array(left, float), np.array(right, float)
            np.testing.assert_allclose(*numbers, rtol=1e-5, atol=1e-5, err_msg=f"{name}.{column}")
        else:
            assert left == right, (name, column)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_nodes_find_the_same_facts(engine: Engine, tiny_model: Any, ablation: str, tmp_path: Path) -> None:
    alone = probe_facts(engine, PACK, top_n=4, ablation=ablation)
    cluster = Backwards()
    nodes = EngineNodes(cluster, engine, tiny_model("qwen3"), memory=77)
    steps: list[tuple[int, int]] = []
    over = probe_facts(
        engine, PACK, top_n=4, ablation=ablation, nodes=nodes, progress=lambda *at: steps.append(at)
    )
    assert len(cluster.asked) > 10 and set(cluster.asked) == {77}
    for name in FACTS:
        close(alone[name], over[name], name)
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]


@pytest.mark.usefixtures("small_batches")
def test_what_nodes_have_made_is_not_asked_again(engine: Engine, tiny_model: Any, tmp_path: Path) -> None:
    def over(directory: Path, cluster: Backwards) -> dict[str, pa.Table]:
        nodes = EngineNodes(cluster, engine, tiny_model("qwen3"))
        return probe_facts(engine, PACK, checkpoint=directory, nodes=nodes)

    whole = Backwards()
    expected = over(tmp_path / "whole", whole)
    stopped, rest = Backwards(most=4), Backwards()
    with pytest.raises(KeyboardInterrupt):
        over(tmp_path / "kept", stopped)
    again = over(tmp_path / "kept", rest)
    assert len(rest.asked) == len(whole.asked) - 4
    for name in FACTS:
        assert expected[name].equals(again[name]), name
    # What they made serves one machine, too.
    close(probe_facts(engine, PACK, checkpoint=tmp_path / "kept")["facts"], expected["facts"])


def test_the_command_saves_what_nodes_found(
    tiny_vindex: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = Backwards()
    monkeypatch.setattr(clusters, "cluster_at", used.at)
    names = tmp_path / "names.csv"
    names.write_text("\n".join(["subject", *SUBJECTS]))
    arguments = ["--entities", str(names), "--relation", "capital", "--template", RELATIONS["capital"][0]]
    facts = []
    for name, ray in (("alone", []), ("over", ["--ray", "auto"])):
        path = tmp_path / f"{name}.vindex"
        shutil.copytree(tiny_vindex("llama"), path)
        assert not used.asked
        assert cli.run(["probe", str(path), *arguments, *ray]) == 0
        with lq.connect(path) as session:
            facts.append(session.sql("SELECT * FROM facts ORDER BY ALL").arrow())
    assert used.asked and min(used.asked) > 300e6
    assert facts[0].num_rows == 2
    close(*facts)


def test_an_extraction_has_its_facts_from_nodes(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tmp_path / "small.yaml"
    pack.write_text(
        "pack: small\nrelations:\n  - relation: capital of\n    description: d\n    answer: name\n"
        "    templates: ['The capital of {} is', \"{}'s capital is\"]\n"
        "    entities: [{subject: France, object: Paris}, {subject: Japan, object: Tokyo}, Germany]\n"
    )
    used = Backwards()
    monkeypatch.setattr(pipeline, "cluster_at", used.at)
    options: dict[str, Any] = {"in_basis": "embedding", "pack": str(pack), "names": 0}
    alone = Vindex.open(extract(tiny_model("gpt2"), tmp_path / "a.vindex", **options))
    over = Vindex.open(extract(tiny_model("gpt2"), tmp_path / "b.vindex", ray="auto", **options))
    # Layers for promoted tokens and for the embedding, then prompts.
    assert len(used.asked) > 2 * alone.n_layers
    for name in ("features", "feature_tokens", "token_features", "tokens", "probes", "facts", "edges"):
        close(alone.table(name), over.table(name), name)
