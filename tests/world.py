"""A small hand-made vindex: 10 layers of 40 features, a few facts, random gates. Depends on no model code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.catalog import SCHEMAS
from larql_duck.catalog.ddl import model_sql
from larql_duck.knowledge.keys import name_key
from larql_duck.vindex.arrays import write_file
from larql_duck.vindex.database import build_database
from larql_duck.vindex.derive import UNLABELLED
from larql_duck.vindex.manifest import INDEX, SCHEMA_VERSION, manifest_hash
from larql_duck.vindex.publish import MODEL_SQL, seal_manifest, write_table

LAYERS, FEATURES, HIDDEN = 10, 40, 16
BANDS = {"syntax": (0, 3), "knowledge": (4, 7), "output": (8, 9)}
NASTY = [
    "O'Brien",
    'say "hi"',
    "x'; DROP TABLE lq.triples; --",
    "back\\slash",
    "🦆🇫🇷",
    "новый год",
    "a;b",
    "{}",
    "%",
    "long " * 2000 + "name",
    "tab\tnew\nline",
]
# (subject, relation, object, rank, p)
FACTS = [
    ("France", "capital", "Paris", 1, 0.77),
    ("France", "capital", "Lyon", 2, 0.02),
    ("France", "language", "French", 1, 0.66),
    ("France", "continent", "Europe", 1, 0.90),
    ("Germany", "capital", "Berlin", 1, 0.80),
    ("Germany", "language", "German", 1, 0.70),
    ("Germany", "continent", "Europe", 1, 0.88),
    ("Japan", "capital", "Tokyo", 1, 0.70),
    ("Japan", "continent", "Asia", 1, 0.91),
    ("Eiffel Tower", "city", "Paris", 1, 0.71),
    ("Turkey", "capital", "Ankara", 1, 0.55),
    *[(name, "capital", f"<{name}>", 1, 0.30) for name in NASTY],
]
# (subject, object, layer, feature, score)
WEIGHTS = [
    ("France", "French", 2, 7, 4.5),
    ("France", "Paris", 5, 9, 6.5),
    ("France", "Macron", 6, 3, 7.5),
    ("France", "wine", 9, 11, 3.5),
    ("turkey", "bird", 5, 1, 5.0),
    ("German", "Germany", 4, 2, 5.5),
    *[("Paris", f"word{i:02}", 5, i, 3.0 + i / 10) for i in range(20)],
]
WORDS = [
    "the",
    "France",
    "Germany",
    "Japan",
    "Paris",
    "Berlin",
    "Tokyo",
    "turkey",
    "capital",
    "of",
    "is",
    "🦆",
    "O'Brien",
]


def tokens() -> list[tuple[int, str, str, bool]]:
    """(token_id, token, text, is_word): a special token, every word with and without leading space."""
    rows: list[tuple[int, str, str, bool]] = [(0, "<s>", "<s>", False)]
    for word in WORDS:
        rows.append((len(rows), word, word, True))
        rows.append((len(rows), f" {word}", word, True))
    rows.append((len(rows), " ", "", False))
    return rows


def band(layer: int) -> str:
    return next(name for name, (low, high) in BANDS.items() if low <= layer <= high)


def _table(name: str, rows: Iterable[tuple[Any, ...]]) -> pa.Table:
    schema = SCHEMAS[name]
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def tables(seed: int = 0) -> dict[str, pa.Table]:
    """Every table of the schema, filled; the same for the same seed."""
    rng = np.random.default_rng(seed)
    vocabulary = tokens()
    slots = [(layer, feature) for layer in range(LAYERS) for feature in range(FEATURES)]
    word_ids = [t[0] for t in vocabulary if t[3]]
    out: dict[str, pa.Table] = {}
    out["layers"] = _table(
        "layers",
        [
            (i, FEATURES, "attention", band(i), i * FEATURES * HIDDEN * 4, FEATURES * HIDDEN * 4)
            for i in range(LAYERS)
        ],
    )
    out["tokens"] = _table("tokens", [(*t, 1.0 + t[0] / 10) for t in vocabulary])
    feature_tokens, feature_rows = [], []
    for layer, feature in slots:
        chosen = {side: rng.permutation(word_ids)[:10] for side in ("in", "out", "out_neg")}
        for side, ids in chosen.items():
            for rank, token_id in enumerate(ids, 1):
                feature_tokens.append(
                    (
                        layer,
                        feature,
                        side,
                        rank,
                        int(token_id),
                        vocabulary[token_id][1],
                        1.0 / rank,
                        8.0 / rank,
                        (-1) ** (rank + feature) * 0.5 / rank if side == "in" else None,
                        "context" if side == "in" else "output",
                    )
                )
        # Rank 1 decides.
        sign = 1 if feature % 2 else -1
        usual, opposite = (chosen["out"], chosen["out_neg"])[::sign]
        activating, down, other = (
            [vocabulary[t][2] for t in ids[:3]] for ids in (chosen["in"], usual, opposite)
        )
        label = ("capital", "probe") if (layer, feature) == (5, 9) else (None, None)
        if (layer, feature) in ((4, 2), (6, 3)):
            label = ("language", "cluster")
        feature_rows.append(
            (
                layer, feature, None, 1.0, 1.5, 2.0, 0.1, 0.9, "context", activating, sign, down[0], int(usual[0]), down,
                3.0 + feature / 100, other, *label, {(4, 2): 0, (6, 3): 1}.get((layer, feature)),
            )
        )  # fmt: skip
    out["features"] = _table("features", feature_rows)
    out["feature_tokens"] = _table("feature_tokens", feature_tokens)
    token_features = []
    for token_id in word_ids:
        picks = rng.choice(len(slots), 32, replace=False)
        for rank, slot in enumerate(picks, 1):
            gate = float(rng.normal())
            token_features.append(
                (
                    token_id,
                    vocabulary[token_id][1],
                    *slots[slot],
                    rank,
                    gate,
                    gate * 0.5,
                    9.0 - rank / 8,
                    "context",
                )
            )
    out["token_features"] = _table("token_features", token_features)
    relations = sorted({f[1] for f in FACTS})
    out["relations"] = _table(
        "relations",
        [
            (
                r, "probe", f"the {r} of", [f"The {r} of {{}} is"], sum(f[1] == r and f[3] == 1 for f in FACTS), 2,
                [5, 8], [f"{f[0]} -> {f[2]}" for f in FACTS if f[1] == r][:3],
            )
            for r in relations
        ],
    )  # fmt: skip
    out["facts"] = _table(
        "facts",
        [
            (
                s, r, o, rank, p, p * 0.9, p, "relation", [o] if rank == 1 else None, rank == 1 or None,
                len(s) % 2 == 0, 0.05, 1.5, 2, 1.5 if rank == 1 else None, None, 2 if rank == 1 else 0, 0.4,
                f"The {r} of {s} is", "probe", False, name_key(s), name_key(o),
            )
            for s, r, o, rank, p in FACTS
        ],
    )  # fmt: skip
    first = [f for f in FACTS if f[3] == 1]
    edges: list[tuple[Any, ...]] = []
    for s, r, o, _, p in first:
        edges.append((s, r, o, 8, len(s) % FEATURES, 5.0 * p, 0.5 * p, None, -1.5, "probe", False))
        edges.append((s, r, o, 5, 9, 3.0 * p, 0.9 * p, None, 2.5, "probe", False))
    edges += [
        (s, UNLABELLED, o, layer, f, score, None, None, None, "weights", False)
        for s, o, layer, f, score in WEIGHTS
    ]
    edges.sort(key=lambda e: e[0])
    out["edges"] = _table("edges", edges)
    triples: list[tuple[Any, ...]] = [
        (s, r, o, p, p, "probe", [5, 8], 2, False, name_key(s), name_key(o)) for s, r, o, _, p in first
    ]
    triples += [
        (s, UNLABELLED, o, None, None, "weights", [layer], 1, False, None, None)
        for s, o, layer, _, _ in WEIGHTS
    ]
    triples.sort(key=lambda t: (t[0], t[5] == "weights", -(t[3] or 0), t[1], t[2]))
    out["triples"] = _table("triples", triples)
    out["feature_relations"] = _table(
        "feature_relations", [(5, 9, "capital", 0.9, 0.8, 2.5), (5, 9, "city", 0.2, 0.3, 0.4)]
    )
    stated = [t for t in triples if t[5] != "weights"]
    names = sorted({t[0] for t in stated} | {t[2] for t in stated})
    out["entities"] = _table(
        "entities",
        [
            (
                n,
                sum(n in (t[0], t[2]) for t in stated),
                sum(t[0] == n for t in stated),
                sum(t[2] == n for t in stated),
                sorted({t[1] for t in stated if n in (t[0], t[2])}),
            )
            for n in names
        ],
    )
    out["clusters"] = _table(
        "clusters",
        [
            (0, "language", "pattern", 0.8, 1, ["French"], *[None] * 4),
            (1, None, "tokens", 0.2, 1, ["x"], *[None] * 4),
        ],
    )
    out["feature_clusters"] = _table("feature_clusters", [(4, 2, 0), (6, 3, 1)])
    out["probes"] = _table(
        "probes",
        [(f"The {r} of {s} is", s, r, f"The {r} of {{}} is", f" {o}", p, 1.2) for s, r, o, _, p in first],
    )
    templates = [(r, f"The {r} of {{}} is") for r in relations]
    out["prompts"] = _table("prompts", [(r, t, t, 0, 3, 0.5, 0.6, 1.0, 0.5) for r, t in templates])
    out["priors"] = _table("priors", [(r, t, 5, vocabulary[5][1], 0.25, 4) for r, t in templates])
    out["type_probe"] = _table(
        "type_probe",
        [
            (kind, ["I have read about {}"], [5], 40, 12, 9, 11, 0.7, -0.5, rng.normal(size=HIDDEN).tolist())
            for kind in ("city", "country")
        ],
    )
    out["entity_types"] = _table("entity_types", [("France", "country", 0.9), ("Paris", "city", 0.8)])
    out["feature_stats"] = _table(
        "feature_stats",
        [
            (5, 9, 100, 0.05, 0.5, 0.01, 2.5, 0.0, 0.2, 0.9, 2.0, -0.3, [0] * 31 + [30, 65, 5] + [0] * 30),
            (6, 3, 100, 0.0, 0.5, *[0.0] * 7, [0] * 32 + [100] + [0] * 31),
        ],
    )
    out["feature_firings"] = _table(
        "feature_firings",
        [(5, 9, 1, 1, "top", 2.5, " France", 0, 0, 3), (5, 9, -1, 1, "top", -0.3, " of", 0, 0, 2)],
    )
    out["feature_names"] = _table("feature_names", [(4, 2, 1, "countries", "contexts", 0.9, 12)])
    out["example_texts"] = _table(
        "example_texts", [(0, 0, "texts.txt", 0, "The capital of France is", [3, 11, 14, 21, 24])]
    )
    # A layer of two experts and shared ones.
    out["experts"] = _table(
        "experts",
        [
            (4, 0, 4, 0, False, 3, 0.6, ["France", "Paris"]),
            (4, 1, 4, 4, False, 1, 0.4, ["Rome"]),
            (4, 2, 4, 8, True, 4, 1.0, ["France"]),
        ],
    )
    out["routing"] = _table(
        "routing", [(4, 0, "probes", 20, 15, 0.75, 0.6), (4, 1, "texts", 10, 2, 0.2, None)]
    )
    out["dictionaries"] = _table(
        "dictionaries",
        [
            (
                "res",
                "standard",
                *["blocks.4.hook_resid_post"] * 2,
                4,
                2,
                HIDDEN,
                0.1,
                100,
                1.5,
                1,
                "res",
                "dictionary_res.safetensors",
            )
        ],
    )
    out["dictionary_features"] = _table(
        "dictionary_features",
        [("res", 0, 0.5, 2.5, 1.0, [" Paris"], [" of"]), ("res", 1, 0.0, 0.0, 1.0, [" of"], [" Paris"])],
    )
    out["dictionary_firings"] = _table(
        "dictionary_firings", [("res", 0, 1, 2.5, " France", "The capital of[ France] is", "texts.txt", 0, 3)]
    )
    out["entity_ranks"] = _table(
        "entity_ranks",
        [("Europe", 0.4, 1, 0), ("Paris", 0.3, 2, 0), ("France", 0.2, 3, 0), ("Tokyo", 0.1, 4, 1)],
    )
    hub = [("France", 1, "Europe"), ("Paris", 2, "France"), ("Germany", 1, "Europe"), ("Europe", 0, None)]
    out["hub_paths"] = _table("hub_paths", [("Europe", *row) for row in hub])
    out["meta"] = _table("meta", [("model", "synthetic"), ("family", "llama"), ("level", "browse")])
    return out


def write_tables(directory: Path, seed: int = 0) -> Path:
    """`directory`/tables with every table as Parquet."""
    target = directory / "tables"
    target.mkdir(parents=True, exist_ok=True)
    for name, table in tables(seed).items():
        pq.write_table(table, target / f"{name}.parquet", compression="zstd")
    return target


def write_database(directory: Path, seed: int = 0) -> Path:
    """`directory`/model.duckdb of the synthetic tables."""
    out = directory / "model.duckdb"
    build_database(write_tables(directory, seed), out, "synthetic")
    return out


# -- a whole vindex ------------------------------------------------------------------------------------------------

_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    "post_processor": None,
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
}  # fmt: skip


def gates(dtype: str = "f32", seed: int = 0) -> np.ndarray:
    """Gate rows [layers, features, hidden], float32 values that dtype can hold."""
    rows = np.random.default_rng(seed + 1).normal(size=(LAYERS, FEATURES, HIDDEN)).astype(np.float32)
    return _rounded(rows, dtype)


def embeddings(dtype: str = "f32", seed: int = 0) -> np.ndarray:
    """Embedding rows [tokens, hidden], float32 values that dtype can hold."""
    rows = np.random.default_rng(seed + 2).normal(size=(len(tokens()), HIDDEN)).astype(np.float32)
    return _rounded(rows, dtype)


def _rounded(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "f16":
        return rows.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        return (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return rows


def _bytes(rows: np.ndarray, dtype: str) -> bytes:
    if dtype == "f16":
        return rows.astype(np.float16).tobytes()
    if dtype == "bf16":
        return (rows.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return rows.tobytes()


def write_vindex(directory: Path, *, dtype: str = "f32", seed: int = 0) -> Path:
    """`directory` as a vindex of level browse: arrays, tokenizer, tables, model.duckdb."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tables").mkdir(exist_ok=True)
    entries = {
        name: write_table(directory / "tables" / f"{name}.parquet", name, t)
        for name, t in tables(seed).items()
    }
    size = {"f32": 4, "f16": 2, "bf16": 2}[dtype]
    config = {
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FEATURES, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokens()), "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    # A space of its own is the marker alone, and unknown text falls to it.
    pieces = {t[1].replace(" ", "▁"): t[0] for t in tokens()}
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None, "unk_token": "▁", "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": False, "ignore_merges": True, "vocab": pieces, "merges": [],
    }  # fmt: skip
    files = {
        "gate_vectors.bin": _bytes(gates(dtype, seed), dtype),
        "embeddings.bin": _bytes(embeddings(dtype, seed), dtype),
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": json.dumps(_TOKENIZER | {"model": model}).encode(),
        "tokenizer_config.json": b"{}",
        MODEL_SQL: model_sql().encode(),
    }
    listed = {name: write_file(directory / name, data) for name, data in files.items()}
    row = FEATURES * HIDDEN * size
    raw = {
        "version": 2, "model": "synthetic", "family": "llama", "num_layers": LAYERS, "hidden_size": HIDDEN,
        "intermediate_size": FEATURES, "vocab_size": len(tokens()), "embed_scale": 1.0, "extract_level": "browse",
        "dtype": dtype, "quant": "none", "layer_bands": {k: list(v) for k, v in BANDS.items()},
        "layers": [{"layer": i, "num_features": FEATURES, "offset": i * row, "length": row} for i in range(LAYERS)],
        "down_top_k": 10, "has_model_weights": False, "model_config": {"model_type": "llama"},
        "larql_duck": {
            "schema_version": SCHEMA_VERSION, "version": "0", "seal": "", "options": {}, "packs": [], "statistics": {},
            "files": listed, "tables": entries,
        },
    }  # fmt: skip
    write_file(directory / INDEX, seal_manifest(raw))
    build_database(directory / "tables", directory / "model.duckdb", manifest_hash(directory))
    return directory
