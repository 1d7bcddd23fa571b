"""A Parquet file written block by block: an interrupted run leaves its parts beside the file, the same call goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.errors import LarqlError
from larql_duck.files import begins, check_output, clear_own, replacing, unfinished_work, write_whole
from larql_duck.progress import report

PARQUET = begins(b"par1")
_STATE = "state.json"


def check_parquet(out: str | Path) -> Path:
    """The path of a Parquet file to write; LarqlError where none may stand there."""
    target = check_output(out, PARQUET)
    if not target.parent.is_dir():
        raise LarqlError(f"{target}: cannot be written; give a file in an existing directory")
    return target


def write_in_parts(
    out: str | Path,
    schema: pa.Schema,
    key: object,
    n: int,
    make: Callable[[int], pa.Table],
    *,
    stage: str,
) -> Path:
    """The path of `out`, a Parquet file of the tables that make(0) to make(n - 1) give, in their order.

    key (JSON values) tells this file's content from others': parts of a run with another key are not taken up. LarqlError
    where `out` cannot be written, or another process is writing it.
    """
    target = check_parquet(out)
    kept = target.with_name(f".{target.name}.partial")
    busy = f"{target}: another process is writing it; wait, or name another file"
    with unfinished_work(kept, busy, lambda: _part(kept, 0).is_file(), "the same command"):
        _take_up(kept, key)
        for i in range(n):
            part = _part(kept, i)
            if not _readable(part):
                with replacing(part, error=None, sync=False) as path:
                    pq.write_table(make(i).cast(schema), path, compression="zstd")
            report(stage, i + 1, n)
        with (
            replacing(target, replaces=PARQUET) as path,
            pq.ParquetWriter(path, schema, compression="zstd") as writer,
        ):
            for i in range(n):
                rows = pq.read_table(_part(kept, i)).cast(schema)
                # What belongs together stays in one group.
                writer.write_table(rows, row_group_size=max(1, rows.num_rows))
    return target


def _take_up(folder: Path, key: object) -> None:
    """Empty the folder, unless it holds parts of this key."""
    state, wanted = folder / _STATE, json.dumps(key)
    if not state.is_file() or state.read_text("utf-8") != wanted:
        clear_own(folder)
        write_whole(state, wanted, sync=False)


def _readable(part: Path) -> bool:
    try:
        pq.read_metadata(part)
    except (OSError, pa.ArrowException):
        return False
    return True


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:08d}.parquet"
