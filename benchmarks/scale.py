"""Beyond one machine: five million facts exported, LQL in other engines, a vindex at an address, extraction over Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.cases import Case, Row
from benchmarks.over_ray import one_node
from benchmarks.remote import remote
from benchmarks.sampling import watched
from benchmarks.sql import big_database

_EXPORT = """
import json, pathlib, sys
import larql_duck as lq
vindex, out, form, said = sys.argv[1:]
with lq.connect(vindex) as session:
    rows = session.lql(f"EXPORT CURRENT INTO '{out}' FORMAT {form}").dicts()
pathlib.Path(said).write_text(json.dumps(rows))
"""
_FORMATS = {
    "turtle": "ttl",
    "nquads": "nq",
    "jsonld": "jsonld",
    "graphml": "graphml",
    "neo4j": "csv",
    "parquet": "parquet",
}


def big_vindex(work: Path) -> Path:
    """A vindex of a tiny model with the five million triples of `big_database`, made once."""
    out = work / "big.vindex"
    if out.exists():
        return out
    from larql_duck.extraction import extract
    from larql_duck.vindex.publish import commit_tables
    from tests.tiny import make_tiny

    big_database(work)
    model = work / "tiny.model"
    make_tiny("llama", model)
    made = work / "big-making.vindex"
    extract(model, made, level="browse", probe=False)
    tables = work / "big-tables"
    commit_tables(made, {name: pq.read_table(tables / f"{name}.parquet") for name in ("triples", "entities")})
    return made.rename(out)


def exports(work: Path) -> Iterator[Row]:
    """EXPORT of five million facts in each format: how fast, and in how much memory."""
    vindex = big_vindex(work)
    for form, suffix in _FORMATS.items():
        said = work / "exported.json"
        taken = watched(_EXPORT, vindex, work / f"big.{suffix}", form, said)
        files = json.loads(said.read_text())
        records, size = (sum(file[name] for file in files) for name in ("records", "bytes"))
        for file in files:
            Path(file["file"]).unlink()
        rdf = form in ("turtle", "nquads", "jsonld")
        what = "RDF statements" if rdf else "records"
        limit = "100,000 or more" if form == "turtle" else ""
        note = f"{records:,} in {taken.seconds:.0f} s, {size / 1e9:.2f} GB"
        yield Row(f"{form}: {what} a second", records / taken.seconds, None, "/s", limit, note)
        yield Row(f"{form}: peak memory", taken.peak / 1e6, None, "MB", "500 MB")


def engines(work: Path) -> Iterator[Row]:
    """The browse statements of the golden corpus in DataFusion and PySpark: the share with equal rows."""
    import larql_duck as lq
    from tests.lowering.engine_tables import ENGINES, browse_statements, export, failures
    from tests.world import write_vindex

    vindex = write_vindex(work / "world.vindex")
    tables = work / "world-tables"
    if not tables.exists():
        export(vindex, tables)
    session = lq.connect(vindex)
    statements = browse_statements(session)
    for dialect, open_engine in ENGINES.items():
        with open_engine(tables) as run:
            found = failures(session, statements, dialect, run)
        for text, why in found.items():
            print(f"  {dialect}: {text}: {why}")
        share = 100 * (1 - len(found) / len(statements))
        note = f"{len(statements) - len(found)} of {len(statements)} browse statements"
        yield Row(f"{dialect}: statements with equal rows", share, None, "%", "95 or more", note)
    session.close()


def scale(work: Path) -> Iterator[Row]:
    """All figures of this module."""
    yield from exports(work)
    yield from engines(work)
    yield from remote(work)
    yield from one_node(work)


CASES: dict[str, Case] = {"scale": scale}
