"""Measured arrays into the rows of the vindex's tables, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from larql_duck.catalog import as_table, empty_table, nullable
from larql_duck.extraction.collecting import TokenFeatures
from larql_duck.extraction.vocabulary import Vocabulary
from larql_duck.models.experts import Experts
from larql_duck.models.family import Family
from larql_duck.vindex.arrays import down_meta_header, down_meta_layer

SIDES = ("in", "out", "out_neg")
_MEASURES = ("score", "z", "activation")


def tokens_table(vocabulary: Vocabulary, norms: np.ndarray) -> pa.Table:
    """The table `tokens`; `norms` are the embedding rows' lengths [vocab]."""
    ids = np.arange(len(norms), dtype=np.int32)
    columns = {"token_id": ids, "token": vocabulary.tokens, "text": vocabulary.texts, "norm": norms}
    return as_table("tokens", columns | {"is_word": vocabulary.is_word})


def layers_table(
    entries: Sequence[Mapping[str, int]], bands: Sequence[str | None], family: Family
) -> pa.Table:
    """The table `layers` from index.json's rows of layers and the band of each."""
    names = {"layer": "layer", "n_features": "num_features", "gate_offset": "offset", "gate_bytes": "length"}
    columns = {column: [entry[key] for entry in entries] for column, key in names.items()}
    mixers = [family.at(i).mixer or None for i in range(len(bands))]
    return as_table("layers", columns | {"mixer": mixers, "band": list(bands)})


def experts_layer(
    layer: int, arrays: Mapping[str, np.ndarray], vocabulary: Vocabulary, experts: Experts | None
) -> pa.Table:
    """One layer's rows of `experts`, none of a layer without; `arrays` as for `features_layer`."""
    if experts is None or layer not in experts.layers:
        return empty_table("experts")
    spans = list(experts.spans(len(arrays["gate_norm"])))
    known = "top_expert_count" in arrays
    columns: dict[str, Any] = {
        "layer": np.full(len(spans), layer, np.int32),
        "expert": [expert for expert, _, _ in spans],
        "n_features": [end - begin for _, begin, end in spans],
        "first_feature": [begin for _, begin, _ in spans],
        "shared": [expert == experts.count for expert, _, _ in spans],
    }
    if known:
        columns |= {
            "n_tokens": arrays["top_expert_count"].astype(np.int32),
            "weight": arrays["top_expert_weight"],
            "tokens": _texts(vocabulary, arrays["top_expert_ids"]),
        }
    return as_table("experts", columns)


