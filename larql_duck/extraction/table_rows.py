"""Measured arrays into the rows of the vindex's tables, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from larql_duck.catalog import as_table
from larql_duck.vindex.arrays import down_meta_header, down_meta_layer

if TYPE_CHECKING:
    from larql_duck.extraction.context import TokenFeatures

SIDES = ("in", "out", "out_neg")


@dataclass(frozen=True)
class Vocabulary:
    """Decoded tokens by id, as Arrow strings, with what the tables say of each."""

    tokens: pa.Array
    texts: pa.Array
    is_word: np.ndarray
    is_special: np.ndarray

    @property
    def word_ids(self) -> np.ndarray:
        """Ids of the word-like tokens, ascending, int32."""
        return np.flatnonzero(self.is_word).astype(np.int32)

    @property
    def candidate_ids(self) -> np.ndarray:
        """Ids of all tokens that may be an answer: everything that is not special, ascending."""
        return np.flatnonzero(~self.is_special).astype(np.int64)


def tokens_table(vocabulary: Vocabulary, norms: np.ndarray) -> pa.Table:
    """The table `tokens`; `norms` are the embedding rows' lengths [vocab]."""
    ids = np.arange(len(norms), dtype=np.int32)
    columns = {"token_id": ids, "token": vocabulary.tokens, "text": vocabulary.texts, "norm": norms}
    return as_table("tokens", columns | {"is_word": vocabulary.is_word})


def layers_table(entries: Sequence[tuple[int, int, int]], bands: Sequence[str | None]) -> pa.Table:
    """The table `layers` from (offset, bytes, features) and the band of each layer."""
    offsets, sizes, features = zip(*entries, strict=True)
    return as_table(
        "layers",
        {
            "layer": range(len(entries)),
            "n_features": features,
            "band": list(bands),
            "gate_offset": offsets,
            "gate_bytes": sizes,
        },
    )


def features_layer(
    layer: int, arrays: Mapping[str, np.ndarray], vocabulary: Vocabulary, basis: str
) -> pa.Table:
    """One layer's rows of `features`; `arrays` are what the out and in side measured, under the names used here."""
    out = arrays["out_ids"][:, 0]
    n = len(out)
    # Trimmed texts of the first three, as LARQL shows them.
    three = out[:, :3]
    flat = vocabulary.texts.take(pa.array(three.ravel()))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * three.shape[1]), flat)
    return as_table(
        "features",
        {
            "layer": np.full(n, layer, np.int32),
            "feature": np.arange(n, dtype=np.int32),
            "gate_norm": arrays["gate_norm"],
            "up_norm": nullable(arrays["up_norm"]),
            "down_norm": arrays["down_norm"],
            "gate_mean": nullable(arrays["in_mean"]),
            "gate_std": nullable(arrays["in_std"]),
            "basis": [basis] * n,
            "top_token": vocabulary.texts.take(pa.array(out[:, 0])),
            "top_token_id": out[:, 0].astype(np.int32),
            "down_tokens": lists,
            "c_score": arrays["logits"][:, 0],
        },
    )


def feature_tokens_layer(
    layer: int, arrays: Mapping[str, np.ndarray], vocabulary: Vocabulary, basis: str
) -> pa.Table:
    """One layer's rows of `feature_tokens`, by feature, side and rank."""
    parts = []
    n = len(arrays["out_ids"])
    in_ids, in_scores = arrays["in_ids"], arrays["in_scores"]
    std = arrays["in_std"][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        in_z = np.where(std > 0, (in_scores - arrays["in_mean"][:, None]) / std, np.nan)
    nothing = np.full(arrays["out_scores"].shape[::2], np.nan, np.float32)
    per_side = [
        (in_ids, in_scores, in_z.astype(np.float32), arrays["in_activations"]),
        *(
            (arrays["out_ids"][:, s], arrays["out_scores"][:, s], arrays["out_z"][:, s], nothing)
            for s in (0, 1)
        ),
    ]
    for side, (ids, scores, z, activation) in zip(SIDES, per_side, strict=True):
        k = ids.shape[1]
        parts.append(
            {
                "feature": np.repeat(np.arange(n, dtype=np.int32), k),
                "side": np.full(n * k, SIDES.index(side), np.int8),
                "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n),
                "token_id": ids.ravel().astype(np.int32),
                "score": scores.ravel(),
                "z": z.ravel(),
                "activation": activation.ravel(),
            }
        )
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.lexsort((joined["rank"], joined["side"], joined["feature"]))
    order = order[joined["token_id"][order] >= 0]
    rows = {key: value[order] for key, value in joined.items()}
    bases = pa.array([basis, "output", "output"])
    side_index = pa.array(rows["side"])
    return as_table(
        "feature_tokens",
        {
            "layer": np.full(len(order), layer, np.int32),
            "feature": rows["feature"],
            "side": pa.array(SIDES).take(side_index),
            "rank": rows["rank"],
            "token_id": rows["token_id"],
            "token": vocabulary.tokens.take(pa.array(rows["token_id"])),
            "score": rows["score"],
            "z": nullable(rows["z"]),
            "activation": nullable(rows["activation"]),
            "basis": bases.take(side_index),
        },
    )


def token_features_tables(
    features: TokenFeatures, ids: np.ndarray, vocabulary: Vocabulary, basis: str
) -> Iterator[pa.Table]:
    """The table `token_features` in pieces, by token id and rank; `ids` are the token ids of the rows of `features`."""
    top = features.top
    for start in range(0, len(ids), 1 << 14):
        stop = min(start + (1 << 14), len(ids))
        columns = top.columns[start:stop]
        kept = (columns >= 0) & np.isfinite(top.values[start:stop])
        row, rank = np.nonzero(kept)
        layer, feature = features.slots(columns[row, rank])
        token_ids = ids[start:stop][row]
        gate, activation = (c[start:stop][row, rank] for c in top.companions)
        yield as_table(
            "token_features",
            {
                "token_id": token_ids.astype(np.int32),
                "token": vocabulary.tokens.take(pa.array(token_ids)),
                "layer": layer.astype(np.int32),
                "feature": feature.astype(np.int32),
                "rank": (rank + 1).astype(np.int32),
                "gate": gate,
                "activation": nullable(activation),
                "z": top.values[start:stop][row, rank],
                "basis": [basis] * len(row),
            },
        )


def down_meta_bytes(layers: Sequence[Mapping[str, np.ndarray] | int], top_k: int) -> Iterator[bytes]:
    """down_meta.bin in pieces; a layer that was not measured is given as its number of features and stays zero."""
    yield down_meta_header(len(layers), top_k)
    for layer in layers:
        n = layer if isinstance(layer, int) else len(layer["logits"])
        ids, logits = np.zeros((n, top_k), np.uint32), np.zeros((n, top_k), np.float32)
        if not isinstance(layer, int):
            k = min(top_k, layer["logits"].shape[1])
            ids[:, :k], logits[:, :k] = layer["out_ids"][:, 0, :k], layer["logits"][:, :k]
        yield down_meta_layer(ids, logits)


def meta_table(values: Mapping[str, object]) -> pa.Table:
    """The table `meta` from names and values."""
    return as_table(
        "meta", {"key": list(values), "value": [None if v is None else str(v) for v in values.values()]}
    )


def nullable(values: np.ndarray) -> pa.Array:
    """An Arrow f32 array in which NaN became NULL."""
    return pa.array(values, pa.float32(), mask=np.isnan(values))
