"""What fires each feature: texts streamed through the model, what is kept of them resumable at any moment."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from larql_duck.atlas.statistics import FeatureStats
from larql_duck.atlas.texts import Corpus, Window, windows
from larql_duck.errors import LarqlError
from larql_duck.files import clear_own, replacing
from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.engine_nodes import EngineName, EngineNodes, named_engine
from larql_duck.inference.modules import ModelModules, watch_activations
from larql_duck.progress import Progress, report

TOP = 20
WINDOW = 256
# Tokens of the first block, by which it is estimated from which activation on a feature fires.
FIRST_TOKENS = 2000
# Tokens of one pass, tokens between two looks at the clock, and seconds between two checkpoints.
_PASS, _BLOCK, _EVERY = 2048, 4096, 30.0
# Blocks of one task on a node.
_SHARD = 8
_MOST_TOKENS = 2**31 - 1
STATE = "state.npz"
Watch: TypeAlias = Callable[
    [ModelModules, Callable[[int, torch.Tensor], None]], contextlib.AbstractContextManager[None]
]
"""A context in which passes tell what they come by: its number, and values [n, t, width]."""
Seen: TypeAlias = Callable[[int, np.ndarray, torch.Tensor], None]
"""Is told the number of a place (a layer), the numbers of a pass' tokens, and their values there, f32 [tokens, width]."""


