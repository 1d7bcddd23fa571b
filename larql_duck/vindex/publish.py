"""Making a vindex visible at once or not at all: staging, locks, renames, and tables that grow as a transaction."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.catalog import FILES
from larql_duck.catalog.ddl import model_sql
from larql_duck.errors import BusyError, VindexError
from larql_duck.files import locked, open_regular, open_replacing, replacing, sync_directory
from larql_duck.vindex.arrays import hash_file, write_file
from larql_duck.vindex.database import build_database, not_replaceable
from larql_duck.vindex.derive import model_graph
from larql_duck.vindex.fields import damaged, read_json
from larql_duck.vindex.manifest import INDEX, SECTION, load_manifest, manifest_hash, render
from larql_duck.vindex.partial_copy import address_of_copy

DATABASE, MODEL_SQL = "model.duckdb", "model.sql"
TABLES = "tables"
_NEXT = ".next"
_LOCK = ".lock"
_SEAL = "seal"
_BLANK = "0" * 64
# Seconds for which opening waits for a writer.
_PATIENCE = 10.0


def check_replaceable(out: Path, *kept: Path) -> None:
    """Raise VindexError where something stands at `out` that is neither an empty folder nor a vindex alone.

    Also for a link, for a folder that is or holds the current one or one of `kept`, and for a vindex whose database
    is not to be replaced.
    """
    another = "choose another -o"
    if not os.path.lexists(out):
        return
    if out.is_symlink():
        raise damaged(out, f"is a link to {os.path.realpath(out)}, and a link is never replaced", another)
    if not out.is_dir():
        raise damaged(out, "is no folder, and only a vindex is replaced", another)
    place = out.resolve()
    for path in (Path.cwd(), *(path.resolve() for path in kept)):
        if place in (path, *path.parents):
            raise damaged(out, f"is or holds {path}, which is in use", another)
    if foreign := _foreign(out):
        raise damaged(out, f"holds {foreign}, and only a vindex is replaced", another)
    check_database(out)


def check_database(directory: Path) -> None:
    """Raise VindexError where the vindex's database is not to be replaced (see `not_replaceable`), or is at an address."""
    _refuse_address(directory)
    if reason := not_replaceable(directory / DATABASE):
        raise VindexError(reason, path=directory)


def _refuse_address(directory: Path) -> None:
    """Raise VindexError for the copy of what is at an address: what is saved there would be found by nobody."""
    if (address := address_of_copy(directory)) is not None:
        raise VindexError(
            f"{address}: nothing is saved at an address; copy the vindex to a folder of this machine and open that, or leave "
            "saving out",
            path=Path(address),
        )


def _foreign(directory: Path) -> str | None:
    """What a folder holds that is no part of a vindex; None for an empty one, and for a vindex alone."""
    names = sorted(path.name for path in directory.iterdir())
    if not names:
        return None
    try:
        raw = read_json(directory / INDEX)
    except VindexError:
        return f"{names[0]} and no index.json that can be read"
    if not isinstance(raw, dict) or not {"version", "num_layers", "vocab_size", "layers"} <= raw.keys():
        return f"{names[0]} and no index.json of a vindex"
    # Of any version; LARQL does not say which files are its own.
    section = raw[SECTION] if isinstance(raw.get(SECTION), dict) else {}
    if not isinstance(section.get("files"), dict):
        return None
    own = {INDEX, DATABASE, f"{DATABASE}.wal", _LOCK, TABLES, *section["files"]}
    own |= {f"{TABLES}/{name}.parquet" for name in FILES}
    leftovers = (*(f".{name[:40]}." for name in own), _NEXT, ".DS_Store")
    for path in (*directory.iterdir(), *(directory / TABLES).glob("*")):
        name = path.relative_to(directory).as_posix()
        if name not in own and not path.name.startswith(leftovers):
            return name
    return None


def publish_directory(built: Path, out: Path, aside: Path | None = None) -> None:
    """Rename the finished `built` to `out`, in the place of nothing or of an empty folder; OSError where more stands there.

    With `aside` a vindex may stand there (else VindexError, see `check_replaceable`): it is moved to `aside`, and back
    where `built` cannot come.
    """
    sync_directory(built)
    if aside is None or not os.path.lexists(out):
        os.rename(built, out)
    else:
        check_replaceable(out)
        os.rename(out, aside)
        try:
            os.rename(built, out)
        except OSError:
            os.rename(aside, out)
            raise
    sync_directory(out.parent)


# -- the manifest's seal ------------------------------------------------------------------------------------


def seal_manifest(raw: dict[str, Any]) -> bytes:
    """The bytes of index.json with a sha256 over themselves in larql-duck's section, so that any changed bit shows.

    The digest is taken with its own 64 digits set to zeros.
    """
    raw[SECTION][_SEAL] = _BLANK
    blank = render(raw)
    raw[SECTION][_SEAL] = hashlib.sha256(blank).hexdigest()
    return render(raw)


def seal_holds(data: bytes, seal: str) -> bool:
    """Whether the bytes of an index.json agree with the seal that they carry."""
    digits = seal.encode()
    if len(digits) != 64 or data.count(digits) != 1:
        return False
    return hashlib.sha256(data.replace(digits, _BLANK.encode())).hexdigest() == seal


# -- tables -------------------------------------------------------------------------------------------------


