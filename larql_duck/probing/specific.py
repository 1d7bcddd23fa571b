"""How specific an effect is: what taking the same features away does to other facts of the relation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median

import torch

from larql_duck.aliases import Slot
from larql_duck.inference.batch import pad
from larql_duck.inference.capture import Capture
from larql_duck.inference.effects import Ablation, ablated_log_probability, log_probability
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Prefix, prefill
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.combine import Answer, prompt_ids
from larql_duck.probing.measure import SINGLE, FactFeatures

# Facts of a relation on which every set and feature is tried; one more is drawn, as a fact is no other to itself.
SAMPLE = 16
# Sets of features of one batch.
_BATCH = 64


@dataclass(frozen=True)
class SpecificEffects:
    """A fact's specific effect and those of its measured features, in order; None without other facts."""

    fact: float | None
    edges: tuple[float | None, ...]


def specifics(
    engine: Engine,
    answers: Sequence[Answer],
    features: Sequence[FactFeatures],
    *,
    checkpoint: Checkpoint,
    replacement: torch.Tensor | None = None,
) -> list[SpecificEffects]:
    """Every answer's SpecificEffects, for the answers of one relation: its effect minus the median on other facts.

    The others are a fixed sample of SAMPLE facts, the same for a set and for single features.
    """
    sample = _sample(answers)
    sets = [tuple((e.layer, e.feature) for e in f.edges) for f in features]
    alone = sorted({slot for slots in sets for slot in slots[:SINGLE]})
    tried = list(dict.fromkeys([*sets, *((slot,) for slot in alone)]))
    drops = _drops(engine, [answers[i] for i in sample], tried, checkpoint, replacement)
    out = []
    for i, (f, slots) in enumerate(zip(features, sets, strict=True)):
        others = [k for k, s in enumerate(sample) if s != i][:SAMPLE]

        def beyond(effect: float | None, slots: tuple[Slot, ...], others: list[int] = others) -> float | None:
            return effect - median(drops[slots][k] for k in others) if others and effect is not None else None

        edges = tuple(beyond(e.effect, ((e.layer, e.feature),)) for e in f.edges)
        out.append(SpecificEffects(beyond(f.effect, slots), edges))
    return out


def _sample(answers: Sequence[Answer]) -> list[int]:
    """Indices of SAMPLE + 1 answers of rank 1, drawn by a hash of the subject: the same in every run."""
    best = [i for i, a in enumerate(answers) if a.rank == 1]
    drawn = sorted(best, key=lambda i: hashlib.sha256(answers[i].subject.encode()).digest())
    return sorted(drawn[: SAMPLE + 1])


def _drops(
    engine: Engine,
    sample: Sequence[Answer],
    tried: Sequence[tuple[Slot, ...]],
    checkpoint: Checkpoint,
    replacement: torch.Tensor | None,
) -> dict[tuple[Slot, ...], list[float]]:
    """For each set of features, the drop of log p of every sampled fact without it."""
    if not sample:
        return {}
    ids = prompt_ids(engine.tokenizer, sample)
    tokens = [a.first for a in sample]

    @cache
    def with_all_features() -> tuple[Prefix, Capture, torch.Tensor]:
        prefix = prefill(engine, pad(ids, device=engine.device))
        with engine.recording({"residual"}) as capture:
            logits = prefix.step()
        return prefix, capture, log_probability(logits, torch.tensor(tokens, device=engine.device))

    def batch(chunk: Sequence[tuple[Slot, ...]]) -> list[list[float]]:
        prefix, capture, base = with_all_features()
        ablations = [Ablation(row, slots, tokens[row]) for slots in chunk for row in range(len(sample))]
        after = ablated_log_probability(prefix, capture, ablations, replacement=replacement)
        return (base - after.view(len(chunk), len(sample))).double().tolist()

    out: dict[tuple[Slot, ...], list[float]] = {}
    # By first layer, so that the sets of one batch skip the same layers.
    order = sorted(tried, key=lambda s: (min((layer for layer, _ in s), default=0), s))
    for start in range(0, len(order), _BATCH):
        chunk = order[start : start + _BATCH]
        drops = checkpoint.batch(
            "specific", [ids, tokens, chunk], list[float], len(chunk), partial(batch, chunk)
        )
        out.update(zip(chunk, drops, strict=True))
    return out
