"""Finished batches on disk, so that a probing run that was killed does not repeat them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
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

    def key(self, kind: str, *parts: object) -> str:
        """The file stem of one batch: its kind and a hash of the context and the parts (JSON values)."""
        text = json.dumps([self._context, kind, *parts], default=str)
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def load(self, key: str, schema: pa.Schema) -> pa.Table | None:
        """The batch stored under `key`; None when there is none, or one that a crash or another version damaged."""
        if self.directory is None:
            return None
        path = self.directory / f"{key}.parquet"
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException):
            return None
        return table if table.schema.equals(schema) else None

    def save(self, key: str, table: pa.Table) -> None:
        """Store the batch, whole or not at all."""
        if self.directory is None:
            return
        with replacing(self.directory / f"{key}.parquet", sync=False) as temporary:
            pq.write_table(table, temporary, compression="zstd")
