"""How specific an effect is: what taking the same features away does to other facts of the relation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.combine import Answer, prompt_ids
from larql_duck.probing.measure import SINGLE, FactFeatures

if TYPE_CHECKING:
    import torch

    from larql_duck.inference.engine import Engine

# Facts of a relation on which every set and feature is tried; one more is drawn, as a fact is no other to itself.
SAMPLE = 16
_SCHEMA = pa.schema([("drops", pa.list_(pa.float64()))])


@dataclass(frozen=True)
class SpecificEffects:
    """A fact's specific effect and those of its measured features, in order; None without other facts."""

    fact: float | None
    edges: tuple[float | None, ...]


def specifics(
    engine: Engine,
    facts: Sequence[Answer],
    measured: Sequence[FactFeatures],
    *,
    checkpoint: Checkpoint,
    replacement: torch.Tensor | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> list[SpecificEffects]:
    """Every fact's SpecificEffects, for the facts of one relation: its effect minus the median effect on other facts.

    The others are a fixed sample of SAMPLE facts, the same for a set and for single features.
    """
    sample = _sample(facts)
    sets = [tuple((e.layer, e.feature) for e in m.edges) for m in measured]
    alone = sorted({slot for slots in sets for slot in slots[:SINGLE]})
    wanted = list(dict.fromkeys([*sets, *((slot,) for slot in alone)]))
    drops = _drops(engine, [facts[i] for i in sample], wanted, checkpoint, replacement, done)
    out = []
    for i, (m, slots) in enumerate(zip(measured, sets, strict=True)):
        others = [k for k, s in enumerate(sample) if s != i][:SAMPLE]
        if not others:
            out.append(SpecificEffects(None, (None,) * len(m.edges)))
            continue

        def beyond(effect: float | None, key: tuple[Slot, ...], others: list[int] = others) -> float | None:
            return None if effect is None else effect - median(drops[key][k] for k in others)

        edges = tuple(
            beyond(e.effect, ((e.layer, e.feature),)) if e.effect is not None else None for e in m.edges
        )
        out.append(SpecificEffects(beyond(m.effect, slots), edges))
    return out


def _sample(facts: Sequence[Answer]) -> list[int]:
    """Indices of SAMPLE + 1 facts of rank 1, drawn by a hash of the subject: the same in every run."""
    first = [i for i, f in enumerate(facts) if f.rank == 1]
    drawn = sorted(first, key=lambda i: hashlib.sha256(facts[i].subject.encode()).digest())
    return sorted(drawn[: SAMPLE + 1])


def _drops(
    engine: Engine,
    sample: Sequence[Answer],
    wanted: Sequence[tuple[Slot, ...]],
    checkpoint: Checkpoint,
    replacement: torch.Tensor | None,
    done: Callable[[int], None],
) -> dict[tuple[Slot, ...], list[float]]:
    """For each wanted set of features, the drop of log p of every sampled fact without it."""
    from larql_duck.inference.batch import pad
    from larql_duck.inference.effects import Ablation, ablated_log_probability, log_probability
    from larql_duck.inference.prefix import prefill

    if not sample:
        return {}
    encoded = engine.tokenizer.encode_batch([f.prompt for f in sample])
    ids = [prompt_ids(row, fact) for row, fact in zip(encoded, sample, strict=True)]
    tokens = [f.first for f in sample]
    context = None
    out: dict[tuple[Slot, ...], list[float]] = {}
    # By first layer, so that the sets of one batch skip the same layers.
    order = sorted(wanted, key=lambda s: (min((layer for layer, _ in s), default=0), s))
    size = 64
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        key = checkpoint.key("specific", ids, tokens, chunk)
        table = checkpoint.load(key, _SCHEMA)
        if table is None or table.num_rows != len(chunk):
            if context is None:
                import torch

                prefix = prefill(engine, pad(ids, device=engine.device))
                with engine.recording({"residual"}) as capture:
                    logits = prefix.step()
                context = (
                    prefix,
                    capture,
                    log_probability(logits, torch.tensor(tokens, device=engine.device)),
                )
            prefix, capture, base = context
            removals = [Ablation(row, s, tokens[row]) for s in chunk for row in range(len(sample))]
            after = ablated_log_probability(prefix, capture, removals, replacement=replacement).view(
                len(chunk), len(sample)
            )
            table = pa.table({"drops": pa.array((base - after).double().tolist(), _SCHEMA.field(0).type)})
            checkpoint.save(key, table)
        out.update(zip(chunk, table.column("drops").to_pylist(), strict=True))
        done(len(chunk))
    return out
