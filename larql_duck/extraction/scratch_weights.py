"""A model's weights in f32 as a mapped scratch file: forward passes whose weights are pages of a file, not memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from larql_duck.inference.topk import row_blocks
from larql_duck.models.source import WeightSource, matrix_rows
from larql_duck.vindex.arrays import map_tensor


class ScratchWeights:
    """The tensors of `source` in f32, written to `path` once and mapped from there. A WeightSource.

    The file is a scratch file: nothing says what is in it but this object. `step` is called after each tensor. VindexError
    for a vindex whose weights changed since they were written.
    """

    def __init__(self, source: WeightSource, path: Path, step: Callable[[], None] = lambda: None) -> None:
        check = getattr(source, "check_weights", None)
        if callable(check):
            check()
        self._source, self._file = source, path
        self.path, self.config, self.family = source.path, source.config, source.family
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        offset = 0
        with path.open("wb") as file:
            for name in source.names():
                rows = matrix_rows(source, name)
                shape = tuple(rows.shape)
                for start, stop in row_blocks(len(rows), max(1, (1 << 22) // math.prod(shape[1:]))):
                    file.write(rows[start:stop].float().contiguous().numpy().data)
                self._places[name] = offset, shape
                offset += 4 * math.prod(shape)
                del rows
                step()

    def names(self) -> list[str]:
        """The names of the source's tensors."""
        return list(self._places)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in f32, a mapped view."""
        offset, shape = self._places[name]
        return map_tensor(self._file, "f32", shape, offset)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Those of the source."""
        return self._source.tokenizer_files()
