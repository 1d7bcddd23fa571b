"""Every token's strongest features, layer by layer, written as the texts go by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from larql_duck.catalog.forward_tables import SCHEMAS, as_table
from larql_duck.files import begins, replacing
from larql_duck.inference.activation_stats import stack, top_features
from larql_duck.models.tokenizer import Tokenizer


class RawParts:
    """Rows of SCHEMAS['raw'], in the order of the tokens' numbers, as Parquet parts in a directory."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, top: int) -> None:
        self.count = 0
        self._directory = directory
        self._tokenizer = tokenizer
        self._top = top
        self._columns: dict[str, list[np.ndarray]] = {}
        self._places: dict[str, list[np.ndarray]] = {}

    def keep(self, count: int) -> None:
        """Go on after `count` finished parts; later ones are written again."""
        self.count = count

    def place(self, numbers: np.ndarray, text: np.ndarray, position: np.ndarray, ids: np.ndarray) -> None:
        """Note where the tokens with these numbers stand, and which tokens they are: arrays int64 [tokens]."""
        values = {"number": numbers, "text": text, "position": position, "id": ids}
        for name, column in values.items():
            self._places.setdefault(name, []).append(np.asarray(column, np.int64))

    def add(self, layer: int, numbers: np.ndarray, activation: torch.Tensor) -> None:
        """Take in one layer's activations f32 [tokens, features] of the tokens with these numbers."""
        features, values = top_features(activation, self._top)
        n, k = features.shape
        columns = {
            "number": np.repeat(numbers, k),
            "layer": np.full(n * k, layer),
            "rank": np.tile(np.arange(1, k + 1), n),
            "feature": features.reshape(-1),
            "activation": values.reshape(-1),
        }
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)

    def flush(self) -> None:
        """Write the rows taken in so far as the next part."""
        if not self._columns:
            return
        rows = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        places = {name: stack(parts) for name, parts in self._places.items()}
        by_number = np.argsort(places["number"])
        at = by_number[np.searchsorted(places["number"][by_number], rows["number"])]
        order = np.lexsort((rows["rank"], rows["layer"], rows["number"]))
        ids, which = np.unique(places["id"], return_inverse=True)
        texts = pa.array([self._tokenizer.token(int(i)) for i in ids], pa.string())
        table = as_table(
            "raw",
            {
                "text": places["text"][at][order],
                "position": places["position"][at][order].astype(np.int32),
                "token": texts.take(pa.array(which[at][order])),
                "layer": rows["layer"][order].astype(np.int32),
                "rank": rows["rank"][order].astype(np.int32),
                "feature": rows["feature"][order],
                "activation": rows["activation"][order],
            },
        )
        pq.write_table(table, self._part(self.count), compression="zstd")
        self.count += 1
        self._columns, self._places = {}, {}

    def join(self, out: Path) -> None:
        """Write all parts as one Parquet file at `out`."""
        with (
            replacing(out, replaces=begins(b"par1")) as path,
            pq.ParquetWriter(path, SCHEMAS["raw"], compression="zstd") as writer,
        ):
            for i in range(self.count):
                writer.write_table(pq.read_table(self._part(i), schema=SCHEMAS["raw"]))

    def _part(self, number: int) -> Path:
        return self._directory / f"part-{number:08d}.parquet"
