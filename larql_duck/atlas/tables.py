"""The tables of the atlas: figures of every feature, what fires it, and the texts that this stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from larql_duck.atlas.collecting import Collected
from larql_duck.atlas.statistics import QUANTILES, FeatureStats
from larql_duck.atlas.texts import Corpus, windows
from larql_duck.catalog import as_table, empty_table
from larql_duck.inference.engine import Engine
from larql_duck.inference.routing import routing_rows
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.progress import Progress

TOP_BAND = "top"


def atlas_tables(engine: Engine, corpus: Corpus, run: Collected, progress: Progress) -> dict[str, pa.Table]:
    """The tables feature_stats, feature_firings and example_texts. The texts are read once more, for what is needed of them.

    The run's layers are given up one after the other, so that they and the tables are not in memory together.
    """
    parts, picked = [], []
    for number in range(len(run.layers)):
        layer = run.layers.pop(0)
        picked.append(layer.picked)
        parts.append((_firings(number, layer), _stats(number, layer)))
    columns, stats = (_joined(own) for own in zip(*parts, strict=True))
    del parts
    places = run.places()
    window = np.searchsorted(places[:, 0], columns["number"], side="right") - 1
    needed, text = _numbered(window)
    at = columns.pop("number") - places[window, 0]
    texts, tokens = _texts(engine.tokenizer, corpus, run, needed, progress)
    # The token of each firing, by number of the window and place in it.
    starts = np.concatenate([[0], np.cumsum([len(own) for own in tokens])])
    flat = np.concatenate([np.asarray(own, np.int64) for own in tokens])
    ids, which = _numbered(flat[starts[text] + at])
    names = pa.array([engine.tokenizer.token(int(i)) for i in ids], pa.string())
    firings: dict[str, Any] = columns | {
        "band": pa.array([*QUANTILES, TOP_BAND], pa.string()).take(pa.array(columns["band"])),
        "token": names.take(pa.array(which)),
        "text": text,
        "doc": places[window, 1].astype(np.int32),
        "position": (places[window, 2] + at).astype(np.int32),
    }
    # Of the counts of all features each has a stretch.
    counts = stats["histogram"]
    ends = pa.array(np.arange(len(counts) + 1, dtype=np.int32) * counts.shape[1])
    histogram = pa.ListArray.from_arrays(ends, pa.array(counts.reshape(-1)))
    return {
        "feature_stats": as_table("feature_stats", stats | {"histogram": histogram}),
        "feature_firings": as_table("feature_firings", firings),
        "example_texts": texts,
        "routing": _routing(engine, run.n_tokens, picked),
    }


def _routing(engine: Engine, n: int, picked: Sequence[np.ndarray]) -> pa.Table:
    """Rows of `routing` for the texts' n tokens; none of a model without experts."""
    experts = engine.family.experts
    if experts is None:
        return empty_table("routing")
    counts = torch.zeros(engine.n_layers, experts.count + 1, dtype=torch.int64)
    for layer, own in enumerate(picked):
        counts[layer, : len(own)] = torch.from_numpy(own)
    return routing_rows(engine, "texts", n, counts, None)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values, ascending, and for each of `values` (at least 0) its place among them, int32."""
    there = np.bincount(values) > 0
    return np.flatnonzero(there), (there.cumsum(dtype=np.int32) - 1)[values]


def _firings(number: int, layer: FeatureStats) -> dict[str, np.ndarray]:
    """What fires one layer's features, by feature, sign (1 first) and rank; `number` is the token's, `band` counts from 0."""
    shares = list(QUANTILES.values())
    sizes = layer.sizes(shares)
    parts: list[dict[str, np.ndarray]] = []
    for sign, kept in layer.strongest.items():
        kept.settle()
        features, places = np.nonzero((kept.columns >= 0) & (kept.values > 0))
        top: dict[str, np.ndarray] = {
            "feature": features,
            "number": kept.columns[features, places],
            "activation": sign * kept.values[features, places],
            "band": np.full(len(features), len(shares), np.int8),
        }
        # What is sampled below the strongest, one of each band of |activation|: between its quantiles.
        least = np.where((kept.columns >= 0) & (kept.values > 0), kept.values, np.inf).min(1)
        f, tokens, activation = layer.sampled(sign)
        size = np.abs(activation)
        band = (size[:, None] >= sizes[:, f].T).sum(1) - 1
        use = np.flatnonzero((size < least[f]) & (band >= 0))
        # The strongest of a band stands for it.
        use = use[np.lexsort((-size[use], band[use], f[use]))]
        first = np.ones(len(use), bool)
        first[1:] = (f[use][1:] != f[use][:-1]) | (band[use][1:] != band[use][:-1])
        use = use[first]
        sample = {"feature": f[use], "number": tokens[use], "activation": activation[use], "band": band[use]}
        both = _joined([top, sample])
        order = np.lexsort((both["number"], -np.abs(both["activation"]), both["feature"]))
        both = {name: values[order] for name, values in both.items()}
        starts = np.flatnonzero(np.diff(both["feature"], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order))) + 1
        parts.append(both | {"rank": rank.astype(np.int32), "sign": np.full(len(order), sign, np.int32)})
    whole = _joined(parts)
    order = np.lexsort((whole["rank"], -whole["sign"], whole["feature"]))
    whole = {name: values[order] for name, values in whole.items()}
    return whole | {
        "layer": np.full(len(order), number, np.int32),
        "feature": whole["feature"].astype(np.int32),
        "number": whole["number"].astype(np.int32),
        "activation": whole["activation"].astype(np.float32),
        "band": whole["band"].astype(np.int8),
    }


def _stats(number: int, layer: FeatureStats) -> dict[str, np.ndarray]:
    """One layer's rows of feature_stats, by feature; its histogram as int32 [features, bins]."""
    n = layer.n_features
    return {
        "layer": np.full(n, number, np.int32),
        "feature": np.arange(n, dtype=np.int32),
        "n": np.full(n, layer.count, np.int64),
        "density": layer.fired / max(layer.count, 1),
        "fires_above": np.full(n, layer.fires_above, np.float32),
        "mean": layer.total / max(layer.count, 1),
        "max": layer.most,
        "min": layer.least,
        "histogram": layer.by_powers(),
        **dict(zip(QUANTILES, layer.quantiles(list(QUANTILES.values())), strict=True)),
    }


