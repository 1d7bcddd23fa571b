"""model.duckdb: the tables as a native DuckDB file with views and macros, built from tables/ and sql/."""

from __future__ import annotations

import functools
import glob
import hashlib
import re
from pathlib import Path

import duckdb

from larql_duck.catalog import LOOKUPS, SCHEMAS
from larql_duck.catalog.ddl import create_tables, main_objects, quoted, views_and_macros
from larql_duck.catalog.sql_files import SCHEMA, sql_query
from larql_duck.errors import QueryError, VindexError
from larql_duck.files import replacing

# The oldest format that has all we use: the DuckDB CLI 1.5 and later read it.
_STORAGE = "v1.5.0"
# Memory of the build: a model's depth must not show in the peak. Joins over millions of triples need more, and are
# tried again with the next limit; None is DuckDB's own, four fifths of the machine.
_MEMORY = ("100MB", "400MB", None)
# Rows that share one zone of minima and maxima. Smaller than DuckDB's 122,880, because the lookups here read one
# zone each: half the time for one subject of 5 million triples, at the same file size (still smaller zones grow it).
_ROW_GROUP = 30_720
# How rows lie in the file, where that differs from the Parquet file's own order: what lookups filter by comes first.
ROW_ORDER = {
    "tokens": "token_id",
    "layers": "layer",
    "features": "layer, feature",
    "feature_tokens": "layer, feature, side, rank",
    "token_features": "token_id, rank",
    "entities": "entity",
}
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
        with replacing(out, error=None) as temporary:
            for limit in _MEMORY:
                try:
                    _build(tables_dir, temporary, manifest_hash, limit, temporary.with_name("spill"))
                    break
                except (duckdb.Error, QueryError) as error:
                    if limit is None or not _out_of_memory(error):
                        raise
                    temporary.unlink(missing_ok=True)
    except duckdb.Error as error:
        raise VindexError.at(
            out,
            f"cannot be built from {tables_dir} ({_first_line(error)}); "
            "run: larql-duck verify, or extract the model again",
        ) from error


def database_hash(path: Path) -> str | None:
    """The manifest hash that the database at `path` was built for; None where it is missing or unreadable."""
    if not path.is_file():
        return None
    try:
        with duckdb.connect() as con:
            con.execute(f"ATTACH {quoted(str(path))} AS found (READ_ONLY)")
            row = con.execute(f"SELECT manifest_hash FROM found.{SCHEMA}.build_info").fetchone()
            return None if row is None else str(row[0])
    except duckdb.Error:
        return None


def not_replaceable(path: Path) -> str | None:
    """Why the database at `path` may not be replaced, with the next step; None where it may be or is missing.

    It may not while a writer has it open, while it has tables that are not larql-duck's, or where it is a link. A
    write-ahead log beside it is played back first.
    """
    log = path.with_name(f"{path.name}.wal")
    if path.is_symlink():
        return f"{path}: a link to {path.readlink()}, which is not replaced; remove the link"
    if not path.is_file():
        return f"{log}: belongs to a database that is gone; move it away" if log.exists() else None
    try:
        with duckdb.connect() as con:
            con.execute(f"ATTACH {quoted(str(path))} AS found{'' if log.exists() else ' (READ_ONLY)'}")
            found = con.execute(
                "SELECT schema_name || '.' || table_name FROM duckdb_tables()"
                " WHERE database_name = 'found' AND schema_name <> $1 ORDER BY 1",
                [SCHEMA],
            ).fetchall()
            con.execute("DETACH found")
    except duckdb.BinderException:
        return f"{path}: open for writing in this process; close that connection, or DETACH the file in it"
    except duckdb.Error as error:
        if "lock" in str(error):
            holder = re.search(r"held in (.*?\(PID \d+\))", str(error))
            by = f"by {holder[1]}" if holder else "by another process"
            return f"{path}: open for writing {by}; close it there"
        if log.exists():
            return f"{log}: cannot be played back into {path.name}; move both files away"
        return None
    if found:
        names = ", ".join(str(name) for (name,) in found[:5])
        return f"{path}: has tables that are not larql-duck's ({names}); copy them to a file of your own and drop them here"
    return None


def run_sql(con: duckdb.DuckDBPyConnection, name: str, text: str) -> None:
    """Run the statements of one sql file; a QueryError names the file."""
    try:
        con.execute(text)
    except duckdb.Error as error:
        raise QueryError(f"{name}: {_first_line(error)}", sql=text) from error


def _build(tables_dir: Path, path: Path, manifest_hash: str, limit: str | None, spill: Path) -> None:
    with duckdb.connect() as con:
        con.execute(
            f"ATTACH {quoted(str(path))} AS built (STORAGE_VERSION {quoted(_STORAGE)}, ROW_GROUP_SIZE {_ROW_GROUP})"
        )
        # The bar would go to stdout, in between what a program prints.
        con.execute("USE built; SET enable_progress_bar = false")
        if limit is not None:
            con.execute(f"SET memory_limit = {quoted(limit)}; SET temp_directory = {quoted(str(spill))}")
        con.execute("BEGIN")
        run_sql(con, "tables", f"CREATE SCHEMA {SCHEMA};\n{create_tables()}")
        for table in SCHEMAS:
            _load(con, table, tables_dir / f"{table}.parquet")
        con.execute(f"INSERT INTO {SCHEMA}.build_info VALUES ($1, $2)", [manifest_hash, sql_hash()])
        for name in LOOKUPS:
            run_sql(con, name, f"INSERT INTO {SCHEMA}.{name}\n{sql_query(name)}")
        for name, text in (*views_and_macros(), *main_objects()):
            run_sql(con, name, text)
        con.execute("COMMIT")
        con.execute("USE memory")
        con.execute("DETACH built")


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__ or error, duckdb.OutOfMemoryException)


def _load(con: duckdb.DuckDBPyConnection, table: str, file: Path) -> None:
    if not file.is_file():
        raise VindexError.at(file, "missing; restore it from a copy or extract the model again with --force")
    order = _ORDER.get(table)
    columns = ", ".join(SCHEMAS[table].names)
    con.execute(
        f"INSERT INTO {SCHEMA}.{table} SELECT {columns} FROM read_parquet($1, file_row_number = true)"
        f"{f' ORDER BY {order}' if order else ''}",
        [glob.escape(str(file))],
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