@dataclass
class Collected:
    """How far a run has come, and what is known about the features so far; it is kept in `directory`.

    Tokens are numbered as they go by. starts gives for every window done the number of its first token, its text and that
    token's position in the text; n_tokens are those that were counted.
    """

    directory: Path
    key: dict[str, Any]
    layers: list[FeatureStats] = field(default_factory=list)
    windows: int = 0
    tokens: int = 0
    n_tokens: int = 0
    starts: list[tuple[int, int, int]] = field(default_factory=list)

    def restore(self, engine: Engine, top: int) -> bool:
        """Whether a run with the same key left its state; it is taken up then."""
        if not (self.directory / STATE).is_file():
            return False
        with np.load(self.directory / STATE, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            if meta["key"] != self.key:
                return False
            self.windows, self.tokens, self.n_tokens = meta["windows"], meta["tokens"], meta["n_tokens"]
            self.layers = [FeatureStats(n, top, 0, spans) for n, spans in _layers(engine)]
            for i, layer in enumerate(self.layers):
                layer.restore({name: arrays[f"{name}_{i}"] for name in layer.arrays()})
            self.starts = [tuple(row) for row in arrays["starts"].tolist()]
        return True

    def save(self) -> None:
        """Write the state to disk; a crash in between leaves the one before."""
        meta = {"key": self.key, "windows": self.windows, "tokens": self.tokens, "n_tokens": self.n_tokens}
        arrays = {
            f"{name}_{i}": a for i, layer in enumerate(self.layers) for name, a in layer.arrays().items()
        }
        arrays |= {"meta": np.array(json.dumps(meta)), "starts": self.places()}
        with replacing(self.directory / STATE, sync=False) as path:
            np.savez(path, allow_pickle=False, **arrays)

    def places(self) -> np.ndarray:
        """Number of the first token, text and position of every window, int64 [windows, 3]."""
        return np.asarray(self.starts, np.int64).reshape(-1, 3)


def collect(
    engine: Engine,
    corpus: Corpus,
    directory: Path,
    *,
    top: int = TOP,
    window: int = WINDOW,
    notice: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
    nodes: EngineNodes | None = None,
) -> Collected:
    """What fires the features in these texts, `top` tokens for each sign; a run that `directory` holds is continued.

    With `nodes` they run the texts behind the first few thousand tokens, a shard a task. The first token of each window counts as little as special tokens do: models park attention there. LarqlError for
    options out of range, and for texts without a token.
    """
    size = checked(engine, window, top)
    key = {"texts": corpus.identity(), "model": engine.fingerprint, "top": top, "window": size}
    run = Collected(directory, key)
    if run.restore(engine, top):
        notice(f"continues after {run.tokens} tokens")
    else:
        clear_own(directory)
        first = FIRST_TOKENS + size
        run.layers = [FeatureStats(n, top, first, spans) for n, spans in _layers(engine)]
    stream = windows(corpus, engine.tokenizer, size, notice)
    _stream(engine, corpus, stream, run, progress or report, nodes)
    if not run.n_tokens:
        raise LarqlError(f"{corpus.path}: holds no text; give at least one line with a word")
    return run


def _layers(engine: Engine) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Of every layer its number of features, and the spans of its experts'."""
    experts = engine.family.experts
    for layer, n in enumerate(engine.n_features):
        mixed = experts is not None and layer in experts.layers
        yield n, [(begin, end) for _, begin, end in experts.spans(n)] if experts and mixed else []


def checked(engine: Engine, window: int, top: int) -> int:
    """The tokens of one window; LarqlError for numbers out of range."""
    size = min(window, engine.context or window)
    if size < 2:
        raise LarqlError(f"window {window} is too short; it must be at least 2 tokens")
    if top < 1:
        raise LarqlError(f"top {top} is out of range; it must be at least 1")
    return size


def _stream(
    engine: Engine,
    corpus: Corpus,
    stream: Iterator[Window],
    run: Collected,
    progress: Progress,
    nodes: EngineNodes | None,
) -> None:
    """Run what is left of the texts, a block of windows at a time."""
    saved = time.monotonic()
    left = _checked(corpus, blocks(islice(stream, run.windows, None), run.tokens))
    found = _here(engine, left, run)
    if nodes is not None:
        # What fires is decided by the first block, and told to the nodes.
        first = islice(left, int(not run.windows))
        found = chain(_here(engine, first, run), _over_nodes(nodes, left, run))
    for shard in found:
        for block in shard:
            run.starts += [(n, w.text, w.offset) for n, w in zip(block.numbers, block.windows, strict=True)]
            run.windows += len(block.windows)
            run.tokens = block.end
        progress("activations", shard[-1].windows[-1].text + 1, corpus.count)
        if time.monotonic() - saved > _EVERY:
            run.save()
            saved = time.monotonic()


def _checked(corpus: Corpus, found: Iterator[Block]) -> Iterator[Block]:
    """The blocks; LarqlError behind the last one whose tokens can be numbered."""
    for block in found:
        if block.end > _MOST_TOKENS:
            raise LarqlError(f"{corpus.path}: more than {_MOST_TOKENS} tokens; split it into several files")
        yield block


def _here(engine: Engine, left: Iterator[Block], run: Collected) -> Iterator[list[Block]]:
    """The blocks, each after this machine has run it."""

    def seen(layer: int, numbers: np.ndarray, values: torch.Tensor) -> None:
        run.layers[layer].add(numbers, values)

    for block in left:
        for rows, firsts in block.passes():
            run.n_tokens += len(run_windows(engine, rows, firsts, seen))
        if not run.windows:
            for layer in run.layers:
                layer.settle()
        yield [block]


def _over_nodes(nodes: EngineNodes, left: Iterator[Block], run: Collected) -> Iterator[list[Block]]:
    """The shards of what is left, in order, after nodes have run each and the run has taken in what they saw."""
    fires = [layer.fires_above for layer in run.layers]
    top = next(iter(run.layers[0].strongest.values())).k
    counts = sum(layer.n_features for layer in run.layers)
    calls = ((fires, top, shard) for shard in iter(lambda: list(islice(left, _SHARD)), []))
    # The arrays, and a copy on their way to the machine that asked.
    needed = 2 * FeatureStats.bytes_of(counts, top) + _SHARD * _BLOCK // _PASS * 8 * counts
    for (_, _, shard), (n_tokens, layers) in nodes.run(run_shard, calls, memory=needed, in_order=True):
        for layer, (arrays, totals) in zip(run.layers, layers, strict=True):
            layer.merge(arrays, totals)
        run.n_tokens += n_tokens
        yield shard


def run_shard(
    named: EngineName, fires: Sequence[float], top: int, shard: Sequence[Block]
) -> tuple[int, list[tuple[dict[str, np.ndarray], np.ndarray]]]:
    """On a node: how many tokens of these blocks count; of each layer what `FeatureStats.merge` takes.

    fires: above which activation a layer's features fire.
    """
    engine = named_engine(named)
    layers = [FeatureStats(n, top, 0, spans) for n, spans in _layers(engine)]
    totals: list[list[np.ndarray]] = [[] for _ in layers]
    for layer, limit in zip(layers, fires, strict=True):
        layer.fires_above = limit

    def seen(layer: int, numbers: np.ndarray, values: torch.Tensor) -> None:
        own = layers[layer]
        own.total[:] = 0
        own.add(numbers, values)
        totals[layer].append(own.total.copy())

    counted = sum(
        len(run_windows(engine, rows, firsts, seen)) for block in shard for rows, firsts in block.passes()
    )
    return counted, [
        (layer.arrays(), np.array(own).reshape(-1, layer.n_features))
        for layer, own in zip(layers, totals, strict=True)
    ]


def run_windows(
    engine: Engine,
    rows: Sequence[Window],
    numbers: Sequence[int],
    seen: Seen,
    *,
    every: bool = False,
    watch: Watch | None = None,
) -> np.ndarray:
    """The numbers int64, ascending, of the tokens that count in one pass over windows whose first tokens have `numbers`.

    `seen` is told each layer's activations f32 [tokens, features], in that order; none where no token counts. every: all
    tokens count. watch: what is seen instead, by the places that it gives.
    """
    batch = pad([w.ids for w in rows], device=engine.device)
    skips = torch.tensor([w.skip for w in rows])
    positions = batch.positions.cpu()
    counted = batch.mask.cpu() & (positions >= skips[:, None])
    if not every:
        special = [[engine.tokenizer.is_special(i) for i in row] for row in batch.ids.tolist()]
        counted &= (positions > 0) & ~torch.tensor(special)
    token: np.ndarray = (torch.tensor(numbers)[:, None] + positions - skips[:, None])[counted].numpy()
    if not len(token):
        return token
    order = np.argsort(token)
    token = token[order]
    # Places in the pass flattened: picking rows by number is several times faster than by a mask.
    places = counted.flatten().nonzero()[:, 0][torch.from_numpy(order)].to(engine.device)

    # Outside inference mode: buffers that are made here are also used where there is none.
    @torch.inference_mode(False)
    def hook(place: int, activation: torch.Tensor) -> None:
        flat = activation.reshape(-1, activation.shape[-1])
        values = flat.index_select(0, places).float().cpu()
        seen(place, token, values if watch else values[:, : engine.n_features[place]].contiguous())

    with (watch or watch_activations)(engine.modules, hook):
        engine.run_body(batch.ids, batch.mask if batch.padded else None, batch.positions, None)
    return token


@dataclass(frozen=True)
class Block:
    """Consecutive windows: `numbers` are those of their first own tokens, `end` is that of the token behind the last."""

    windows: list[Window]
    numbers: list[int]
    end: int

    def passes(self) -> Iterator[tuple[list[Window], list[int]]]:
        """Windows that go through the model together, and the numbers of their first tokens."""
        for group in length_groups([len(w.ids) for w in self.windows], tokens=_PASS):
            rows = sorted(group)
            yield [self.windows[i] for i in rows], [self.numbers[i] for i in rows]


def blocks(stream: Iterator[Window], first: int = 0) -> Iterator[Block]:
    """The windows, some thousand tokens at a time; their own tokens are numbered from `first` on. The block that begins with
    number 0 ends where FIRST_TOKENS of its tokens count, special ones among them.
    """
    taken: list[Window] = []
    tokens = counted = 0
    for window in stream:
        taken.append(window)
        tokens += len(window.ids)
        counted += len(window.ids) - 1
        if tokens >= _BLOCK or (not first and counted >= FIRST_TOKENS):
            block = _block(taken, first)
            yield block
            taken, tokens, counted, first = [], 0, 0, block.end
    if taken:
        yield _block(taken, first)


def _block(taken: list[Window], first: int) -> Block:
    *numbers, end = accumulate((len(w.ids) - w.skip for w in taken), initial=first)
    return Block(taken, numbers, end)