def _experts_of(layer: int, n: int, experts: Experts | None) -> pa.Array:
    """The expert of each of a layer's n features, NULL in a layer without."""
    if experts is None or layer not in experts.layers:
        return pa.nulls(n, pa.int32())
    return pa.array(np.minimum(np.arange(n) // experts.width, experts.count).astype(np.int32))


def features_layer(
    layer: int,
    arrays: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    basis: str,
    experts: Experts | None = None,
) -> pa.Table:
    """One layer's rows of `features`; `arrays` are PromotedTokens (promoted_...), TopActivating (top_...) and norms."""
    sign = usual_sign(arrays["top_activations"], arrays["top_ids"])
    n = len(sign)
    usual, opposite = (
        arrays["promoted_ids"][np.arange(n), side] for side in (sides_of(sign), sides_of(-sign))
    )
    return as_table(
        "features",
        {
            "layer": np.full(n, layer, np.int32),
            "feature": np.arange(n, dtype=np.int32),
            "expert": _experts_of(layer, n, experts),
            "gate_norm": arrays["gate_norm"],
            "up_norm": nullable(arrays["up_norm"]),
            "down_norm": arrays["promoted_norms"],
            "gate_mean": nullable(arrays["top_mean"]),
            "gate_std": nullable(arrays["top_std"]),
            "basis": [basis] * n,
            "activates_on": _first_texts(vocabulary, arrays["top_ids"]),
            "sign": sign,
            "top_token": vocabulary.texts.take(pa.array(usual[:, 0])),
            "top_token_id": usual[:, 0].astype(np.int32),
            "down_tokens": _first_texts(vocabulary, usual),
            "c_score": sign * arrays["promoted_logits"][np.arange(n), sides_of(sign), 0],
            "opposite_tokens": _first_texts(vocabulary, opposite),
        },
    )


def usual_sign(activations: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The sign of each feature's activations over its top activating tokens together, int32 [features]: 1 or -1.

    Both [features, k]; an id below 0 is no token, an activation of NaN was not measured.
    """
    known = (ids >= 0) & ~np.isnan(activations)
    total = np.where(known, activations, 0).sum(axis=1, dtype=np.float64)
    return np.where(total < 0, -1, 1).astype(np.int32)


def sides_of(sign: np.ndarray) -> np.ndarray:
    """Which of a feature's two sides of promoted and suppressed tokens it promotes with this sign: 0 or 1."""
    return (sign < 0).astype(np.intp)


def _first_texts(vocabulary: Vocabulary, ids: np.ndarray) -> pa.ListArray:
    """Per row of ids [n, k] the trimmed texts of the first three, as LARQL shows them; ids below 0 are no tokens."""
    return _texts(vocabulary, ids[:, :3])


def _texts(vocabulary: Vocabulary, ids: np.ndarray) -> pa.ListArray:
    """Per row of ids [n, k] the trimmed texts; ids below 0 are no tokens."""
    offsets = np.concatenate([[0], (ids >= 0).sum(1).cumsum()])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), vocabulary.texts.take(pa.array(ids[ids >= 0]))
    )


def feature_tokens_layer(
    layer: int, arrays: Mapping[str, np.ndarray], vocabulary: Vocabulary, basis: str
) -> pa.Table:
    """One layer's rows of `feature_tokens`, by feature, side and rank; `arrays` as for `features_layer`."""
    std = arrays["top_std"][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(std > 0, (arrays["top_scores"] - arrays["top_mean"][:, None]) / std, np.nan)
    promoted = [arrays[f"promoted_{name}"] for name in ("ids", "scores", "z")]
    nothing = np.full(promoted[1].shape[::2], np.nan, np.float32)
    per_side = [
        (arrays["top_ids"], arrays["top_scores"], z.astype(np.float32), arrays["top_activations"]),
        *((*(array[:, i] for array in promoted), nothing) for i in (0, 1)),
    ]
    n = len(nothing)
    parts: dict[str, list[np.ndarray]] = {}
    for side, (ids, *values) in enumerate(per_side):
        k = ids.shape[1]
        columns = {
            "feature": np.repeat(np.arange(n, dtype=np.int32), k),
            "side": np.full(n * k, side, np.int8),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n),
            "token_id": ids.ravel().astype(np.int32),
        }
        columns |= {name: array.ravel() for name, array in zip(_MEASURES, values, strict=True)}
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    joined = {name: np.concatenate(columns) for name, columns in parts.items()}
    order = np.lexsort((joined["rank"], joined["side"], joined["feature"]))
    order = order[joined["token_id"][order] >= 0]
    rows = {name: column[order] for name, column in joined.items()}
    side_index = pa.array(rows.pop("side"))
    return as_table(
        "feature_tokens",
        rows
        | {
            "layer": np.full(len(order), layer, np.int32),
            "side": pa.array(SIDES).take(side_index),
            "token": vocabulary.tokens.take(pa.array(rows["token_id"])),
            "z": nullable(rows["z"]),
            "activation": nullable(rows["activation"]),
            "basis": pa.array([basis, "output", "output"]).take(side_index),
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
        filled = (columns >= 0) & np.isfinite(top.values[start:stop])
        row, rank = np.nonzero(filled)
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


def down_meta_bytes(
    layers: Iterable[Mapping[str, np.ndarray] | np.ndarray | int], n_layers: int, top_k: int
) -> Iterator[bytes]:
    """down_meta.bin in pieces; a layer that was not measured is given as its number of features and stays zero, or as the
    records that `read_down_meta` gave of it.

    It holds the tokens of positive activations, whatever a feature's usual sign: that is how LARQL reads it.
    """
    yield down_meta_header(n_layers, top_k)
    for layer in layers:
        if isinstance(layer, np.ndarray):
            yield down_meta_layer(layer["top"]["id"], layer["top"]["logit"])
            continue
        n = layer if isinstance(layer, int) else len(layer["promoted_logits"])
        ids, logits = np.zeros((n, top_k), np.uint32), np.zeros((n, top_k), np.float32)
        if not isinstance(layer, int):
            k = min(top_k, layer["promoted_logits"].shape[2])
            ids[:, :k] = layer["promoted_ids"][:, 0, :k]
            logits[:, :k] = layer["promoted_logits"][:, 0, :k]
        yield down_meta_layer(ids, logits)


def meta_table(values: Mapping[str, object]) -> pa.Table:
    """The table `meta` from names and values."""
    return as_table(
        "meta", {"key": list(values), "value": [None if v is None else str(v) for v in values.values()]}
    )
