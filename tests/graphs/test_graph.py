"""The graph of facts and what is measured of it, beside networkx's own algorithms."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import networkx
import pytest

import larql_duck as lq
from larql_duck.cli import app as cli
from larql_duck.commands.graph_measures import measure_graph
from larql_duck.errors import LarqlError
from larql_duck.session import Session

pytest.importorskip("rustworkx", reason="pip install 'larql-duck[graph]'")


@pytest.fixture(scope="module")
def measured(probed_vindex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny probed vindex whose graph was measured by the command. Only to be read."""
    vindex = Path(shutil.copytree(probed_vindex("llama"), tmp_path_factory.mktemp("graph") / "x.vindex"))
    assert cli.run(["graph", str(vindex), "--hubs", "2", "--json"]) == 0
    return vindex


def as_networkx(s: Session) -> networkx.MultiDiGraph:
    facts = s.sql("SELECT subject, object FROM triples WHERE source <> 'weights'").rows()
    return networkx.MultiDiGraph(facts)


def test_the_graph_has_the_facts(s: Session) -> None:
    graph = s.graph()
    rows = s.sql(
        "SELECT subject, relation, object, p, confidence, source FROM triples WHERE source <> 'weights'"
    ).dicts()
    edges = [{"subject": graph[a], "object": graph[b], **w} for a, b, w in graph.weighted_edge_list()]
    assert Counter(repr(sorted(e.items())) for e in edges) == Counter(repr(sorted(r.items())) for r in rows)
    assert len(set(graph.nodes())) == len(graph)
    assert {w["relation"] for _, _, w in s.graph(["capital"]).weighted_edge_list()} == {"capital"}
    assert len(s.graph(["no such relation"])) == 0


def test_pagerank_is_networkxs(measured: Path) -> None:
    with lq.connect(measured) as s:
        expected = networkx.pagerank(as_networkx(s), tol=1e-9)
        rows = s.sql("SELECT entity, pagerank, place FROM entity_ranks ORDER BY place").rows()
        assert {entity: p for entity, p, _ in rows} == pytest.approx(expected, abs=1e-5)
        assert [place for *_, place in rows] == list(range(1, len(expected) + 1))
        assert [p for _, p, _ in rows] == sorted((p for _, p, _ in rows), reverse=True)
        assert s.sql("SELECT entity FROM central(p_limit := 1)").rows() == [(rows[0][0],)]


def test_communities_cover_every_name_once(measured: Path) -> None:
    with lq.connect(measured) as s:
        plain = networkx.Graph(as_networkx(s))
        groups: dict[int, set[str]] = {}
        for entity, community in s.sql("SELECT entity, community FROM entity_ranks").rows():
            groups.setdefault(community, set()).add(entity)
        assert networkx.community.is_partition(plain, groups.values())
        sizes = [len(groups[number]) for number in range(len(groups))]
        assert sizes == sorted(sizes, reverse=True)
        name = next(iter(groups[0]))
        found = s.sql("SELECT entity FROM community_of($name, p_limit := 1000)", {"name": name}).rows()
        assert {entity for (entity,) in found} == groups[0]


def test_shortest_paths_are_shortest(measured: Path) -> None:
    with lq.connect(measured) as s:
        plain = networkx.Graph(as_networkx(s))
        hubs = [hub for (hub,) in s.sql("SELECT entity FROM central(p_limit := 2)").rows()]
        for hub in hubs:
            rows = s.sql("SELECT entity, length FROM hub_paths WHERE hub = $hub", {"hub": hub}).rows()
            assert dict(rows) == networkx.single_source_shortest_path_length(plain, hub)
        far, length = max(
            networkx.single_source_shortest_path_length(plain, hubs[0]).items(), key=lambda x: x[1]
        )
        for ends in ((hubs[0], far), (far, hubs[0])):
            path = s.sql("FROM shortest_path($a, $b)", dict(zip("ab", ends, strict=True))).rows()
            names = [entity for _, entity, _ in path]
            assert (names[0], names[-1]) == ends and len(names) == length + 1
            assert all(plain.has_edge(a, b) for a, b in pairwise(names))
            assert [step for step, _, _ in path] == list(range(length + 1)) and all(sure for *_, sure in path)


def test_a_path_over_a_hub_is_not_called_shortest(s: Session) -> None:
    assert s.sql("FROM shortest_path('paris', 'Germany')").rows() == [
        (0, "Paris", False), (1, "France", False), (2, "Europe", False), (3, "Germany", False),
    ]  # fmt: skip
    assert s.sql("FROM shortest_path('Paris', 'nobody')").rows() == []
    assert s.sql("FROM shortest_path('Europe', 'Europe')").rows() == [(0, "Europe", True)]


def test_the_same_facts_are_measured_the_same(measured: Path) -> None:
    with lq.connect(measured) as s:
        before = s.sql("FROM entity_ranks ORDER BY place").rows()
        measure_graph(s, 2)
        assert s.sql("FROM entity_ranks ORDER BY place").rows() == before


def test_edits_and_no_facts_are_refused(tiny_vindex, measured: Path) -> None:
    with lq.connect(tiny_vindex("llama")) as s, pytest.raises(LarqlError, match="holds no facts yet"):
        measure_graph(s)
    with lq.connect(measured) as s:
        s.insert([("France", "capital", "Rome")], mode="knn")
        assert "Rome" in s.graph().nodes()
        with pytest.raises(LarqlError, match="this session has edits"):
            measure_graph(s)


def test_without_rustworkx(s: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rustworkx", None)
    with pytest.raises(LarqlError, match=r"pip install 'larql-duck\[graph\]'"):
        s.graph()
