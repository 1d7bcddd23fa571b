"""The strongest contexts of every feature, with the text around them, as one Parquet file in feature order."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.databases import in_memory
from larql_duck.files import begins, replacing
from larql_duck.inference.activation_stats import FeatureStats
from larql_duck.inference.corpus import Corpus
from larql_duck.inference.engine import Engine
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.progress import Progress

# Tokens before and after the one that activates the feature.
BEFORE, AFTER = 24, 8
# Rows that are written to the temporary file at a time.
_ROWS = 1 << 16
# Columns that one context has; the others belong to its feature.
_PLACED = pa.schema([f for f in SCHEMAS["contexts"] if f.name not in ("density", "mean", "histogram")])


def write_contexts(
    engine: Engine,
    corpus: Corpus,
    places: np.ndarray,
    layers: Sequence[FeatureStats],
    tokens: int,
    out: Path,
    progress: Progress,
) -> None:
    """Write `out` with the columns of SCHEMAS['contexts'], by layer, feature and rank.

    places int64 [windows, 3] gives number of the first token, text and position of every window. The corpus is read
    once more, for the texts that are needed; rows are sorted on disk.
    """
    contexts = _contexts(layers, places)
    with replacing(out, replaces=begins(b"par1")) as path:
        # Both lie in the directory that goes when the file is there.
        placed, features = path.with_name("placed"), path.with_name("features")
        with pq.ParquetWriter(placed, _PLACED, compression="zstd") as writer:
            for table in _pieces(corpus, engine.tokenizer, contexts, progress):
                writer.write_table(table)
        pq.write_table(_features(layers, tokens), features)
        _sorted(placed, features, path)


def _contexts(layers: Sequence[FeatureStats], places: np.ndarray) -> dict[str, np.ndarray]:
    """Every context, ordered by text and position: layer, feature, rank, activation, text, position."""
    parts: dict[str, list[np.ndarray]] = {n: [] for n in ("layer", "feature", "rank", "activation", "number")}
    for i, layer in enumerate(layers):
        layer.strongest.settle()
        feature, rank = np.nonzero(layer.strongest.columns >= 0)
        parts["layer"].append(np.full(len(feature), i, np.int32))
        parts["feature"].append(feature.astype(np.int32))
        parts["rank"].append(rank.astype(np.int32) + 1)
        parts["activation"].append(layer.strongest.companions[0][feature, rank])
        parts["number"].append(layer.strongest.columns[feature, rank].astype(np.int64))
    contexts = {name: np.concatenate(values) for name, values in parts.items()}
    number = contexts.pop("number")
    at = np.searchsorted(places[:, 0], number, side="right") - 1
    contexts["text"] = places[at, 1]
    contexts["position"] = (places[at, 2] + number - places[at, 0]).astype(np.int32)
    order = np.lexsort((contexts["feature"], contexts["layer"], contexts["position"], contexts["text"]))
    return {name: values[order] for name, values in contexts.items()}


def _pieces(
    corpus: Corpus, tokenizer: Tokenizer, contexts: dict[str, np.ndarray], progress: Progress
) -> Iterator[pa.Table]:
    """The contexts with their texts, a piece at a time."""
    texts = contexts["text"]
    words: dict[str, list[str]] = {"token": [], "before": [], "after": []}
    done = 0
    for number, text in corpus.texts():
        end = int(np.searchsorted(texts, number, side="right"))
        start = int(np.searchsorted(texts, number, side="left"))
        if start == end:
            continue
        ids = tokenizer.encode(text)
        around_position: dict[int, tuple[str, str, str]] = {}
        for position in contexts["position"][start:end].tolist():
            if position not in around_position:
                around_position[position] = around(tokenizer, ids, position)
            for column, value in zip(words.values(), around_position[position], strict=True):
                column.append(value)
        if end - done >= _ROWS:
            yield _piece(contexts, words, done, end)
            done = end
            words = {name: [] for name in words}
        progress("contexts", end, len(texts))
    if done < len(texts):
        yield _piece(contexts, words, done, len(texts))


def _piece(contexts: dict[str, np.ndarray], words: dict[str, list[str]], start: int, stop: int) -> pa.Table:
    arrays = [words[f.name] if f.name in words else contexts[f.name][start:stop] for f in _PLACED]
    return pa.Table.from_arrays(
        [pa.array(a, f.type) for a, f in zip(arrays, _PLACED, strict=True)], schema=_PLACED
    )


def around(tokenizer: Tokenizer, ids: Sequence[int], position: int) -> tuple[str, str, str]:
    """(token, text before, text after) of one position of a text's token ids."""
    start = max(0, position - BEFORE)
    # Decoded from one start on: a character may span tokens, and some tokenizers join pieces.
    before, upto, whole = (
        tokenizer.decode(ids[start:stop], skip_special=True)
        for stop in (position, position + 1, position + 1 + AFTER)
    )
    return tokenizer.token(ids[position]), before, whole[len(upto) :]


def _features(layers: Sequence[FeatureStats], tokens: int) -> pa.Table:
    """Density, mean and histogram of every feature."""
    counts = [layer.n_features for layer in layers]
    histogram = np.concatenate([layer.histogram for layer in layers])
    seen = np.maximum(histogram.sum(1), 1)
    offsets = np.arange(len(histogram) + 1, dtype=np.int32) * histogram.shape[1]
    return pa.table(
        {
            "layer": pa.array(np.repeat(np.arange(len(layers), dtype=np.int32), counts)),
            "feature": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in counts])),
            "density": pa.array(np.concatenate([layer.density() for layer in layers])),
            "mean": pa.array((np.concatenate([layer.total for layer in layers]) / seen).astype(np.float32)),
            "histogram": pa.ListArray.from_arrays(pa.array(offsets), pa.array(histogram.reshape(-1))),
        }
    )


def _sorted(placed: Path, features: Path, out: Path) -> None:
    """Join contexts and features and write them in order; DuckDB sorts on disk where memory is short."""
    columns = ", ".join(f'"{name}"' for name in SCHEMAS["contexts"].names)
    with in_memory(temp_directory=str(out.parent)) as con:
        left, right = (con.read_parquet(glob.escape(str(path))) for path in (placed, features))
        rows = left.join(right, "layer, feature")
        rows.order("layer, feature, rank").project(columns).write_parquet(str(out), compression="zstd")