def write_table(path: Path, name: str, table: pa.Table | Iterator[pa.Table]) -> dict[str, Any]:
    """The manifest's entry (file, rows, bytes, sha256) of a table after it was written as Parquet (zstd).

    `table` has the schema of FILES[name] or is an iterator of such pieces, each at least one row group.
    """
    schema = FILES[name]
    floats = [f.name for f in schema if pa.types.is_floating(f.type)]
    dictionaries = [f.name for f in schema if f.name not in floats]
    rows = 0
    with (
        replacing(path, error=None) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=dictionaries,
            # Floats have nothing to repeat; split by byte they still lose their exponents to zstd.
            use_byte_stream_split=floats,
            write_page_index=True,
        ) as writer,
    ):
        for piece in [table] if isinstance(table, pa.Table) else table:
            writer.write_table(piece.cast(schema), row_group_size=122_880)
            rows += piece.num_rows
    return {"file": f"{TABLES}/{path.name}", "rows": rows, **hash_file(path)}


def commit_tables(
    directory: Path,
    tables: Mapping[str, pa.Table | Iterator[pa.Table]],
    change: Callable[[dict[str, Any]], None] | None = None,
    files: Mapping[str, bytes | Path] | None = None,
) -> None:
    """Replace whole tables (and files, `files` by their path in the vindex: bytes, or a file to copy) of a published vindex in one
    transaction.

    New files go to tables/.next; the rename of index.json, which names their checksums, is the commit; then they are
    moved into place and model.duckdb is rebuilt. `change` may edit larql-duck's section of the manifest (statistics,
    packs). Readers that have model.duckdb open keep their copy. VindexError when another process is changing the vindex.
    """
    _refuse_address(directory)
    with _changing(directory, "cannot write here", "copy the vindex to a place that can be written"):
        _roll_forward(directory)
        check_database(directory)
        raw = dict(load_manifest(directory).raw)
        section = raw[SECTION]
        pending = directory / TABLES / _NEXT
        pending.mkdir()
        triples = tables.get("triples")
        graph = {"model_graph": model_graph(triples)} if isinstance(triples, pa.Table) else {}
        for name, table in (*tables.items(), *graph.items()):
            section["tables"][name] = write_table(pending / f"{name}.parquet", name, table)
        for name, data in {MODEL_SQL: model_sql().encode(), **(files or {})}.items():
            (pending / name).parent.mkdir(parents=True, exist_ok=True)
            section["files"][name] = entry = _write_or_copy(pending / name, data)
            # LARQL reads those of arrays here.
            if name in raw.get("checksums", {}):
                raw["checksums"] = {**raw["checksums"], name: entry["sha256"]}
        if change is not None:
            change(section)
        sync_directory(pending)
        write_file(directory / INDEX, seal_manifest(raw))
        _roll_forward(directory)
        try:
            rebuild_database(directory)
        except (OSError, VindexError) as error:
            # What it holds is older than the tables by now.
            (directory / DATABASE).unlink(missing_ok=True)
            raise VindexError(
                f"{directory}: the change is saved in its tables, but {DATABASE} could not be built ({error}); "
                "free some space, then open the vindex again, which builds it",
                path=directory,
            ) from error


def _write_or_copy(path: Path, data: bytes | Path) -> dict[str, Any]:
    """The manifest's entry of a file after it was written, or copied from another."""
    if isinstance(data, bytes):
        return dict(write_file(path, data))
    with open_regular(data) as original, open_replacing(path, error=None) as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
    return dict(hash_file(path))


def recover(directory: Path) -> None:
    """Finish or forget a table transaction that a crash interrupted; does nothing where there is none."""
    _refuse_links(directory)
    if (directory / TABLES / _NEXT).is_dir():
        what = "an interrupted change cannot be finished"
        deadline = time.monotonic() + _PATIENCE
        while (directory / TABLES / _NEXT).is_dir():
            try:
                with _changing(directory, what, "open it once where it can be written"):
                    _roll_forward(directory)
            except BusyError:
                # A writer is done in a moment.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@contextmanager
def _changing(directory: Path, what: str, next_step: str) -> Iterator[None]:
    """The lock of a vindex for the block; an OSError in it becomes a VindexError with `what` and `next_step`."""
    _refuse_links(directory)
    busy = f"{directory}: another process is changing this vindex; try again when it has finished"
    try:
        with locked(directory / _LOCK, busy):
            yield
    except OSError as error:
        raise damaged(directory, f"{what} ({error.strerror or error})", next_step) from None


def _refuse_links(directory: Path) -> None:
    """Raise VindexError where recovery or writing would leave the vindex through a symbolic link inside it."""
    for path in (directory / TABLES, directory / TABLES / _NEXT, directory / _LOCK):
        if path.is_symlink():
            raise damaged(path, f"a link to {path.readlink()}", "remove it, or copy the vindex with: cp -rL")


def _roll_forward(directory: Path) -> None:
    """Move those files of tables/.next into place that the manifest names; the rest was never committed."""
    pending = directory / TABLES / _NEXT
    if not pending.is_dir():
        return
    sums = load_manifest(directory).checksums
    changed = {directory / TABLES}
    for file in sorted(f for f in pending.rglob("*") if f.is_file() and not f.is_symlink()):
        path = file.relative_to(pending).as_posix()
        name = f"{TABLES}/{path}" if file.suffix == ".parquet" else path
        if sums.get(name) == hash_file(file)["sha256"]:
            target = directory / name
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
            changed |= {target.parent, directory}
    for folder in changed:
        sync_directory(folder)
    shutil.rmtree(pending)


def rebuild_database(directory: Path) -> None:
    """Build model.duckdb anew from tables/, under another name first."""
    build_database(directory / TABLES, directory / DATABASE, manifest_hash(directory))
