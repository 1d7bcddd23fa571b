"""Ablation effects: how far a token's log-probability falls when features are ablated at the last position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from larql_duck.aliases import Slot
from larql_duck.inference.capture import Capture
from larql_duck.inference.interventions import row_edits
from larql_duck.inference.modules import starting_at
from larql_duck.inference.prefix import Prefix

# Logits of one pass stay below this many numbers, its copies of keys and values below this many bytes.
_LOGITS, _CACHE = 1 << 25, 1 << 26
# Rows from which on a pass is worth its start.
_WORTH = 24


@dataclass(frozen=True)
class Effects:
    """Drops of log p, in nats, f32: positive where ablating the features lowers the probability.

    log_p [n] is the undisturbed log-probability; single[i] holds the drop for each of prompt i's features that was
    ablated alone, in the given order; together [n] the drop when all of prompt i's features are.
    """

    log_p: torch.Tensor
    single: list[torch.Tensor]
    together: torch.Tensor


@dataclass(frozen=True)
class Ablation:
    """One row to compute: log p of `token` after prompt `row` (from 0) with `slots` ablated."""

    row: int
    slots: tuple[Slot, ...]
    token: int


def effects_after(
    prefix: Prefix,
    capture: Capture,
    logits: torch.Tensor,
    token_ids: Sequence[int],
    features: Sequence[Sequence[Slot]],
    *,
    single: int | None = None,
    replacement: torch.Tensor | None = None,
) -> Effects:
    """The Effects of each prompt's features on its token, from one cached pass: one position per ablation.

    The prompts are given as a prefix, its captured last step (residual) and that step's logits [n, vocab]. features[i]
    lists prompt i's (layer, feature) slots; the first `single` of them (None: all) are ablated one at a time, and all
    of them together, at the last position. An ablated activation is zero, or its value in replacement f32
    [layers, features].
    """
    tokens = torch.as_tensor(list(token_ids), dtype=torch.int64, device=logits.device)
    log_p = log_probability(logits, tokens)
    ablations: list[Ablation] = []
    counts = []
    for row, slots in enumerate(features):
        alone = list(slots)[: len(slots) if single is None else single]
        counts.append(len(alone))
        ablations += [Ablation(row, (slot,), int(token_ids[row])) for slot in alone]
        ablations.append(Ablation(row, tuple(slots), int(token_ids[row])))
    after = ablated_log_probability(prefix, capture, ablations, replacement=replacement)
    drops = [log_p[row] - part for row, part in enumerate(after.split([count + 1 for count in counts]))]
    return Effects(log_p, [d[:-1] for d in drops], torch.stack([d[-1] for d in drops]))


@torch.inference_mode()
def ablated_log_probability(
    prefix: Prefix,
    capture: Capture,
    ablations: Sequence[Ablation],
    *,
    replacement: torch.Tensor | None = None,
) -> torch.Tensor:
    """log p (nats) of each ablation's token with its features ablated at the last position, f32 [ablations].

    An ablation changes nothing below its first layer, so passes start there: rows are sorted by first layer and each
    chunk enters its lowest layer with the residuals of the undisturbed step.
    """
    engine = prefix.engine
    residual = capture.need("residual")
    first = [min((layer for layer, _ in r.slots), default=engine.n_layers - 1) for r in ablations]
    order = sorted(range(len(ablations)), key=lambda i: (first[i], i))
    out = torch.empty(len(ablations), device=residual.device)
    row_bytes = engine.cache_bytes * (int(prefix.positions.max()) + 1)
    most = max(8, min(256, engine.room(_LOGITS) // engine.vocab))
    for chunk in _chunks(order, first, engine.n_layers, most, engine.room(_CACHE) / row_bytes):
        layer = first[chunk[0]]
        picked = [ablations[i] for i in chunk]
        rows = torch.tensor([r.row for r in picked], device=residual.device)
        slots = ((row, slot) for row, ablation in enumerate(picked) for slot in ablation.slots)
        edits = row_edits(slots, replacement=replacement, position=-1)
        with starting_at(engine.modules, layer, residual[layer][rows][:, None, :]), engine.intervene(*edits):
            logits = prefix.step(rows, first_layer=layer)
        tokens = torch.tensor([r.token for r in picked], device=residual.device)
        out[torch.tensor(chunk, device=residual.device)] = log_probability(logits, tokens)
    return out


def _chunks(
    order: Sequence[int], first: Sequence[int], n_layers: int, most: int, caches: float
) -> Iterator[list[int]]:
    """Ablations, given by ascending first layer, in the chunks that run together: at most so many, and as many as have room
    for so many whole caches.

    A chunk of some size ends where the next ablation could skip many more layers than its first one.
    """
    chunk: list[int] = []
    size = most
    for i in order:
        if chunk and (
            len(chunk) >= size
            or (len(chunk) >= _WORTH and first[i] - first[chunk[0]] >= max(1, n_layers // 10))
        ):
            yield chunk
            chunk = []
        if not chunk:
            # Only the layers from the first one on are copied for every row.
            share = (n_layers - first[i]) / n_layers
            size = max(8, min(most, int(caches / share)))
        chunk.append(i)
    if chunk:
        yield chunk


def log_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p of one token a row, f32 [n], from logits [n, vocab]."""
    return logits.gather(1, tokens[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
