"""model.duckdb: the tables as a native DuckDB file with views and macros, built from tables/ and sql/."""

from __future__ import annotations

import functools
import glob
import hashlib
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from larql_duck.catalog import LATER_TABLES, LOOKUPS, SCHEMAS
from larql_duck.catalog.ddl import create_tables, main_objects, quoted, views_and_macros
from larql_duck.catalog.sql_files import SCHEMA, sql_query
from larql_duck.databases import in_memory
from larql_duck.errors import QueryError, VindexError, first_line
from larql_duck.files import replacing
from larql_duck.progress import doing, hide_duckdb_bar
from larql_duck.vindex.derive import older_table

# The oldest format that has all we use: the DuckDB CLI 1.5 and later read it.
_STORAGE = "v1.5.0"
# Memory of the build: a model's depth must not show in the peak. Joins over millions of triples need more, and are
# tried again with the next limit; None is DuckDB's own, four fifths of the machine.
_MEMORY = ("100MB", "400MB", None)
# Rows that share one zone of minima and maxima, and bytes of a block. Smaller than DuckDB's 122,880 and 262,144, because the
# lookups here read one zone each, and at an address a block is one request: with these a DESCRIBE reads a third of what it
# does with zones of 30,720 rows and DuckDB's blocks, in less time. The file of 1.3 million facts is 15 % smaller, SmolLM2's
# 3 % larger; still smaller zones or blocks grew the former.
_ROW_GROUP, _BLOCK = 10_240, 65_536
# How rows lie in the file, where that differs from the Parquet file's own order: what lookups filter by comes first.
ROW_ORDER = {
    "tokens": "token_id",
    "layers": "layer",
    "features": "layer, feature",
    "feature_tokens": "layer, feature, side, rank",
    "token_features": "token_id, rank",
    "entities": "entity",
}
# What a database may have: the kind, its name, and the function that lists them.
_OBJECTS = (
    ("schema", "schema_name", "duckdb_schemas() WHERE NOT internal"),
    ("table", "schema_name || '.' || table_name", "duckdb_tables() WHERE NOT internal"),
    ("view", "schema_name || '.' || view_name", "duckdb_views() WHERE NOT internal"),
    ("macro", "schema_name || '.' || function_name", "duckdb_functions() WHERE NOT internal"),
    ("type", "schema_name || '.' || type_name", "duckdb_types() WHERE NOT internal"),
    ("sequence", "schema_name || '.' || sequence_name", "duckdb_sequences() WHERE true"),
    ("index", "schema_name || '.' || index_name", "duckdb_indexes() WHERE true"),
)
# file_row_number keeps the given order below it (triples are in display order).
_ORDER = ROW_ORDER | dict.fromkeys(("facts", "edges", "triples"), "subject, file_row_number")


@functools.cache
def sql_hash() -> str:
    """Hexadecimal sha256 of the SQL that a database is made with: another version's file is built anew."""
    queries = [sql_query(name) for name in LOOKUPS]
    scripts = [text for _, text in (*views_and_macros(), *main_objects())]
    return hashlib.sha256("".join([create_tables(), *queries, *scripts]).encode()).hexdigest()


def build_database(tables_dir: Path, out: Path, manifest_hash: str) -> None:
    """Write `out`, a DuckDB file (storage v1.5.0) of the tables in `tables_dir`.

    Written beside `out` under a temporary name and renamed: readers of an older file keep theirs. The content
    depends on the tables alone. `manifest_hash` is kept inside (see `database_hash`). Raises VindexError where a
    table's file is missing or unreadable.
    """
    try:
        with replacing(out, error=None) as temporary, doing("building model.duckdb"):
            for limit in _MEMORY:
                try:
                    _build(tables_dir, temporary, manifest_hash, limit, temporary.with_name("spill"))
                    break
                except (duckdb.Error, QueryError) as error:
                    if limit is None or not _out_of_memory(error):
                        raise
                    temporary.unlink(missing_ok=True)
            # Beside another database it would stop everybody; the older one without it is stale as before.
            _log_of(out).unlink(missing_ok=True)
    except duckdb.Error as error:
        raise VindexError.at(
            out,
            f"cannot be built from {tables_dir} ({first_line(error)}); "
            "run: larql-duck verify, or extract the model again",
        ) from error


def database_hash(path: Path) -> str | None:
    """The manifest hash that the database at `path` was built for; None where it is missing or unreadable."""
    if not path.is_file():
        return None
    try:
        with in_memory() as con:
            con.execute(f"ATTACH {quoted(str(path))} AS found (READ_ONLY)")
            return str(_stamp(con)[0])
    except duckdb.Error:
        return None


