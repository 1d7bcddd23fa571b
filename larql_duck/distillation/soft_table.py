"""Soft targets that a teacher gave before, read from their table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from larql_duck.distillation.examples import TrainingExample
from larql_duck.errors import LarqlError

_COLUMNS = ("example", "position", "rank", "token_id", "logprob")
_EXAMPLES = b"examples"


class SoftTargets:
    """The most probable tokens of a teacher, by example and position, with their log-probabilities at temperature 1.

    examples are the token ids that the teacher read. A position is that of the token after which a distribution stands.
    """

    def __init__(self, table: pa.Table, examples: Sequence[TrainingExample]) -> None:
        """table has the columns example, position, rank, token_id, logprob; rows of rank 0 say what all other tokens have."""
        self.examples = list(examples)
        table = table.filter(pc.greater(table["rank"], 0))
        columns = [table.column(name).to_numpy() for name in _COLUMNS]
        order = np.lexsort(columns[2::-1])
        example, position, _, tokens, logprobs = (column[order] for column in columns)
        self._tokens, self._logprobs = tokens.astype(np.int64), logprobs.astype(np.float32)
        places = np.stack([example, position], 1) if len(example) else np.zeros((0, 2), np.int64)
        keys, starts, sizes = np.unique(places, axis=0, return_index=True, return_counts=True)
        self._at = {
            (int(e), int(p)): (int(start), int(size))
            for (e, p), start, size in zip(keys, starts, sizes, strict=True)
        }
        self.k = int(sizes.max(initial=1))

    @classmethod
    def read(cls, path: Path) -> SoftTargets:
        """The soft targets of a Parquet file that `larql-duck soft-targets` wrote. LarqlError for another file."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise LarqlError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
        missing = [name for name in _COLUMNS if name not in table.column_names]
        said = (table.schema.metadata or {}).get(_EXAMPLES)
        if missing or said is None:
            lacks = f"the column {missing[0]}" if missing else "the examples' own tokens"
            raise LarqlError(
                f"{path}: lacks {lacks}; make it with: larql-duck soft-targets TEACHER -o {path}"
            )
        rows = json.loads(said)
        return cls(
            table, [TrainingExample(tuple(r["ids"]), r["start"], stored=i) for i, r in enumerate(rows)]
        )

    def of(self, examples: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
        """stored_ids int64 and stored_logprobs f32, [m, k] at the positions of the examples that count; -1 where there is none."""
        places = [(e.stored, p) for e in examples for p in range(max(e.start - 1, 0), len(e.ids))]
        ids = torch.full((len(places), self.k), -1)
        logprobs = torch.zeros(len(places), self.k)
        for i, (example, position) in enumerate(places):
            start, size = self._at.get((-1 if example is None else example, position), (0, 0))
            ids[i, :size] = torch.from_numpy(self._tokens[start : start + size])
            logprobs[i, :size] = torch.from_numpy(self._logprobs[start : start + size])
        return {"stored_ids": ids, "stored_logprobs": logprobs}
