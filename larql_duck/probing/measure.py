"""Which features carry a fact, and whether they do: direct contributions, then effects of taking them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.combine import Answer, prompt_ids
from larql_duck.probing.replies import BATCH_CACHE, chunks

if TYPE_CHECKING:
    import torch

    from larql_duck.inference.engine import Engine

# A fact lists its strongest positive features until they sum to this share of all positive contributions.
SHARE = 0.5
MOST_FEATURES = 32
# Features whose effect is measured alone.
SINGLE = 8
# Facts of one batch, and the contributions computed for them.
BATCH_FACTS, BATCH_CONTRIBUTIONS = 128, 1 << 23

_EDGE = pa.struct(
    [("layer", pa.int32()), ("feature", pa.int32()), ("score", pa.float64()), ("effect", pa.float64())]
)
_SCHEMA = pa.schema([("edges", pa.list_(_EDGE)), ("effect", pa.float64()), ("attention_share", pa.float64())])


@dataclass(frozen=True)
class FeatureEffect:
    """A feature's part in a fact: its contribution in logits, and the drop of log p without it (None: unmeasured)."""

    layer: int
    feature: int
    score: float
    effect: float | None


@dataclass(frozen=True)
class FactFeatures:
    """A fact's features, strongest contribution first; effect is the drop of log p (nats) without all of them.

    attention_share is the part of the centred logit that attention wrote directly.
    """

    edges: tuple[FeatureEffect, ...]
    effect: float
    attention_share: float


def measure(
    engine: Engine,
    facts: Sequence[Answer],
    *,
    checkpoint: Checkpoint,
    replacement: torch.Tensor | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> list[FactFeatures]:
    """Every fact's FactFeatures, in the facts' order; `done` is called with the number of facts after each batch.

    replacement [layers, features] is what a feature's activation becomes when it is taken away (None: zero). It has
    to be part of the checkpoint's context.
    """
    encoded = engine.tokenizer.encode_batch([f.prompt for f in facts])
    ids = [prompt_ids(row, fact) for row, fact in zip(encoded, facts, strict=True)]
    found: dict[int, FactFeatures] = {}
    most = max(8, min(BATCH_FACTS, BATCH_CONTRIBUTIONS // sum(engine.n_features)))
    # Facts of one variant share their prompts' beginning.
    for variant in sorted({f.variant for f in facts}):
        own = [i for i, f in enumerate(facts) if f.variant == variant]
        for chunk in chunks(own, [len(row) for row in ids], most, BATCH_CACHE // engine.cache_bytes):
            tokens = [facts[i].first for i in chunk]
            key = checkpoint.key("edges", [ids[i] for i in chunk], tokens)
            table = checkpoint.load(key, _SCHEMA)
            if table is None or table.num_rows != len(chunk):
                table = _batch(engine, [ids[i] for i in chunk], tokens, replacement)
                checkpoint.save(key, table)
            found.update(zip(chunk, _from_table(table), strict=True))
            done(len(chunk))
    return [found[i] for i in range(len(facts))]


def _batch(
    engine: Engine, ids: Sequence[Sequence[int]], tokens: Sequence[int], replacement: torch.Tensor | None
) -> pa.Table:
    from larql_duck.inference.attribution import attribute
    from larql_duck.inference.batch import pad
    from larql_duck.inference.effects import effects_after
    from larql_duck.inference.prefix import prefill

    prefix = prefill(engine, pad(ids, device=engine.device))
    with engine.recording() as capture:
        logits = prefix.step()
    parts = attribute(engine, capture, tokens)
    listed = [strongest(row) for row in parts.features]
    slots = [[(layer, feature) for layer, feature, _ in row] for row in listed]
    effects = effects_after(prefix, capture, logits, tokens, slots, single=SINGLE, replacement=replacement)
    rows = []
    for i, features in enumerate(listed):
        single = effects.single[i].tolist()
        edges = [
            {"layer": layer, "feature": feature, "score": score, "effect": effect}
            for (layer, feature, score), effect in zip(
                features, single + [None] * (len(features) - len(single)), strict=True
            )
        ]
        rows.append(
            {
                "edges": edges,
                "effect": float(effects.together[i]),
                "attention_share": float(parts.attention_share()[i]),
            }
        )
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def strongest(contributions: torch.Tensor) -> list[tuple[int, int, float]]:
    """(layer, feature, contribution) of a prompt's strongest positive features, from [layers, features].

    As many as sum to SHARE of all positive contributions, at most MOST_FEATURES; ties go to the lower slot.
    """
    width = contributions.shape[1]
    flat = contributions.flatten()
    total = float(flat.clamp(min=0).double().sum())
    values, index = flat.topk(min(MOST_FEATURES, flat.numel()))
    pairs = sorted(zip(values.tolist(), index.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
    out: list[tuple[int, int, float]] = []
    reached = 0.0
    for value, i in pairs:
        if value <= 0 or reached >= SHARE * total:
            break
        out.append((i // width, i % width, value))
        reached += value
    return out


def _from_table(table: pa.Table) -> list[FactFeatures]:
    return [
        FactFeatures(
            tuple(FeatureEffect(**edge) for edge in row["edges"]), row["effect"], row["attention_share"]
        )
        for row in table.to_pylist()
    ]
