"""A vindex with many made-up rows, opened at an address: what its first DESCRIBE reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.cases import Case, Row
from larql_duck.catalog import as_table
from larql_duck.databases import in_memory
from larql_duck.vindex.derive import derive_entities
from larql_duck.vindex.publish import commit_tables

# Subjects of a set of tables of about 100 MB.
_SUBJECTS = 205_000
# Names, objects and numbers come of hashes: little of them can be packed away.
_ROWS = """
SELECT
    printf('Name %06d %x', s.range, hash(s.range) % 1048576) AS subject,
    ['capital', 'language', 'continent', 'currency'][1 + r.range] AS relation,
    printf('Thing %x', hash(s.range * 4 + r.range) % 268435456) AS object,
    (hash(s.range, r.range) % 1000003) / 1000003 AS p,
    (hash(r.range, s.range, 7) % 1000003) / 1000003 AS confidence,
    (hash(s.range, r.range, 3) % 10)::INTEGER AS layer,
    (hash(s.range, r.range, 5) % 40)::INTEGER AS feature
FROM range($subjects) AS s, range(4) AS r
ORDER BY subject, relation
"""


def many_rows(vindex: Path, subjects: int) -> Path:
    """The vindex after four facts, with an edge each, of so many made-up subjects were added to its own."""
    with in_memory() as con:
        rows = con.sql(_ROWS, params={"subjects": subjects}).to_arrow_table()
    n = rows.num_rows
    shared = {name: rows[name] for name in ("subject", "relation", "object")}
    source = pa.array(["probe"] * n)
    keys = {f"{name}_key": pc.utf8_lower(rows[name]) for name in ("subject", "object")}
    believed = {name: rows[name] for name in ("p", "confidence")} | keys | {"source": source}
    one = pa.array([1] * n, pa.int32())
    layers = pa.ListArray.from_arrays(pa.array(range(n + 1), pa.int32()), rows["layer"].combine_chunks())
    prompts = pc.binary_join_element_wise("The", rows["relation"], "of", rows["subject"], "is", " ")
    added = {
        "triples": shared | believed | {"layers": layers, "n_edges": one},
        "facts": shared | believed | {"rank": one, "n_templates": one, "n_features": one, "prompt": prompts},
        "edges": shared
        | {name: rows[name] for name in ("layer", "feature")}
        | {"source": source, "score": rows["p"]},
    }
    own = {name: pq.read_table(vindex / "tables" / f"{name}.parquet") for name in added}
    tables = {name: pa.concat_tables([own[name], as_table(name, columns)]) for name, columns in added.items()}
    commit_tables(vindex, tables | {"entities": derive_entities(tables["triples"])})
    return vindex


def remote(work: Path) -> Iterator[Row]:
    """The first DESCRIBE of a vindex with 100 MB of tables at an address: megabytes read, those of arrays, requests."""
    import larql_duck as lq
    from tests.ranges import serving
    from tests.world import write_vindex

    vindex = work / "many-rows.vindex"
    if not vindex.exists():
        many_rows(write_vindex(work / "many-rows-making.vindex"), _SUBJECTS).rename(vindex)
    size = sum(path.stat().st_size for path in (vindex / "tables").iterdir()) / 1e6
    # Found in the files: what a query had read would not be read again.
    subjects = pq.read_table(vindex / "tables" / "facts.parquet", columns=["subject"])["subject"]
    name = subjects[len(subjects) // 2].as_py()
    with serving(work) as server, lq.connect(f"{server.url}/{vindex.name}") as session:
        opened = server.total / 1e6
        before, asked = server.total, len(server.requests)
        rows = session.lql("DESCRIBE $name", {"name": name})
        read = opened + (server.total - before) / 1e6
        note = f"{opened:.1f} MB of it to open; {len(server.requests) - asked} requests and {len(rows)} rows"
        yield Row("first DESCRIBE of a vindex at an address, read", read, size, "MB", "5 MB", note)
        yield Row("arrays read for it", server.sent_of(".bin") / 1e6, None, "MB", "0")


CASES: dict[str, Case] = {"remote": remote}
