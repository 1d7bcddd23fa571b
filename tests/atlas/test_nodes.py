"""Activations collected by nodes: shards of texts give what one machine collects, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import larql_duck as lq
from larql_duck.atlas import collecting
from larql_duck.atlas.collecting import collect
from larql_duck.atlas.tables import atlas_tables
from larql_duck.atlas.texts import open_corpus
from larql_duck.cli import app as cli
from larql_duck.errors import LarqlError
from larql_duck.inference import engine_nodes
from larql_duck.inference.engine_nodes import EngineNodes
from tests.atlas.test_collecting import TABLES, TEXTS
from tests.cluster import Backwards
from tests.inference.conftest import Tiny


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS * 4) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_BLOCK", 300)
    monkeypatch.setattr(collecting, "_PASS", 100)
    monkeypatch.setattr(collecting, "FIRST_TOKENS", 250)
    monkeypatch.setattr(collecting, "_SHARD", 2)


def collected(
    tiny: Tiny, texts: Path, kept: Path, cluster: Backwards | None = None, **options: Any
) -> dict[str, pa.Table]:
    kept.mkdir(exist_ok=True)
    corpus = open_corpus(texts)
    nodes = None if cluster is None else EngineNodes(cluster, tiny.engine, tiny.path)
    run = collect(tiny.engine, corpus, kept, window=12, top=3, nodes=nodes, **options)
    return atlas_tables(tiny.engine, corpus, run, lambda *_: None)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_give_what_one_machine_collects(
    family: str, tiny_of: Any, texts: Path, tmp_path: Path
) -> None:
    tiny = tiny_of(family)
    alone = collected(tiny, texts, tmp_path / "alone")
    cluster = Backwards()
    over = collected(tiny, texts, tmp_path / "over", cluster)
    assert len(cluster.asked) >= 4
    for name in TABLES:
        assert alone[name].equals(over[name]), name


@pytest.mark.parametrize("first", ["nodes", "here"])
def test_either_goes_on_where_the_other_stopped(
    first: str, tiny_of: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_of("llama")
    alone = collected(tiny, texts, tmp_path / "alone")
    monkeypatch.setattr(collecting, "_EVERY", 0.0)
    told: list[int] = []

    def stop(stage: str, done: float, total: float) -> None:
        told.append(int(done))
        if len(told) == 4:
            raise KeyboardInterrupt

    clusters = [Backwards(), None] if first == "nodes" else [None, Backwards()]
    with pytest.raises(KeyboardInterrupt):
        collected(tiny, texts, tmp_path / "kept", clusters[0], progress=stop)
    notices: list[str] = []
    over = collected(tiny, texts, tmp_path / "kept", clusters[1], notice=notices.append)
    assert any("continues after" in line for line in notices)
    for name in TABLES:
        assert alone[name].equals(over[name]), name


def test_the_command_stores_what_nodes_found(
    tiny_vindex: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck import cluster as clusters

    vindexes = [tmp_path / f"{name}.vindex" for name in ("alone", "over")]
    for path in vindexes:
        shutil.copytree(tiny_vindex("llama"), path)
    used = Backwards()
    monkeypatch.setattr(clusters, "cluster_at", used.at)
    options = ["--window", "12", "--top", "3"]
    assert cli.run(["activations", str(vindexes[0]), str(texts), *options]) == 0
    assert not used.asked
    assert cli.run(["activations", str(vindexes[1]), str(texts), *options, "--ray", "auto"]) == 0
    assert used.asked and min(used.asked) > 300e6
    with lq.connect(vindexes[0]) as alone, lq.connect(vindexes[1]) as over:
        for name in TABLES:
            assert alone.sql(f"FROM {name}").arrow().equals(over.sql(f"FROM {name}").arrow()), name


def test_what_one_machine_has_to_do_is_refused(
    tiny_vindex: Any, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["activations", str(tiny_vindex("llama")), str(texts), "--raw", str(tmp_path / "raw.parquet")]
    assert cli.run([*arguments, "--ray", "auto"]) == 2
    assert "leave out --ray" in capfd.readouterr().err
    edited: Any = SimpleNamespace(overlay=object())
    with pytest.raises(LarqlError, match="without the session's edits"):
        EngineNodes(Backwards(), edited, tiny_vindex("llama"))


def test_another_model_on_a_node_is_noticed(tiny_of: Any, tmp_path: Path) -> None:
    engine_nodes.named_engine.cache_clear()
    nodes = EngineNodes(Backwards(), tiny_of("llama").engine, tiny_of("gpt2").path)
    with pytest.raises(LarqlError, match="another model there"):
        list(nodes.run(collecting.run_shard, [(np.zeros(3), 3, [])]))
