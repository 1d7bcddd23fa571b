"""Finished batches on disk, so that a probing run that was killed does not repeat them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.files import replacing

# Counted up whenever a batch's content changes its meaning.
_FORMAT = 1


class Checkpoint:
    """A directory of finished batches, one Parquet file each, named by a hash of what was asked.

    Without a directory nothing is kept. `context` goes into every hash: the model's fingerprint and every option
    that changes an answer.
    """

    def __init__(self, directory: Path | None, context: Iterable[object] = ()) -> None:
        self.directory = directory
        self._context = json.dumps([_FORMAT, *context], default=str)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def table(
        self, kind: str, parts: object, schema: pa.Schema, n_rows: int, make: Callable[[], pa.Table]
    ) -> pa.Table:
        """The batch's table of n_rows rows with this schema: the stored one, else what `make` returns, then stored.

        It is stored under its kind and a hash of the context and `parts` (JSON values). A file that a crash or
        another version damaged counts as none.
        """
        if self.directory is None:
            return make()
        text = json.dumps([self._context, kind, parts], default=str)
        path = self.directory / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException):
            table = None
        if table is None or not table.schema.equals(schema) or table.num_rows != n_rows:
            table = make()
            with replacing(path, sync=False) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        return table
