"""model.duckdb: the tables as a native DuckDB file with views and macros, built from tables/ and sql/."""

from __future__ import annotations

import functools
import glob
import hashlib
from pathlib import Path

import duckdb

from larql_duck.catalog.schemas import SCHEMAS
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
# file_row_number keeps the given order below it (triples are in display order).
_ORDER = {
    "tokens": "token_id",
    "features": "layer, feature",
    "feature_tokens": "layer, feature, side, rank",
    "token_features": "token_id, rank",
    "facts": "subject, file_row_number",
    "edges": "subject, file_row_number",
    "triples": "subject, file_row_number",
    "entities": "entity",
}


def sql_dir() -> Path:
    """The directory of the .sql files: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    packaged = here / "sql"
    return packaged if packaged.is_dir() else here.parent / "sql"


def sql_text(low: int, high: int) -> list[tuple[str, str]]:
    """(file name, text) of the sql files whose number lies in [low, high], in load order."""
    files = sorted(path for path in sql_dir().glob("[0-9][0-9]_*.sql") if low <= int(path.name[:2]) <= high)
    return [(path.name, path.read_text(encoding="utf-8")) for path in files]


@functools.cache
def sql_hash() -> str:
    """Hexadecimal sha256 of the sql files that a database is made with: another version's file is built anew."""
    return hashlib.sha256("".join(text for _, text in sql_text(0, 59)).encode()).hexdigest()


def quoted(text: str) -> str:
    """`text` as a DuckDB string literal."""
    return "'" + text.replace("'", "''") + "'"


def build_database(tables_dir: Path, out: Path, manifest_hash: str) -> None:
    """Nothing; afterwards `out` is a DuckDB file (storage v1.5.0) of the tables in `tables_dir`.

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
        raise VindexError(
            f"{out}: cannot be built from {tables_dir} ({_first_line(error)}); "
            "run: larql-duck verify, or extract the model again",
            path=out,
        ) from error


def database_hash(path: Path) -> str | None:
    """The manifest hash that the database at `path` was built for; None where it is missing or unreadable."""
    if not path.is_file():
        return None
    con = duckdb.connect()
    try:
        con.execute(f"ATTACH {quoted(str(path))} AS found (READ_ONLY)")
        row = con.execute("SELECT manifest_hash FROM found.lq.build_info").fetchone()
        return None if row is None else str(row[0])
    except duckdb.Error:
        return None
    finally:
        con.close()


def run_sql(con: duckdb.DuckDBPyConnection, name: str, text: str) -> None:
    """Nothing; runs the statements of one sql file, with the file named in the QueryError of a failure."""
    try:
        con.execute(text)
    except duckdb.Error as error:
        raise QueryError(f"{name}: {_first_line(error)}", sql=text) from error


def _build(tables_dir: Path, path: Path, manifest_hash: str, limit: str | None, spill: Path) -> None:
    con = duckdb.connect()
    try:
        con.execute(
            f"ATTACH {quoted(str(path))} AS built (STORAGE_VERSION {quoted(_STORAGE)}, ROW_GROUP_SIZE {_ROW_GROUP})"
        )
        # The bar would go to stdout, in between what a program prints.
        con.execute("USE built; SET enable_progress_bar = false")
        if limit is not None:
            con.execute(f"SET memory_limit = {quoted(limit)}; SET temp_directory = {quoted(str(spill))}")
        con.execute("BEGIN")
        for name, text in sql_text(5, 14):
            run_sql(con, name, text)
        for table in SCHEMAS:
            _load(con, table, tables_dir / f"{table}.parquet")
        con.execute("INSERT INTO lq.build_info VALUES ($1, $2)", [manifest_hash, sql_hash()])
        for name, text in sql_text(15, 59):
            run_sql(con, name, text)
        _copy_comments(con)
        con.execute("COMMIT")
        con.execute("USE memory")
        con.execute("DETACH built")
    finally:
        con.close()


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__ or error, duckdb.OutOfMemoryException)


def _load(con: duckdb.DuckDBPyConnection, table: str, file: Path) -> None:
    if not file.is_file():
        raise VindexError(
            f"{file}: missing; restore it from a copy or extract the model again with --force", path=file
        )
    order = _ORDER.get(table)
    columns = ", ".join(SCHEMAS[table].names)
    con.execute(
        f"INSERT INTO lq.{table} SELECT {columns} FROM read_parquet($1, file_row_number = true)"
        f"{f' ORDER BY {order}' if order else ''}",
        [glob.escape(str(file))],
    )


def _copy_comments(con: duckdb.DuckDBPyConnection) -> None:
    # A view over a view has no column comments of its own; the CLI user meets the ones in main first.
    rows = con.execute(
        "SELECT m.table_name, m.column_name, l.comment FROM duckdb_columns() AS m JOIN duckdb_columns() AS l"
        " ON l.schema_name = 'lq' AND l.table_name = m.table_name AND l.column_name = m.column_name"
        " AND l.database_name = m.database_name"
        " WHERE m.database_name = 'built' AND m.schema_name = 'main' AND l.comment IS NOT NULL"
    ).fetchall()
    con.execute("".join(f"COMMENT ON COLUMN main.{t}.{c} IS {quoted(text)};" for t, c, text in rows))


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
