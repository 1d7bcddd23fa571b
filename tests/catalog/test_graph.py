"""Neighbours and paths equal a plain breadth-first search on a random graph."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from larql_duck.catalog import SCHEMAS
from larql_duck.vindex.database import build_database
from larql_duck.vindex.publish import write_table
from tests.world import _table

Triple = tuple[str, str, str]


def _graph(seed: int, nodes: int = 40, triples: int = 60) -> dict[Triple, float | None]:
    rng = random.Random(seed)
    found: dict[Triple, float | None] = {}
    while len(found) < triples:
        s, o = rng.sample(range(nodes), 2)
        confidence = None if rng.random() < 0.3 else round(rng.random(), 6)
        found[f"n{s}", f"r{rng.randrange(3)}", f"n{o}"] = confidence
    return found


@pytest.fixture(scope="module", params=[1, 2])
def graph(request, tmp_path_factory: pytest.TempPathFactory):
    triples = _graph(request.param)
    directory = tmp_path_factory.mktemp("graph")
    rows = [
        (s, r, o, c, c, "weights" if c is None else "probe", [0], 1, False, None, None)
        for (s, r, o), c in sorted(triples.items())
    ]
    for name, schema in SCHEMAS.items():
        table = _table(name, rows) if name == "triples" else schema.empty_table()
        write_table(directory / f"{name}.parquet", name, table)
    build_database(directory, directory / "model.duckdb", "graph")
    con = duckdb.connect(str(directory / "model.duckdb"), read_only=True)
    yield triples, con
    con.close()


def _neighbors(triples: dict[Triple, Any], start: str, hops: int) -> set[tuple[int, Triple]]:
    reached, frontier, found = {start}, {start}, {}
    for hop in range(1, hops + 1):
        touched = [t for t in triples if t[0] in frontier or t[2] in frontier]
        for triple in touched:
            found.setdefault(triple, hop)
        frontier = {end for t in touched for end in (t[0], t[2])} - reached
        reached |= frontier
    return {(hop, triple) for triple, hop in found.items()}


@pytest.mark.parametrize("hops", [1, 2, 3, 6])
def test_neighbors(graph, hops: int) -> None:
    triples, con = graph
    for start in ("n0", "n1", "n7"):
        rows = con.execute("FROM neighbors($1, p_hops := $2, p_limit := 1000)", [start, hops]).fetchall()
        assert {(r[0], (r[1], r[2], r[3])) for r in rows} == _neighbors(triples, start, hops)
        assert len(rows) == len({r[1:4] for r in rows})
        assert [r[0] for r in rows] == sorted(r[0] for r in rows)
        assert all(r[4] == triples[r[1], r[2], r[3]] for r in rows)


def test_limit_keeps_the_nearest_and_most_confident(graph) -> None:
    _, con = graph
    everything = con.execute("FROM neighbors('n0', p_hops := 6, p_limit := 1000)").fetchall()
    for limit in (0, 1, 3, 10, 25):
        assert (
            con.execute("FROM neighbors('n0', p_hops := 6, p_limit := $1)", [limit]).fetchall()
            == everything[:limit]
        )


def test_relations_restrict_every_hop(graph) -> None:
    triples, con = graph
    some = {t: c for t, c in triples.items() if t[1] != "r2"}
    rows = con.execute(
        "FROM neighbors('n0', p_hops := 4, p_relations := ['R0', 'r1'], p_limit := 1000)"
    ).fetchall()
    assert {(r[0], (r[1], r[2], r[3])) for r in rows} == _neighbors(some, "n0", 4)


def _paths(triples: dict[Triple, float | None], start: str, end: str, most: int) -> set[tuple[Triple, ...]]:
    found: set[tuple[Triple, ...]] = set()

    def walk(node: str, nodes: tuple[str, ...], steps: tuple[Triple, ...]) -> None:
        if node == end:
            found.add(steps)
            return
        if len(steps) == most:
            return
        for triple in triples:
            for here, there in ((triple[0], triple[2]), (triple[2], triple[0])):
                if here == node and there not in nodes:
                    walk(there, (*nodes, there), (*steps, triple))

    walk(start, (start,), ())
    return found


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 6])
def test_paths(graph, most: int) -> None:
    triples, con = graph
    for start, end in itertools.combinations(("n0", "n3", "n11"), 2):
        rows = con.execute(
            "FROM paths($1, $2, p_max := $3, p_limit := 100000)", [start, end, most]
        ).fetchall()
        got = [tuple((t["subject"], t["relation"], t["object"]) for t in r[0]) for r in rows]
        assert set(got) == _paths(triples, start, end, most)
        assert len(got) == len(set(got))
        assert [r[1] for r in rows] == [len(path) for path in got] == sorted(len(path) for path in got)
        for path, _, confidence in zip(got, rows, (r[2] for r in rows), strict=True):
            values = [triples[t] for t in path]
            expected = None
            if all(v is not None for v in values):
                expected = 1.0
                for v in values:
                    expected *= v
            assert confidence == pytest.approx(expected) if expected is not None else confidence is None


def test_shortest_paths_come_first_whatever_the_limit(graph) -> None:
    _, con = graph
    everything = con.execute("FROM paths('n0', 'n3', p_max := 6, p_limit := 100000)").fetchall()
    for limit in (1, 2, 7):
        assert (
            con.execute("FROM paths('n0', 'n3', p_max := 6, p_limit := $1)", [limit]).fetchall()
            == everything[:limit]
        )


def test_facts_without_a_confidence_are_ordered_by_p_before_weight_triples(tmp_path: Path) -> None:
    ways = [
        ("b", "weights", None, None),
        ("c", "probe", None, 0.2),
        ("d", "probe", None, 0.7),
        ("e", "probe", 0.3, 0.9),
    ]
    rows = [
        (s, "to", o, confidence, p, source, [0], 1, False, None, None)
        for middle, source, confidence, p in ways
        for s, o in (("a", middle), (middle, "z"))
    ]
    for name, schema in SCHEMAS.items():
        table = _table(name, sorted(rows)) if name == "triples" else schema.empty_table()
        write_table(tmp_path / f"{name}.parquet", name, table)
    build_database(tmp_path, tmp_path / "model.duckdb", "ways")
    con = duckdb.connect(str(tmp_path / "model.duckdb"), read_only=True)
    found = con.execute("FROM paths('a', 'z')").fetchall()
    assert [(path[0]["object"], confidence and round(confidence, 2)) for path, _, confidence in found] == [
        ("d", None), ("e", 0.09), ("c", None), ("b", None),
    ]  # fmt: skip
    con.close()


def test_nothing_is_found_for_strangers(graph) -> None:
    _, con = graph
    assert con.execute("FROM paths('n0', 'nobody', p_max := 6)").fetchall() == []
    assert con.execute("FROM neighbors('nobody', p_hops := 6)").fetchall() == []
    assert con.execute("FROM paths('n0', 'n0', p_max := 6)").fetchall() == []


def test_a_hub_does_not_make_questions_endless(tmp_path: Path) -> None:
    rows = [
        (f"leaf{i:05}", "in", "hub", None, None, "weights", [0], 1, False, None, None) for i in range(20_000)
    ]
    for name, schema in SCHEMAS.items():
        table = _table(name, rows) if name == "triples" else schema.empty_table()
        write_table(tmp_path / f"{name}.parquet", name, table)
    build_database(tmp_path, tmp_path / "model.duckdb", "hub")
    con = duckdb.connect(str(tmp_path / "model.duckdb"), read_only=True)
    rows = con.execute("FROM neighbors('leaf00000', p_hops := 6, p_limit := 50)").fetchall()
    assert len(rows) == 50 and rows[0][1:4] == ("leaf00000", "in", "hub")
    (path,) = con.execute("FROM paths('leaf00001', 'leaf00002', p_max := 6)").fetchall()
    assert path[1] == 2
    con.close()
