"""Which texts activate each feature: a corpus streamed through the model, the max-activating contexts kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from larql_duck.errors import LarqlError
from larql_duck.files import begins, check_output, clear_own, replacing, unfinished_work
from larql_duck.inference.activation_rows import RawParts
from larql_duck.inference.activation_stats import FeatureStats
from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.corpus import Corpus, Window, open_corpus, windows
from larql_duck.inference.engine import Engine
from larql_duck.inference.max_activating import write_contexts
from larql_duck.inference.modules import watch_activations
from larql_duck.progress import Progress, report

TOP = 20
RAW_TOP = 8
WINDOW = 256
# Tokens of one pass, tokens between two looks at the clock, and seconds between two checkpoints.
_PASS, _BLOCK, _EVERY = 2048, 4096, 30.0
_MOST_TOKENS = 2**31 - 1
_FILE = "state.npz"


def write_activations(
    engine: Engine,
    texts: str | Path,
    out: str | Path,
    *,
    raw: bool = False,
    top: int | None = None,
    window: int = WINDOW,
    column: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """The path of `out`, a Parquet file of what activates the features in a corpus.

    By default a row per feature and context with the columns of SCHEMAS['contexts']: the `top` (20) tokens with the
    largest absolute activation, with density, mean and histogram of the feature; its size depends on the features
    alone. raw: a row per token, layer and rank with the columns of SCHEMAS['raw'], each token's `top` (8) features.
    texts is a .txt file (a text a line) or Parquet (`column`); texts are cut into windows of `window` tokens, and the
    first token of each window counts for contexts as little as special tokens do: models park attention there.

    An interrupted run leaves its state beside `out`; the same call then continues it. LarqlError for texts or `out`
    that cannot be used.
    """
    corpus = open_corpus(texts, column)
    size = min(window, engine.context or window)
    if size < 2:
        raise LarqlError(f"window {window} is too short; it must be at least 2 tokens")
    k = (RAW_TOP if raw else TOP) if top is None else top
    if k < 1:
        raise LarqlError(f"top {k} is out of range; it must be at least 1")
    target = check_output(out, begins(b"par1"))
    if not target.parent.is_dir():
        raise LarqlError(f"{target}: cannot be written; give a file in an existing directory")
    key = {
        "corpus": corpus.identity(),
        "model": engine.fingerprint,
        "options": {"raw": raw, "top": k, "window": size},
    }
    kept = target.with_name(f".{target.name}.partial")
    busy = f"{target}: another process is writing it; wait, or name another file"
    with unfinished_work(kept, busy, (kept / _FILE).is_file, "the same command"):
        state = RunState.begin(kept, key, engine, k, raw, notice)
        say = notice or (lambda line: None)
        stream = windows(corpus, engine.tokenizer, size, say)
        _stream(engine, corpus, stream, state, progress or report)
        if state.tokens == 0:
            raise LarqlError(f"{corpus.path}: holds no text; give at least one line with a word")
        if raw:
            assert state.raw is not None
            state.raw.join(target)
        else:
            write_contexts(
                engine, corpus, state.places(), state.layers, state.tokens, target, progress or report
            )
    return target


@dataclass
class RunState:
    """How far a run has come: windows done, tokens seen, and what is known about the features so far; lives in `directory`."""

    directory: Path
    key: dict[str, Any]
    layers: list[FeatureStats]
    raw: RawParts | None
    windows: int = 0
    tokens: int = 0
    # For every window done: number of its first token, its text, and that token's position in the text.
    starts: list[tuple[int, int, int]] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        directory: Path,
        key: dict[str, Any],
        engine: Engine,
        top: int,
        raw: bool,
        notice: Callable[[str], None] | None,
    ) -> RunState:
        layers = [] if raw else [FeatureStats(n, top) for n in engine.n_features]
        parts = RawParts(directory, engine.tokenizer, top) if raw else None
        state = cls(directory, key, layers, parts)
        if (directory / _FILE).is_file() and state._restore():
            if notice is not None:
                notice(f"continues after {state.tokens} tokens")
        else:
            clear_own(directory)
        return state

    def _restore(self) -> bool:
        with np.load(self.directory / _FILE) as arrays:
            meta = json.loads(str(arrays["meta"]))
            if meta["key"] != self.key:
                return False
            self.windows, self.tokens = meta["windows"], meta["tokens"]
            if self.raw is not None:
                self.raw.keep(meta["parts"])
            for i, layer in enumerate(self.layers):
                layer.restore({name: arrays[f"{name}_{i}"] for name in layer.arrays()})
            self.starts = [tuple(row) for row in arrays["starts"].tolist()]
        return True

    def save(self) -> None:
        """Write the state to disk; a crash in between leaves the one before."""
        parts = 0 if self.raw is None else self.raw.count
        meta = {"key": self.key, "windows": self.windows, "tokens": self.tokens, "parts": parts}
        arrays = {
            f"{name}_{i}": a for i, layer in enumerate(self.layers) for name, a in layer.arrays().items()
        }
        arrays |= {"meta": np.array(json.dumps(meta)), "starts": self.places()}
        with replacing(self.directory / _FILE, sync=False) as path:
            np.savez(path, **arrays)  # type: ignore[arg-type]

    def places(self) -> np.ndarray:
        """Number of the first token, text and position of every window, int64 [windows, 3]."""
        return np.asarray(self.starts, np.int64).reshape(-1, 3)


def _stream(
    engine: Engine, corpus: Corpus, stream: Iterator[Window], state: RunState, progress: Progress
) -> None:
    """Run what is left of the corpus, a block of windows at a time."""
    left = islice(stream, state.windows, None)
    saved = time.monotonic()
    for block in _blocks(left):
        numbers = state.tokens + np.concatenate([[0], np.cumsum([len(w.ids) - w.skip for w in block])])
        if numbers[-1] > _MOST_TOKENS:
            raise LarqlError(f"{corpus.path}: more than {_MOST_TOKENS} tokens; split it into several files")
        for rows in map(sorted, length_groups([len(w.ids) for w in block], tokens=_PASS)):
            _run(engine, [block[i] for i in rows], [int(numbers[i]) for i in rows], state)
        if state.raw is not None:
            state.raw.flush()
        else:
            state.starts += [(int(n), w.text, w.offset) for n, w in zip(numbers, block, strict=False)]
        state.windows += len(block)
        state.tokens = int(numbers[-1])
        progress("activations", block[-1].text + 1, corpus.count)
        if time.monotonic() - saved > _EVERY:
            state.save()
            saved = time.monotonic()


def _blocks(stream: Iterator[Window]) -> Iterator[list[Window]]:
    block: list[Window] = []
    tokens = 0
    for window in stream:
        block.append(window)
        tokens += len(window.ids)
        if tokens >= _BLOCK:
            yield block
            block, tokens = [], 0
    if block:
        yield block


def _run(engine: Engine, rows: list[Window], numbers: list[int], state: RunState) -> None:
    """One pass over some windows, whose first tokens have these numbers."""
    batch = pad([w.ids for w in rows], device=engine.device)
    lengths = torch.tensor(batch.lengths)
    skips = torch.tensor([w.skip for w in rows])
    firsts = torch.tensor(numbers)
    positions = batch.positions.cpu()
    special = torch.tensor([[engine.tokenizer.is_special(i) for i in row] for row in batch.ids.tolist()])
    counted = batch.mask.cpu() & (positions >= skips[:, None])
    if state.raw is None:
        counted &= (positions > 0) & ~special
    token = firsts[:, None] + positions - skips[:, None]
    chosen = token[counted].numpy()
    order = np.argsort(chosen)
    columns = torch.from_numpy(order)
    mask = counted.to(engine.device)

    # Outside inference mode: buffers that are made here are also used where there is none.
    @torch.inference_mode(False)
    def seen(layer: int, activation: torch.Tensor) -> None:
        values = activation[mask].float().cpu()[columns][:, : engine.n_features[layer]].contiguous()
        if state.raw is not None:
            state.raw.add(layer, chosen[order], values)
        elif len(values):
            state.layers[layer].add(chosen[order], values)

    if state.raw is not None:
        at = (positions - skips[:, None] + torch.tensor([w.offset for w in rows])[:, None])[counted].numpy()[
            order
        ]
        text = np.repeat([w.text for w in rows], [int(n) for n in lengths - skips])
        state.raw.place(chosen[order], text, at, batch.ids.cpu()[counted].numpy()[order])
    with watch_activations(engine.modules, seen):
        engine.run(batch.ids, batch.mask if batch.padded else None, batch.positions)