def _texts(
    tokenizer: Tokenizer, corpus: Corpus, run: Collected, needed: np.ndarray, progress: Progress
) -> tuple[pa.Table, list[tuple[int, ...]]]:
    """The table example_texts of the windows with these numbers, and the token ids of each."""
    wanted = set(needed.tolist())
    columns: dict[str, list[Any]] = {n: [] for n in ("text", "doc", "source", "position", "content", "ends")}
    tokens: list[tuple[int, ...]] = []
    for number, window in enumerate(windows(corpus, tokenizer, run.key["window"])):
        if number in wanted:
            own = window.ids[window.skip :]
            content, ends = pieces(tokenizer, own)
            row = (len(tokens), window.text, corpus.source_of(window.text), window.offset, content, ends)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            tokens.append(own)
            progress("texts", len(tokens), len(wanted))
    return as_table("example_texts", columns), tokens


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of token ids, and where each token ends in it; a character of several tokens belongs to the last of them."""
    text, ends, begun = "", [], 0
    for i in range(len(ids)):
        piece = tokenizer.continuation(ids[begun : i + 1])
        # An unfinished character; but no character has more than four bytes.
        if not piece.endswith("\ufffd") or i - begun >= 4:
            text, begun = text + piece, i + 1
        ends.append(len(text))
    if begun < len(ids):
        text += tokenizer.continuation(ids[begun:])
        ends[-1] = len(text)
    return text, ends
