"""Every token's strongest features, layer by layer, written as the texts go by."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from larql_duck.atlas.collecting import WINDOW, Block, blocks, checked, run_windows
from larql_duck.atlas.statistics import top_features
from larql_duck.atlas.texts import open_corpus, windows
from larql_duck.catalog.forward_tables import SCHEMAS, as_table
from larql_duck.errors import LarqlError
from larql_duck.files import begins, check_output, clear_own, replacing, unfinished_work, write_whole
from larql_duck.inference.engine import Engine
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.progress import Progress, report

TOP = 8
_FILE = "state.json"


def write_raw(
    engine: Engine,
    texts: str | Path,
    out: str | Path,
    *,
    top: int = TOP,
    window: int = WINDOW,
    column: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> Path:
    """The path of `out`, a Parquet file with a row per token, layer and rank: each token's `top` features by absolute
    activation, with the columns of SCHEMAS['raw']. Texts are those of `open_corpus`, cut into windows of `window` tokens.

    An interrupted run leaves its parts beside `out`; the same call then continues it. LarqlError for texts or `out`
    that cannot be used.
    """
    corpus = open_corpus(texts, column)
    size = checked(engine, window, top)
    target = check_output(out, begins(b"par1"))
    if not target.parent.is_dir():
        raise LarqlError(f"{target}: cannot be written; give a file in an existing directory")
    key = {"texts": corpus.identity(), "model": engine.fingerprint, "top": top, "window": size}
    kept = target.with_name(f".{target.name}.partial")
    busy = f"{target}: another process is writing it; wait, or name another file"
    with unfinished_work(kept, busy, (kept / _FILE).is_file, "the same command"):
        parts = RawParts(kept, engine.tokenizer, top)
        done = parts.taken_up(key)
        if done:
            notice(f"continues after {done} windows")
        left = islice(windows(corpus, engine.tokenizer, size, notice), done, None)
        for block in blocks(left):
            parts.take_in(engine, block)
            done += len(block.windows)
            parts.flush(key, done)
            (progress or report)("activations", block.windows[-1].text + 1, corpus.count)
        if not parts.count:
            raise LarqlError(f"{corpus.path}: holds no text; give at least one line with a word")
        parts.join(target)
    return target


class RawParts:
    """Rows of SCHEMAS['raw'], in the order of the tokens, as Parquet parts in a directory: one a block of windows."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, top: int) -> None:
        self.count = 0
        self._directory = directory
        self._tokenizer = tokenizer
        self._top = top
        self._columns: dict[str, list[np.ndarray]] = {}
        self._places: dict[str, np.ndarray] = {}

    def taken_up(self, key: dict[str, object]) -> int:
        """How many windows an earlier run with this key has done."""
        state = self._directory / _FILE
        if state.is_file():
            found = json.loads(state.read_bytes())
            if found["key"] == json.loads(json.dumps(key)):
                self.count = found["parts"]
                return int(found["windows"])
        clear_own(self._directory)
        return 0

    def take_in(self, engine: Engine, block: Block) -> None:
        """Run a block's windows and note where its tokens stand, and which they are; they are numbered from 0 in it."""
        own = [w.ids[w.skip :] for w in block.windows]
        self._places = {
            "text": np.repeat([w.text for w in block.windows], [len(ids) for ids in own]),
            "position": np.concatenate(
                [w.offset + np.arange(len(i)) for w, i in zip(block.windows, own, strict=True)]
            ),
            "id": np.concatenate([np.asarray(ids, np.int64) for ids in own]),
        }

        def seen(layer: int, numbers: np.ndarray, activation: torch.Tensor) -> None:
            features, values = top_features(activation, self._top)
            n, k = features.shape
            columns = {
                "number": np.repeat(numbers - block.numbers[0], k),
                "layer": np.full(n * k, layer),
                "rank": np.tile(np.arange(1, k + 1), n),
                "feature": features.reshape(-1),
                "activation": values.reshape(-1),
            }
            for name, column in columns.items():
                self._columns.setdefault(name, []).append(column)

        for rows, firsts in block.passes():
            run_windows(engine, rows, firsts, seen, every=True)

    def flush(self, key: dict[str, object], windows: int) -> None:
        """Write the block's rows as the next part, and that so many windows are done."""
        rows = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        order = np.lexsort((rows["rank"], rows["layer"], rows["number"]))
        at = rows["number"][order]
        ids, which = np.unique(self._places["id"][at], return_inverse=True)
        texts = pa.array([self._tokenizer.token(int(i)) for i in ids], pa.string())
        table = as_table(
            "raw",
            {
                "text": self._places["text"][at],
                "position": self._places["position"][at].astype(np.int32),
                "token": texts.take(pa.array(which)),
                "layer": rows["layer"][order].astype(np.int32),
                "rank": rows["rank"][order].astype(np.int32),
                "feature": rows["feature"][order],
                "activation": rows["activation"][order],
            },
        )
        pq.write_table(table, self._part(self.count), compression="zstd")
        self.count += 1
        self._columns = {}
        state = {"key": key, "windows": windows, "parts": self.count}
        write_whole(self._directory / _FILE, json.dumps(state), sync=False)

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
