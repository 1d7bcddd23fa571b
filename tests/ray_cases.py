"""Ray as a Cluster: tasks on two local nodes, one of which may die."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from larql_duck import cluster as clusters
from larql_duck.atlas import collecting
from larql_duck.cli import app as cli
from larql_duck.cluster import Cluster, cluster_at
from larql_duck.errors import LarqlError
from larql_duck.extraction import extract
from larql_duck.vindex.store import Vindex
from tests.atlas.test_collecting import TABLES as ACTIVATIONS
from tests.atlas.test_collecting import TEXTS
from tests.extraction.compare import same
from tests.probing.test_nodes import close
from tests.ray_nodes import MOST, NODE, failing, noted, two_nodes
from tests.tiny import make_tiny

pytestmark = pytest.mark.extras
ray = pytest.importorskip("ray", reason="pip install 'larql-duck[ray]'")
MB = 1_000_000


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(nodes: Any) -> Iterator[Cluster]:
    with cluster_at(nodes.address) as connected:
        assert connected is not None
        yield connected


def attempts(folder: Path) -> Counter[int]:
    return Counter(int(path.name.split("-")[0]) for path in folder.iterdir())


def test_tasks_run_on_both_nodes_and_come_in_order_where_that_is_asked(
    cluster: Cluster, tmp_path: Path
) -> None:
    calls = [(str(tmp_path), i, 0.4 if i == 0 else 0.05) for i in range(8)]
    found = list(cluster.run(noted, calls, memory=MB, in_order=True))
    assert found == [(call, 2 * call[1]) for call in calls]
    assert len({path.name.split("-")[1] for path in tmp_path.iterdir()}) == 2
    by_time = list(cluster.run(noted, calls, memory=MB))
    assert sorted(by_time) == found and by_time != found


def test_calls_are_taken_as_there_is_room(cluster: Cluster, tmp_path: Path) -> None:
    taken = []

    def calls() -> Iterator[tuple[str, int, float]]:
        for i in range(20):
            taken.append(i)
            yield str(tmp_path), i, 0.0

    for done, _ in enumerate(cluster.run(noted, calls(), memory=MB, in_order=True)):
        # Two that run and two that wait.
        assert len(taken) <= done + 4
    assert attempts(tmp_path) == dict.fromkeys(range(20), 1)


def test_a_lost_node_loses_what_it_was_at(nodes: Any, cluster: Cluster, tmp_path: Path) -> None:
    third = nodes.add_node(**NODE)
    calls = [(str(tmp_path), i, 0.5) for i in range(12)]
    found = []
    for result in cluster.run(noted, calls, memory=MB):
        found.append(result)
        if third is not None and any(third.node_id in path.name for path in tmp_path.iterdir()):
            nodes.remove_node(third, allow_graceful=False)
            third = None
    assert third is None
    assert sorted(found) == [(call, 2 * call[1]) for call in calls]
    again = [number for number, times in attempts(tmp_path).items() if times > 1]
    assert len(again) <= 1, again


def test_errors_are_one_line(cluster: Cluster) -> None:
    with pytest.raises(LarqlError, match=r"^on a node of the cluster: no such word$"):
        list(cluster.run(failing, [("no such word", True)], memory=MB))
    with pytest.raises(LarqlError, match=r"^a task failed on a node: .*broken.*ray list tasks") as caught:
        list(cluster.run(failing, [("broken", False)], memory=MB))
    assert "\n" not in str(caught.value)
    with pytest.raises(
        LarqlError, match="takes 3000 MB, and no node of the cluster offers more than 2500 MB"
    ):
        list(cluster.run(failing, [("never", True)], memory=3000 * MB))
    assert cluster.memory() == MOST


def test_nodes_with_another_version_are_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "__version__", "0.0.9")
    with pytest.raises(LarqlError, match=r"and this machine 0\.0\.9; install the same"):
        list(cluster.run(noted, [(str(tmp_path), 1, 0.0)], memory=MB))
    assert not list(tmp_path.iterdir())


def test_what_is_not_wanted_any_more_is_not_begun(cluster: Cluster, tmp_path: Path) -> None:
    tasks = cluster.run(noted, [(str(tmp_path), i, 0.3) for i in range(50)], memory=MB)
    next(tasks)
    tasks.close()
    time.sleep(1.5)
    assert len(attempts(tmp_path)) <= 5


def test_an_extraction_goes_through_the_loss_of_a_node(
    nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny("llama", tmp_path / "llama", layers=8)
    options: dict[str, Any] = {"probe": False, "in_basis": "embedding"}
    alone = extract(model, tmp_path / "a.vindex", **options)
    extra = [nodes.add_node(**NODE)]
    told: list[tuple[str, float, float]] = []

    def progress(*line: Any) -> None:
        told.append(line)
        if extra and line[:2] == ("promoted tokens", 1):
            nodes.remove_node(extra.pop(), allow_graceful=False)

    over = extract(model, tmp_path / "b.vindex", ray=nodes.address, progress=progress, **options)
    assert not extra
    same(alone, over)
    for stage in ("promoted tokens", "top activating tokens"):
        assert [done for name, done, total in told if name == stage and total == 8] == list(range(1, 9))
    # Results are on stdout, and what Ray has to say of dead nodes is none.
    assert capfd.readouterr().out == ""


def test_activations_and_facts_are_those_of_one_machine(
    nodes: Any,
    tiny_vindex: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collecting, "_BLOCK", 500)
    monkeypatch.setattr(collecting, "FIRST_TOKENS", 250)
    monkeypatch.setattr(collecting, "_SHARD", 1)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS * 4) + "\n", encoding="utf-8")
    alone, over = (tmp_path / f"{name}.vindex" for name in ("alone", "over"))
    for path, ray_at in ((alone, []), (over, ["--ray", nodes.address])):
        shutil.copytree(tiny_vindex("llama"), path)
        assert cli.run(["activations", str(path), str(texts), "--window", "8", "--top", "3", *ray_at]) == 0
        arguments = ["--relation", "capital", "--limit", "40", "--jsonl", *ray_at]
        capfd.readouterr()
        assert cli.run(["probe", str(path), *arguments]) == 0
        # What Ray says is not among the results.
        assert all(line.startswith("{") for line in capfd.readouterr().out.splitlines())
    one, other = Vindex.open(alone), Vindex.open(over)
    for name in ACTIVATIONS:
        assert one.table(name).num_rows and one.table(name).equals(other.table(name)), name
    for name in ("probes", "facts", "edges"):
        close(one.table(name), other.table(name), name)
