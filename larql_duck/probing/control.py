"""What random features do: the effect of a fact's listed features beside as many equally active ones, drawn at random."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from larql_duck.aliases import Slot
from larql_duck.inference.effects import effects_after
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import prefill
from larql_duck.probing.sources import of_source, probed_rows
from larql_duck.probing.words import normal
from larql_duck.progress import report

# Features whose absolute activation is nearest to the listed one's: one of these is drawn in its place.
_NEAREST = 16
_BATCH = 16


@dataclass(frozen=True)
class Control:
    """A fact's drop of log p (nats) without its listed features, and without as many random ones of the same layers."""

    subject: str
    relation: str
    object: str
    p: float
    listed: float
    random: float


def controls(
    engine: Engine,
    facts: pa.Table,
    edges: pa.Table,
    *,
    sample: int = 200,
    least_p: float = 0.3,
    seed: int = 0,
) -> list[Control]:
    """Controls of at most `sample` probed facts of rank 1 with p >= least_p, drawn by a hash: the same every time.

    A random feature has an absolute activation near the listed one's and lies in the same layer. Facts at whose prompt
    the model's next token does not begin the object (they were found under another reading) are left out.
    """
    listed: dict[tuple[str, ...], list[Slot]] = defaultdict(list)
    for *fact, layer, feature in probed_rows(edges, "subject", "relation", "object", "layer", "feature"):
        listed[tuple(fact)].append((layer, feature))
    rows = [
        row
        for row in of_source(facts, "probe").to_pylist()
        if row["rank"] == 1 and row["p"] >= least_p and _fact(row) in listed
    ]
    rows.sort(key=lambda r: hashlib.sha256(f"{seed}\0{r['relation']}\0{r['subject']}".encode()).digest())
    rows = sorted(rows[:sample], key=lambda r: len(r["prompt"]))
    random = np.random.default_rng(seed)
    out: list[Control] = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        out += _measured(engine, part, [listed[_fact(r)] for r in part], random)
        report("effects", start + len(part), len(rows))
    return out


def _fact(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["subject"], row["relation"], row["object"]


def _measured(
    engine: Engine, rows: Sequence[dict[str, Any]], slots: Sequence[list[Slot]], random: np.random.Generator
) -> list[Control]:
    prefix = prefill(engine, [r["prompt"] for r in rows])
    with engine.recording({"residual", "activation"}) as capture:
        logits = prefix.step()
    tokens = [int(t) for t in logits.argmax(dim=1)]
    activation = capture.need("activation").float().abs()
    drawn = [_drawn(activation[:, i], listed, random) for i, listed in enumerate(slots)]
    drops = [
        effects_after(prefix, capture, logits, tokens, ablated, single=0).together.tolist()
        for ablated in (slots, drawn)
    ]
    return [
        Control(*_fact(r), r["p"], listed, other)
        for r, token, listed, other in zip(rows, tokens, *drops, strict=True)
        if _begins(r["object"], engine.tokenizer.token(token))
    ]


def _drawn(activation: torch.Tensor, slots: Sequence[Slot], random: np.random.Generator) -> list[Slot]:
    """For each slot another of its layer, with an absolute activation like its own; none twice, none listed."""
    taken = set(slots)
    out: list[Slot] = []
    for layer, feature in slots:
        near = (activation[layer] - activation[layer, feature]).abs().argsort().tolist()
        free = [f for f in near[: len(taken) + _NEAREST] if (layer, f) not in taken][:_NEAREST]
        if free:
            chosen = (layer, int(random.choice(free)))
            taken.add(chosen)
            out.append(chosen)
    return out


def _begins(answer: str, token: str) -> bool:
    head = normal(token)
    return bool(head) and normal(answer).startswith(head)
