"""Tables for a directory that LARQL wrote: what its files say about layers, tokens and features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from larql_duck.catalog import as_table
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import read_down_meta
from larql_duck.vindex.bands import band_of

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.vindex.store import Vindex


def tables_of_larql(vindex: Vindex) -> dict[str, pa.Table]:
    """layers, tokens, features and meta of a LARQL directory; what LARQL does not keep is NULL."""
    from larql_duck.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(vindex.tokenizer_files(), vindex.vocab)
    vocabulary = tokenizer.vocabulary()
    entries = vindex.manifest.layers
    tables = {
        "layers": as_table(
            "layers",
            {
                "layer": [e.layer for e in entries],
                "n_features": [e.num_features for e in entries],
                "band": [band_of(e.layer, vindex.bands) for e in entries],
                "gate_offset": [e.offset for e in entries],
                "gate_bytes": [e.length for e in entries],
            },
        ),
        "tokens": as_table(
            "tokens",
            {name: [row[i] for row in vocabulary] for i, name in enumerate(("token_id", "token", "text", "is_word"))},
        ),
        "meta": as_table(
            "meta",
            {
                "key": ["model", "family", "level", "dtype", "hidden"],
                "value": [
                    vindex.manifest.model, vindex.manifest.family, vindex.level, vindex.dtype, str(vindex.hidden)
                ],
            },
        ),
    }  # fmt: skip
    path = vindex.path / layout.DOWN_META
    if path.is_file():
        tables["features"] = _features(vindex, [row[2] for row in vocabulary])
    return tables


def _features(vindex: Vindex, texts: list[str]) -> pa.Table:
    rows: dict[str, list[object]] = {
        name: [] for name in ("layer", "feature", "top_token", "top_token_id", "down_tokens", "c_score")
    }

    def text(token_id: int) -> str | None:
        return texts[token_id] if token_id < len(texts) else None

    for layer, records in enumerate(read_down_meta(vindex.path / layout.DOWN_META)):
        for feature, record in enumerate(records):
            down = [text(int(i)) for i, logit in record["top"] if logit != 0][:3]
            rows["layer"].append(layer)
            rows["feature"].append(feature)
            rows["top_token"].append(text(int(record["id"])))
            rows["top_token_id"].append(int(record["id"]))
            rows["down_tokens"].append([t for t in down if t is not None])
            rows["c_score"].append(float(record["score"]))
    return as_table("features", dict(rows))
