"""The tables of the atlas: figures of every feature, what fires it, and the texts that this stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from larql_duck.atlas.collecting import Collected
from larql_duck.atlas.statistics import QUANTILES, FeatureStats
from larql_duck.atlas.texts import Corpus, windows
from larql_duck.catalog import as_table
from larql_duck.inference.engine import Engine
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.progress import Progress

TOP_BAND = "top"


def atlas_tables(engine: Engine, corpus: Corpus, run: Collected, progress: Progress) -> dict[str, pa.Table]:
    """The tables feature_stats, feature_firings and example_texts. The texts are read once more, for what is needed of them."""
    firings = [_firings(number, layer) for number, layer in enumerate(run.layers)]
    columns = {name: np.concatenate([own[name] for own in firings]) for name in firings[0]}
    places = run.places()
    window = np.searchsorted(places[:, 0], columns["number"], side="right") - 1
    needed, text = np.unique(window, return_inverse=True)
    at = columns.pop("number") - places[window, 0]
    texts, tokens = _texts(engine.tokenizer, corpus, run, needed, progress)
    # The token of each firing, by number of the window and place in it.
    starts = np.concatenate([[0], np.cumsum([len(own) for own in tokens])])
    flat = np.concatenate([np.asarray(own, np.int64) for own in tokens])
    ids, which = np.unique(flat[starts[text] + at], return_inverse=True)
    names = pa.array([engine.tokenizer.token(int(i)) for i in ids], pa.string())
    columns |= {
        "token": names.take(pa.array(which)),
        "text": text.astype(np.int32),
        "doc": places[window, 1].astype(np.int32),
        "position": (places[window, 2] + at).astype(np.int32),
    }
    return {
        "feature_stats": as_table("feature_stats", _stats(run.layers)),
        "feature_firings": as_table("feature_firings", columns),
        "example_texts": texts,
    }


def _firings(number: int, layer: FeatureStats) -> dict[str, np.ndarray]:
    """What fires one layer's features, by feature, sign (1 first) and rank; `number` is the token's."""
    shares = list(QUANTILES.values())
    sizes = layer.sizes(shares)
    parts: list[dict[str, np.ndarray]] = []
    for sign, kept in layer.strongest.items():
        kept.settle()
        features, places = np.nonzero((kept.columns >= 0) & (kept.values > 0))
        top = {
            "feature": features,
            "number": kept.columns[features, places].astype(np.int64),
            "activation": sign * kept.values[features, places],
            "band": np.full(len(features), len(shares)),
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
        both = {name: np.concatenate([top[name], sample[name]]) for name in top}
        order = np.lexsort((both["number"], -np.abs(both["activation"]), both["feature"]))
        both = {name: values[order] for name, values in both.items()}
        starts = np.flatnonzero(np.diff(both["feature"], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order))) + 1
        parts.append(both | {"rank": rank.astype(np.int32), "sign": np.full(len(order), sign, np.int32)})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((whole["rank"], -whole["sign"], whole["feature"]))
    whole = {name: values[order] for name, values in whole.items()}
    bands = np.array([*QUANTILES, TOP_BAND], dtype=object)
    return whole | {
        "layer": np.full(len(order), number, np.int32),
        "feature": whole["feature"].astype(np.int32),
        "activation": whole["activation"].astype(np.float32),
        "band": bands[whole["band"]],
    }


def _stats(layers: Sequence[FeatureStats]) -> dict[str, Any]:
    parts: dict[str, list[np.ndarray]] = {}
    for number, layer in enumerate(layers):
        n = layer.n_features
        own = {
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
        for name, values in own.items():
            parts.setdefault(name, []).append(values)
    columns: dict[str, Any] = {name: np.concatenate(values) for name, values in parts.items()}
    counts = columns["histogram"]
    offsets = np.arange(len(counts) + 1, dtype=np.int32) * counts.shape[1]
    columns["histogram"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(counts.reshape(-1)))
    return columns


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