def not_replaceable(path: Path) -> str | None:
    """Why the database at `path` may not be replaced, with the next step; None where it may be or is missing.

    It may be only where its own stamp says that all in it is larql-duck's: not while a writer has it open, not where
    DuckDB cannot read it or it is a link. A write-ahead log beside it is read with it. Nothing is written.
    """
    log = _log_of(path)
    if path.is_symlink():
        return f"{path}: a link to {path.readlink()}, which is not replaced; remove the link"
    if not path.exists():
        return f"{log}: belongs to a database that is gone; move it away" if log.exists() else None
    away = f"move {'both files' if log.exists() else 'it'} away, and the next opening builds another"
    with in_memory() as con:
        try:
            con.execute(f"ATTACH {quoted(str(path))} AS found (READ_ONLY)")
        except duckdb.Error as error:
            # DuckDB says by its text alone who is in the way.
            if "file handle conflict" in str(error):
                return f"{path}: open for writing in this process; close that connection, or DETACH the file in it"
            if "Could not set lock" in str(error):
                holder = re.search(r"held in (.*?\(PID \d+\))", str(error))
                return f"{path}: open for writing in {holder[1] if holder else 'another process'}; close it there"
            if log.exists():
                return f"{log}: cannot be played back into {path.name} ({first_line(error)}); {away}"
            return f"{path}: DuckDB cannot read it ({first_line(error)}); {away}"
        try:
            own = _stamp(con)[2:]
            # A stamp of before objects were listed in it.
            others = set(_objects(con, "found")) - set(own[0] if own else _own_objects())
            con.execute("DETACH found")
        except duckdb.Error as error:
            return f"{path}: has no stamp of larql-duck's that can be read ({first_line(error)}); {away}"
    if others:
        names = ", ".join(sorted(others)[:10])
        return (
            f"{path}: has what is not larql-duck's ({names}); copy it to a file of your own and drop it here"
        )
    return None


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def run_sql(con: duckdb.DuckDBPyConnection, name: str, text: str) -> None:
    """Run the statements of one sql file; a QueryError names the file."""
    try:
        con.execute(text)
    except duckdb.Error as error:
        raise QueryError(f"{name}: {first_line(error)}", sql=text) from error


def _build(tables_dir: Path, path: Path, manifest_hash: str, limit: str | None, spill: Path) -> None:
    with in_memory() as con:
        con.execute(
            f"ATTACH {quoted(str(path))} AS built (STORAGE_VERSION {quoted(_STORAGE)}, ROW_GROUP_SIZE {_ROW_GROUP}, "
            f"BLOCK_SIZE {_BLOCK})"
        )
        con.execute("USE built")
        hide_duckdb_bar(con)
        if limit is not None:
            con.execute(f"SET memory_limit = {quoted(limit)}; SET temp_directory = {quoted(str(spill))}")
        con.execute("BEGIN")
        _create(con)
        for table in SCHEMAS:
            _load(con, table, tables_dir)
        stamp = [manifest_hash, sql_hash(), _objects(con, "built")]
        con.execute(f"INSERT INTO {SCHEMA}.build_info VALUES ($1, $2, $3)", stamp)
        for name in LOOKUPS:
            run_sql(con, name, f"INSERT INTO {SCHEMA}.{name}\n{sql_query(name)}")
        con.execute("COMMIT")
        con.execute("USE memory")
        con.execute("DETACH built")


def _create(con: duckdb.DuckDBPyConnection) -> None:
    """Make all tables, views and macros, without rows, in the database that is in use."""
    run_sql(con, "tables", f"CREATE SCHEMA {SCHEMA};\n{create_tables()}")
    for name, text in (*views_and_macros(), *main_objects()):
        run_sql(con, name, text)


def _stamp(con: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    """The row of build_info in the attached database `found`. duckdb.Error where there is none."""
    row = con.execute(f"FROM found.{SCHEMA}.build_info").fetchone()
    if row is None:
        raise duckdb.CatalogException("build_info is empty")
    return row


def _objects(con: duckdb.DuckDBPyConnection, database: str) -> list[str]:
    """What the attached database has in its catalog, as "view main.facts", sorted."""
    parts = (f"SELECT '{kind} ' || {name} AS object FROM {rows}" for kind, name, rows in _OBJECTS)
    listed = " UNION ".join(f"{part} AND database_name = $1" for part in parts)
    return [str(row[0]) for row in con.execute(f"{listed} ORDER BY object", [database]).fetchall()]


def _own_objects() -> list[str]:
    """What this version makes."""
    with in_memory() as con:
        _create(con)
        return _objects(con, "memory")


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__ or error, duckdb.OutOfMemoryException)


def _load(con: duckdb.DuckDBPyConnection, table: str, tables_dir: Path) -> None:
    file = tables_dir / f"{table}.parquet"
    if not file.is_file():
        if table in LATER_TABLES:
            return  # a vindex of an older schema
        raise VindexError.at(file, "missing; restore it from a copy or extract the model again with --force")
    order = _ORDER.get(table)
    source = f"read_parquet({quoted(glob.escape(str(file)))}, file_row_number = true)"
    if (older := older_table(tables_dir, table)) is not None:
        con.register("older", older.append_column("file_row_number", pa.array(range(older.num_rows))))
        source = "older"
    columns = ", ".join(SCHEMAS[table].names)
    con.execute(
        f"INSERT INTO {SCHEMA}.{table} ({columns}) SELECT {columns} FROM {source}"
        f"{f' ORDER BY {order}' if order else ''}"
    )
