"""Processes that read a vindex in every way that there is, and one that probes beside them."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUBJECTS = ["Paris", "France", "Germany", "Japan"]
# Each probing takes the place of all facts of the one before.
TEMPLATES = ("The currency of {} is", "{}'s seat is")
STATE = (
    "SELECT f.subject, f.prompt, f.p, t.p, f.n_features, (SELECT count(*) FROM {0}edges AS e WHERE e.source = 'probe'"
    " AND (e.subject, e.relation, e.object) = (f.subject, f.relation, f.object)) FROM {0}facts AS f"
    " LEFT JOIN {0}triples AS t USING (subject, relation, object) WHERE f.relation = 'seat' ORDER BY ALL"
)


def through_session(vindex: Path) -> list[tuple[Any, ...]]:
    """The facts of the last probing as larql-duck shows them."""
    import larql_duck as lq

    with lq.connect(vindex) as s:
        return s.sql(STATE.format("lq.")).fetchall()


def through_duckdb(vindex: Path) -> list[tuple[Any, ...]]:
    """The facts of the last probing as DuckDB alone shows them."""
    import duckdb

    with duckdb.connect(str(vindex / "model.duckdb"), read_only=True) as con:
        return con.execute(STATE.format("lq.")).fetchall()


def through_parquet(vindex: Path) -> list[tuple[Any, ...]]:
    """The facts of the last probing from the files that index.json names; those of another index.json are read again."""
    import duckdb
    import pyarrow.parquet as pq

    until = time.monotonic() + 10
    while True:
        tables = json.loads((vindex / "index.json").read_bytes())["larql_duck"]["tables"]
        files = {name: (vindex / tables[name]["file"]).read_bytes() for name in ("facts", "triples", "edges")}
        if all(hashlib.sha256(data).hexdigest() == tables[name]["sha256"] for name, data in files.items()):
            break
        assert time.monotonic() < until, "index.json does not name the files that are there"
    with duckdb.connect() as con:
        for name, data in files.items():
            con.register(name, pq.read_table(io.BytesIO(data)))
        return con.execute(STATE.format("")).fetchall()


WAYS: tuple[Callable[[Path], list[tuple[Any, ...]]], ...] = (
    through_session,
    through_duckdb,
    through_parquet,
    through_session,
)


def read(way: int, vindex: Path, states: list[list[tuple[Any, ...]]], stop: Any, results: Any) -> None:
    """Open and read until `stop` is set; send how often, and what was refused or none of the states that may be seen."""
    opens, wrong = 0, []
    while not stop.is_set():
        opens += 1
        try:
            rows = WAYS[way](vindex)
        except Exception as error:
            wrong.append(f"{WAYS[way].__name__}, opening {opens}: {type(error).__name__}: {error}")
        else:
            if rows not in states:
                wrong.append(f"{WAYS[way].__name__}, opening {opens}: {rows}")
    results.send((opens, wrong))


def ask(session: Any, template: int) -> None:
    """Probe for the relation `seat`, with one of the templates."""
    session.probe(SUBJECTS, {"seat": [TEMPLATES[template]]})


def probe(vindex: Path, stop: Any, probings: Any) -> None:
    """Probe again and again until `stop` is set, in turn with each template; `probings` counts."""
    import torch

    import larql_duck as lq

    torch.set_num_threads(1)
    with lq.connect(vindex) as s:
        while not stop.is_set():
            ask(s, probings.value % 2)
            probings.value += 1
