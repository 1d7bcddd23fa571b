"""Lookups in a graph of five million triples, warm and from a cold CLI, beside the least that DuckDB can do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cases import Case, Row, median_time, rows_of, run, tool, vindex
from larql_duck.catalog import SCHEMAS, as_table, empty_table
from larql_duck.vindex.database import build_database
from larql_duck.vindex.derive import derive_entities

_TRIPLES = 5_000_000
_SUBJECTS = 20_000


def big_database(work: Path) -> Path:
    """A model.duckdb with five million triples over 20,000 subjects, made once."""
    path = work / "big.duckdb"
    if path.exists():
        return path
    tables = work / "big-tables"
    tables.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    names = pa.array([f"Entity {i:05d}" for i in range(_SUBJECTS)])
    relations = pa.array([f"relation {i}" for i in range(40)])
    subject = np.sort(rng.integers(0, _SUBJECTS, _TRIPLES))
    p = rng.random(_TRIPLES)
    triples = as_table(
        "triples",
        {
            "subject": names.take(pa.array(subject)),
            "relation": relations.take(pa.array(rng.integers(0, 40, _TRIPLES))),
            "object": names.take(pa.array(rng.integers(0, _SUBJECTS, _TRIPLES))),
            "confidence": p,
            "p": p,
            "source": pa.array(["probe"]).take(pa.array(np.zeros(_TRIPLES, np.int8))),
            "n_edges": np.full(_TRIPLES, 3, np.int32),
        },
    )
    for name in SCHEMAS:
        made = {"triples": lambda: triples, "entities": lambda: derive_entities(triples)}
        pq.write_table(made.get(name, lambda name=name: empty_table(name))(), tables / f"{name}.parquet")
    build_database(tables, path, "0" * 64)
    return path


def graph(work: Path) -> Iterator[Row]:
    """One subject of five million triples; neighbours three hops away."""
    import duckdb

    path = big_database(work)
    con = duckdb.connect(str(path), read_only=True)
    query = "SELECT relationship, object FROM model_graph WHERE subject = 'Entity 00777'"
    yield Row(
        "one subject of 5 M triples, warm",
        1e3 * median_time(lambda: con.execute(query).fetchall(), 50),
        None,
        "ms",
        "3 ms",
    )
    hops = "SELECT count(*) FROM (FROM neighbors('Entity 00777', p_hops := 3) LIMIT 100)"
    yield Row(
        "neighbours, 3 hops, LIMIT 100",
        1e3 * median_time(lambda: con.execute(hops).fetchall(), 5),
        None,
        "ms",
        "100 ms",
    )
    con.close()
    empty = work / "empty.duckdb"
    duckdb.connect(str(empty), config={"storage_compatibility_version": "v1.5.0"}).close()

    def cli(database: Path, text: str) -> None:
        subprocess.run(
            [tool("duckdb"), "-readonly", str(database), "-c", text], check=True, stdout=subprocess.DEVNULL
        )

    yield Row(
        "cold CLI process",
        1e3 * median_time(lambda: cli(path, query), 15),
        1e3 * median_time(lambda: cli(empty, "SELECT 1"), 15),
        "ms",
        "1.5",
    )


def walk_in_cli(work: Path) -> Iterator[Row]:
    """The `walk` macro on SmolLM2, warm in one process."""
    import duckdb

    con = duckdb.connect(str(vindex(work) / "model.duckdb"), read_only=True)
    yield Row(
        "walk(' France'), warm",
        1e3 * median_time(lambda: con.execute("FROM walk('France')").fetchall(), 30),
        None,
        "ms",
        "10 ms",
    )


def startup(work: Path) -> Iterator[Row]:
    """Import, cold statements, warm statements."""
    ours = min(run([sys.executable, "-c", "import duckdb, larql_duck"])[0] for _ in range(7))
    base = min(run([sys.executable, "-c", "import duckdb"])[0] for _ in range(7))
    yield Row("import beyond duckdb's", 1e3 * (ours - base), None, "ms", "150 ms")
    path = vindex(work)
    for statement in ('DESCRIBE "France"', "SHOW RELATIONS", "SELECT * FROM EDGES LIMIT 5"):
        seconds = median_time(partial(run, [tool("larql-duck"), "lql", path, statement]), 5)
        yield Row(f"larql-duck lql, cold: {statement}", seconds, None, "s", "1 s")
    import larql_duck as lq

    session = lq.connect(path)
    for statement in (
        'DESCRIBE "France"',
        'WALK "France"',
        "SHOW RELATIONS",
        "SELECT * FROM EDGES WHERE entity = 'France'",
    ):
        seconds = median_time(partial(rows_of, session, statement), 20, warmup=3)
        yield Row(f"warm: {statement}", 1e3 * seconds, 250.0, "ms", "15 ms", "peer: the reference system")


CASES: dict[str, Case] = {"graph": graph, "walk": walk_in_cli, "startup": startup}
