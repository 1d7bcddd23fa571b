"""Extraction with the nodes of a Ray cluster: the same bytes as on one machine, whatever happens to a node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from larql_duck.cli import app as cli
from larql_duck.errors import LarqlError
from larql_duck.extraction import extract
from larql_duck.extraction.over_ray import RayLayers

pytestmark = pytest.mark.extras
ray = pytest.importorskip("ray", reason="pip install 'larql-duck[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of a head without processors and two nodes with one each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def same_tables(a: Path, b: Path) -> None:
    for name in ("features", "feature_tokens", "token_features", "tokens", "layers"):
        assert pq.read_table(a / "tables" / f"{name}.parquet").equals(
            pq.read_table(b / "tables" / f"{name}.parquet")
        ), name
    for file in a.glob("*.bin"):
        assert file.read_bytes() == (b / file.name).read_bytes(), file.name


def test_two_nodes_give_what_one_machine_gives(cluster: Any, tiny_model, tmp_path: Path) -> None:
    model = tiny_model("llama")
    extract(model, tmp_path / "alone", probe=False)
    arguments = ["extract", str(model), "-o", str(tmp_path / "over"), "--no-probe", "--ray", cluster.address]
    assert cli.run(arguments) == 0
    same_tables(tmp_path / "alone", tmp_path / "over")


def test_a_lost_node_is_made_good(
    cluster: Any, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    extract(model, tmp_path / "alone", probe=False)
    nodes = [cluster.add_node(num_cpus=1)]
    finished: list[int] = []
    promoted = RayLayers.promoted

    def watched(self: RayLayers, *arguments: Any) -> Iterator[Any]:
        for found in promoted(self, *arguments):
            finished.append(found[0])
            if nodes:
                # In the middle: one layer is there, others are not.
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            yield found

    monkeypatch.setattr(RayLayers, "promoted", watched)
    extract(model, tmp_path / "over", probe=False, ray=cluster.address)
    assert not nodes and len(finished) == len(set(finished))
    same_tables(tmp_path / "alone", tmp_path / "over")


def test_a_stopped_run_goes_on_without_the_cluster(
    cluster: Any, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    extract(model, tmp_path / "alone", probe=False)
    promoted = RayLayers.promoted

    def interrupted(self: RayLayers, *arguments: Any) -> Iterator[Any]:
        yield next(iter(promoted(self, *arguments)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RayLayers, "promoted", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(model, tmp_path / "over", probe=False, ray=cluster.address)
    extract(model, tmp_path / "over", probe=False, resume=True)
    same_tables(tmp_path / "alone", tmp_path / "over")


def test_what_no_node_has_room_for_is_refused(
    cluster: Any, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"memory": 1e6}}])
    with pytest.raises(LarqlError, match="no node of the cluster offers more than 1 MB"):
        extract(tiny_model("llama"), tmp_path / "over", probe=False, ray=cluster.address)
