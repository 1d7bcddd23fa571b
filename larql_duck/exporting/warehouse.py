"""All tables of a vindex as Parquet, Delta Lake or Iceberg, for engines that share a store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from larql_duck.catalog import LOOKUPS, SCHEMAS, TABLES, VIEWS, arrow_schema, quoted
from larql_duck.errors import LarqlError
from larql_duck.files import scratch_beside, size_on_disk, with_parents
from larql_duck.progress import report

if TYPE_CHECKING:
    from larql_duck.exporting.fact_stream import StreamedRows

PARTITION_ABOVE = 1_000_000
"""Rows from which a table is partitioned where nothing else is said: below it, files would be small and many."""

ICEBERG_NAMESPACE = "lq"
"""The namespace of the tables in the Iceberg catalog."""

ICEBERG_CATALOG = "catalog.db"
"""The SQLite file in the directory that is the Iceberg catalog."""

# Rows of a commit to Iceberg, which is held in memory.
_COMMIT = 500_000


@dataclass(frozen=True)
class StoredTable:
    """A table that was written: its name, rows, bytes, and whether it is partitioned."""

    name: str
    rows: int
    bytes: int
    partitioned: bool


# (rows, query, name, directory, whether partitioned by layer): writes a table there
Writer = Callable[["StreamedRows", str, str, Path, bool], None]


def stored_names() -> list[str]:
    """The tables that a warehouse gets: all of the vindex, its look-ups, and model_graph."""
    return [*TABLES, *LOOKUPS, "model_graph"]


def write_tables(
    rows: StreamedRows,
    schema: str,
    out: Path,
    form: str,
    *,
    by_layer: bool = False,
    above: int = PARTITION_ABOVE,
) -> list[StoredTable]:
    """What was written into the new directory `out` as `form`: parquet, delta or iceberg.

    by_layer: tables with a column layer and at least `above` rows are partitioned by it. The directory is there whole or
    not at all. LarqlError where something stands there, or the library for the format is not installed.
    """
    write = _WRITERS[form]()
    names, written = stored_names(), []
    with _new_directory(out, in_place=form == "iceberg") as directory:
        for i, name in enumerate(names):
            report("tables", i, len(names))
            query = f"SELECT * FROM {schema}.{name}"
            n: int = rows.query(f"SELECT count(*) FROM {schema}.{name}").one()
            partitioned = by_layer and n >= above and "layer" in _schema(name).names
            write(rows, query, name, directory, partitioned)
            written.append((name, n, _size(directory, name), partitioned))
        report("tables", len(names), len(names))
    return [StoredTable(*entry) for entry in written]


def _schema(name: str) -> pa.Schema:
    return SCHEMAS[name] if name in SCHEMAS else arrow_schema({**LOOKUPS, **VIEWS}[name].columns)


def _size(directory: Path, name: str) -> int:
    file = directory / f"{name}.parquet"
    if file.is_file():
        return file.stat().st_size
    return next(
        (size_on_disk(d) for d in (directory / name, directory / ICEBERG_NAMESPACE / name) if d.is_dir()), 0
    )


@contextmanager
def _new_directory(out: Path, *, in_place: bool) -> Iterator[Path]:
    """A directory for the block, which has the name `out` at the end, or nothing does; in_place: it has it at once,
    because what is written there names it.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise LarqlError(f"{out}: something stands there already; name a new directory")
    try:
        with with_parents(out):
            if in_place:
                out.mkdir(exist_ok=True)
                try:
                    yield out
                except BaseException:
                    shutil.rmtree(out, ignore_errors=True)
                    raise
                return
            with scratch_beside(out) as folder:
                made = folder / "tables"
                made.mkdir()
                yield made
                os.replace(made, out)
    except OSError as problem:
        raise LarqlError(
            f"{out}: cannot be written ({problem.strerror or problem}); name another place"
        ) from None


def _parquet() -> Writer:
    def write(rows: StreamedRows, query: str, name: str, directory: Path, partitioned: bool) -> None:
        place = directory / (name if partitioned else f"{name}.parquet")
        by = ", PARTITION_BY (layer)" if partitioned else ""
        rows.query(f"COPY ({query}) TO {quoted(str(place))} (FORMAT parquet, COMPRESSION zstd{by})")

    return write


def _delta() -> Writer:
    try:
        import deltalake
    except ImportError:
        raise LarqlError(
            "Delta Lake needs deltalake; install it with: pip install 'larql-duck[lake]'"
        ) from None

    def write(rows: StreamedRows, query: str, name: str, directory: Path, partitioned: bool) -> None:
        columns = _schema(name)
        batches = (
            pa.record_batch(batch.columns, names=columns.names).cast(columns) for batch in rows.stream(query)
        )
        deltalake.write_deltalake(
            directory / name,
            pa.RecordBatchReader.from_batches(columns, batches),
            partition_by=["layer"] if partitioned else None,
        )

    return write


def _iceberg() -> Writer:
    try:
        from pyiceberg.catalog.sql import SqlCatalog
        from pyiceberg.transforms import IdentityTransform
    except ImportError:
        raise LarqlError(
            "Iceberg needs pyiceberg and sqlalchemy; install them with: pip install 'larql-duck[lake]'"
        ) from None

    def write(rows: StreamedRows, query: str, name: str, directory: Path, partitioned: bool) -> None:
        place = directory.resolve()
        catalog = SqlCatalog(
            "larql-duck", uri=f"sqlite:///{place / ICEBERG_CATALOG}", warehouse=place.as_uri()
        )
        catalog.create_namespace_if_not_exists(ICEBERG_NAMESPACE)
        columns = _schema(name)
        location = (place / ICEBERG_NAMESPACE / name).as_uri()
        table = catalog.create_table(f"{ICEBERG_NAMESPACE}.{name}", columns, location=location)
        if partitioned:
            with table.update_spec() as spec:
                spec.add_field("layer", IdentityTransform(), "layer")
        for part in _commits(rows.stream(query), columns):
            table.append(part)

    return write


def _commits(batches: Iterator[pa.RecordBatch], columns: pa.Schema) -> Iterator[pa.Table]:
    """The batches in tables of at most _COMMIT rows and one batch more."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(pa.record_batch(batch.columns, names=columns.names).cast(columns))
        if sum(part.num_rows for part in held) >= _COMMIT:
            yield pa.Table.from_batches(held, columns)
            held = []
    if held:
        yield pa.Table.from_batches(held, columns)


_WRITERS = {"parquet": _parquet, "delta": _delta, "iceberg": _iceberg}
