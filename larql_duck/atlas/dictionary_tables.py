"""The tables of a dictionary: how well it reconstructs, how its features behave over texts, and what fires them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from larql_duck.atlas.collecting import WINDOW, blocks, checked, run_windows
from larql_duck.atlas.dictionary import Dictionary
from larql_duck.atlas.tables import pieces
from larql_duck.atlas.texts import Corpus, windows
from larql_duck.catalog import as_table
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.hook_points import watch_points
from larql_duck.inference.topk import TopK, row_blocks
from larql_duck.progress import Progress

TOP = 20
# Activations that are held at once.
_VALUES = 1 << 24
_BEFORE, _BEHIND = 24, 8


@dataclass
class Measured:
    """What texts told of a dictionary; tokens are numbered as they go by.

    error is the share of the variance at its output that it does not reconstruct; fired, most: for each feature the tokens
    at which it fires, and its largest activation.
    """

    strongest: TopK
    fired: np.ndarray
    most: np.ndarray
    n_tokens: int = 0
    _left: float = 0.0
    _squares: float = 0.0
    _sum: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def error(self) -> float:
        """The share of the variance that is not reconstructed; NaN where nothing varies."""
        centred = self._squares - float(self._sum.square().sum()) / max(self.n_tokens, 1)
        return self._left / centred if centred > 0 else float("nan")

    def add(
        self, numbers: np.ndarray, dictionary: Dictionary, given: torch.Tensor, written: torch.Tensor
    ) -> None:
        """Take in what passed the dictionary's two places at the tokens with these numbers, both f32 [tokens, hidden]."""
        for start, stop in row_blocks(len(numbers), max(1, _VALUES // dictionary.n_features)):
            codes = dictionary.encode(given[start:stop])
            left = written[start:stop].double() - dictionary.decode(codes).double()
            self._left += float(left.square().sum())
            tokens, features = np.nonzero(codes.activation.numpy())
            values = codes.activation.numpy()[tokens, features]
            self.fired += np.bincount(features, minlength=len(self.fired))
            np.maximum.at(self.most, features, values)
            enter = values >= self.strongest.values[features, -1]
            at = numbers[start:stop][tokens[enter]].astype(np.int32)
            self.strongest.offer(features[enter], at, values[enter])
        exact = written.double()
        self._squares += float(exact.square().sum())
        self._sum = self._sum + exact.sum(0) if len(self._sum) else exact.sum(0)
        self.n_tokens += len(numbers)


def measure_dictionary(
    engine: Engine,
    dictionary: Dictionary,
    corpus: Corpus,
    *,
    top: int = TOP,
    window: int = WINDOW,
    notice: Callable[[str], None],
    progress: Progress,
) -> tuple[Measured, list[dict[str, Any]]]:
    """What these texts tell of a dictionary, and each of its features' `top` strongest firings: feature, rank, activation,
    token, context, source, doc, position. Tokens count as they do for the model's own features.
    """
    size = checked(engine, window, top)
    n = dictionary.n_features
    measured = Measured(TopK(n, top), np.zeros(n, np.int64), np.zeros(n, np.float32))
    points = (dictionary.point, dictionary.out)
    starts: list[int] = []
    found: dict[int, torch.Tensor] = {}

    def seen(place: int, numbers: np.ndarray, values: torch.Tensor) -> None:
        found[place] = values

    for block in blocks(windows(corpus, engine.tokenizer, size, notice)):
        for rows, firsts in block.passes():
            numbers = run_windows(
                engine, rows, firsts, seen, watch=lambda modules, told: watch_points(modules, points, told)
            )
            if len(numbers):
                measured.add(numbers, dictionary, found[0], found[1])
        starts += block.numbers
        progress("dictionary", block.windows[-1].text + 1, corpus.count)
    if not measured.n_tokens:
        raise LarqlError(f"{corpus.path}: holds no text; give at least one line with a word")
    measured.strongest.settle()
    return measured, _firings(engine, corpus, measured.strongest, np.asarray(starts), size)


def _firings(
    engine: Engine, corpus: Corpus, strongest: TopK, starts: np.ndarray, size: int
) -> list[dict[str, Any]]:
    """The firings by feature and rank. The texts are read once more, for what is needed of them."""
    features, places = np.nonzero(strongest.values > 0)
    numbers = strongest.columns[features, places]
    which = np.searchsorted(starts, numbers, side="right") - 1
    rows: list[dict[str, Any]] = [{} for _ in features]
    by_window: dict[int, list[int]] = {}
    for i, w in enumerate(which.tolist()):
        by_window.setdefault(w, []).append(i)
    for number, window in enumerate(windows(corpus, engine.tokenizer, size)):
        if number not in by_window:
            continue
        own = window.ids[window.skip :]
        content, ends = pieces(engine.tokenizer, own)
        source = corpus.source_of(window.text)
        for i in by_window[number]:
            at = int(numbers[i] - starts[number])
            rows[i] = {
                "feature": int(features[i]),
                "rank": int(places[i]) + 1,
                "activation": float(strongest.values[features[i], places[i]]),
                "token": engine.tokenizer.token(own[at]),
                "context": excerpt(content, ends, at),
                "source": source,
                "doc": window.text,
                "position": window.offset + at,
            }
    return rows


def excerpt(content: str, ends: Sequence[int], at: int) -> str:
    """Of a text whose tokens end at `ends` the token `at`, from 0, in brackets, with some tokens on both sides."""
    starts = [0, *ends]
    first, last = max(at - _BEFORE, 0), min(at + _BEHIND, len(ends) - 1)
    return f"{content[starts[first] : starts[at]]}[{content[starts[at] : ends[at]]}]{content[ends[at] : ends[last]]}"


def dictionary_tables(
    name: str,
    dictionary: Dictionary,
    measured: Measured,
    firings: Sequence[dict[str, Any]],
    promoted: Sequence[tuple[list[str], list[str]]],
    *,
    source: str,
    file: str,
) -> dict[str, pa.Table]:
    """The rows of one dictionary in the tables dictionaries, dictionary_features and dictionary_firings.

    promoted: for each feature the tokens that its decoder row promotes and suppresses most, best first.
    """
    n = dictionary.n_features
    one = {
        "dictionary": name,
        "architecture": dictionary.architecture,
        "hook": dictionary.point.name,
        "hook_out": dictionary.out.name,
        "layer": dictionary.point.layer,
        "n_features": n,
        "hidden": dictionary.encoder.shape[0],
        "error": measured.error,
        "n_tokens": measured.n_tokens,
        "firing": float(measured.fired.sum()) / measured.n_tokens,
        "silent": int((measured.fired == 0).sum()),
        "source": source,
        "file": file,
    }
    features = {
        "dictionary": [name] * n,
        "feature": np.arange(n, dtype=np.int32),
        "density": measured.fired / measured.n_tokens,
        "max": measured.most,
        "norm": dictionary.decoder.norm(dim=1).numpy(),
        "promoted": [up for up, _ in promoted],
        "suppressed": [down for _, down in promoted],
    }
    columns: dict[str, list[Any]] = {
        column: [row[column] for row in firings]
        for column in ("feature", "rank", "activation", "token", "context", "source", "doc", "position")
    }
    return {
        "dictionaries": as_table("dictionaries", {column: [value] for column, value in one.items()}),
        "dictionary_features": as_table("dictionary_features", features),
        "dictionary_firings": as_table(
            "dictionary_firings", {"dictionary": [name] * len(firings), **columns}
        ),
    }
