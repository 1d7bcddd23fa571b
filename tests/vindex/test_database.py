"""model.duckdb as a file: built alike every time, readable from anywhere, by many, by the older CLI."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot

from larql_duck.catalog import SCHEMAS, quoted
from larql_duck.catalog.sql_files import sql_dir, sql_files, sql_query
from larql_duck.errors import VindexError
from larql_duck.vindex.database import build_database, database_hash
from tests.duckdb_cli import cli_path, run_cli
from tests.world import tables, write_tables

QUERIES = [path.stem for path in (sql_dir() / "queries").glob("*.sql")]
SENTENCE = "SELECT object FROM model_graph WHERE subject = 'France' AND relationship = 'capital'"


@pytest.mark.parametrize("table", SCHEMAS)
def test_values_are_those_of_the_parquet_files(con: duckdb.DuckDBPyConnection, table: str) -> None:
    stored = con.sql(f"SELECT * FROM lq.{table} ORDER BY ALL").to_arrow_table().to_pylist()
    given = duckdb.connect().from_arrow(tables()[table]).order("ALL").to_arrow_table().to_pylist()
    assert stored == given


def test_triples_keep_their_display_order(con: duckdb.DuckDBPyConnection) -> None:
    given = [r["object"] for r in tables()["triples"].to_pylist() if r["subject"] == "France"]
    stored = [r[0] for r in con.execute("SELECT object FROM triples WHERE subject = 'France'").fetchall()]
    assert stored == given


def test_built_alike_from_rows_in_another_order(tmp_path: Path) -> None:
    directory = write_tables(tmp_path)
    for name in ("feature_tokens", "features", "token_features", "tokens"):
        path = directory / f"{name}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)
    build_database(directory, tmp_path / "a.duckdb", "x")
    build_database(write_tables(tmp_path / "b"), tmp_path / "b.duckdb", "x")
    con = duckdb.connect()
    con.execute(
        f"ATTACH {quoted(str(tmp_path / 'a.duckdb'))} AS a; ATTACH {quoted(str(tmp_path / 'b.duckdb'))} AS b"
    )
    for name in (*SCHEMAS, "entity_names", "links", "token_names"):
        rows = [con.sql(f"FROM {side}.lq.{name}").to_arrow_table() for side in "ab"]
        assert rows[0].equals(rows[1]), name


def test_knows_what_it_was_built_from(database: Path, tmp_path: Path) -> None:
    assert database_hash(database) == "synthetic"
    assert database_hash(tmp_path / "none.duckdb") is None
    (tmp_path / "junk.duckdb").write_bytes(b"not a database")
    assert database_hash(tmp_path / "junk.duckdb") is None


def test_a_missing_or_broken_table_leaves_the_old_file(tmp_path: Path) -> None:
    directory = write_tables(tmp_path)
    out = tmp_path / "model.duckdb"
    out.write_bytes(b"old")
    (directory / "facts.parquet").unlink()
    with pytest.raises(VindexError, match=r"facts\.parquet: missing"):
        build_database(directory, out, "x")
    (directory / "facts.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(VindexError, match="cannot be built"):
        build_database(directory, out, "x")
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["it's [a] *place* #1 % é", "plain"])
def test_moved_copied_and_read_from_anywhere(database: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    shutil.copy(database, place / "model.duckdb")
    done = subprocess.run(
        [cli_path(), "-readonly", "-csv", "-noheader", "model.duckdb", "-c", SENTENCE],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "Paris", done.stderr
    # Building from a directory whose name means something to a glob.
    build_database(write_tables(place), place / "again.duckdb", "x")
    assert run_cli(place / "again.duckdb", SENTENCE) == [[{"object": "Paris"}]]


def test_several_processes_read_at_once(database: Path) -> None:
    con = duckdb.connect(str(database), read_only=True)
    readers = [
        subprocess.Popen(
            [cli_path(), "-readonly", "-csv", "-noheader", str(database), "-c", SENTENCE],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [r.communicate(timeout=60)[0].strip() for r in readers] == ["Paris"] * 4
    assert con.execute(SENTENCE).fetchall() == [("Paris",)]
    con.close()


def test_attached_to_another_database(database: Path) -> None:
    attach = f"ATTACH {quoted(str(database))} AS m (READ_ONLY)"
    con = duckdb.connect()
    con.execute(attach)
    assert con.execute("SELECT object FROM m.model_graph WHERE subject = 'Japan'").fetchall() == [
        ("Asia",),
        ("Tokyo",),
    ]
    con.execute("USE m")
    assert con.execute("SELECT target FROM describe_entity('Japan')").fetchall() == [("Asia",), ("Tokyo",)]
    con.close()


def test_two_databases_full_joined_in_one_cli(tmp_path: Path) -> None:
    paths = []
    for i, seed in enumerate((0, 1)):
        directory = write_tables(tmp_path / str(i), seed)
        if i:
            facts = pq.read_table(directory / "triples.parquet").to_pylist()
            for row in facts:
                if (row["subject"], row["relation"]) == ("Japan", "capital"):
                    row["object"] = "Kyoto"
            pq.write_table(pa.Table.from_pylist(facts, SCHEMAS["triples"]), directory / "triples.parquet")
        paths.append(tmp_path / f"{i}.duckdb")
        build_database(directory, paths[-1], str(i))
    query = (
        f"ATTACH {quoted(str(paths[1]))} AS after (READ_ONLY);"
        " SELECT coalesce(a.subject, b.subject) AS subject, a.object AS before_, b.object AS after_"
        " FROM model_graph AS a FULL JOIN after.model_graph AS b"
        " ON (a.subject, a.relationship, a.object) = (b.subject, b.relationship, b.object)"
        " WHERE a.object IS NULL OR b.object IS NULL ORDER BY ALL"
    )
    done = subprocess.run(
        [cli_path(), "-readonly", "-csv", "-noheader", str(paths[0]), "-c", query],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == ["Japan,NULL,Kyoto", "Japan,Tokyo,NULL"]


def test_sql_files_are_found_and_in_order() -> None:
    names = [name for name, _ in sql_files((0, 99))]
    assert names == sorted(names) and sql_dir().is_dir()
    assert {"18_helpers.sql", "20_views.sql", "30_browse.sql", "40_graph.sql", "60_vectors.sql"} <= set(names)


def test_the_schema_is_named_by_its_placeholder_only() -> None:
    for name, text in (*sql_files((0, 99), "elsewhere"), *((q, sql_query(q, "elsewhere")) for q in QUERIES)):
        names = [token.text for token in sqlglot.tokenize(text, read="duckdb")]
        assert "lq" not in names and not any(n.startswith("lq_udf_") for n in names), name
        assert "{schema}" not in text and "{public}" not in text, name
