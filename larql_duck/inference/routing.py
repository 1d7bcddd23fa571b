"""Which experts the routers of a mixture pick, counted over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch

from larql_duck.catalog import as_table
from larql_duck.inference.engine import Engine
from larql_duck.inference.predict import prompt_groups


def routing_of(engine: Engine, prompts: Sequence[str]) -> pa.Table:
    """The table `routing` of the last tokens of prompts: a row an expert; none of a model without experts."""
    experts = engine.family.experts
    if experts is None or not prompts:
        return as_table("routing", {})
    picked = torch.zeros(engine.n_layers, experts.count + 1, dtype=torch.int64)
    total = torch.zeros(picked.shape, dtype=torch.float64)
    for rows in prompt_groups(engine, prompts):
        weights = engine.capture([prompts[i] for i in rows], {"routing"}).need("routing").cpu()
        picked += (weights != 0).sum(1)
        total += weights.double().sum(1)
    return routing_rows(engine, "probes", len(prompts), picked, total / picked.clamp_min(1))


def routing_rows(
    engine: Engine, source: str, n: int, picked: torch.Tensor, weight: torch.Tensor | None
) -> pa.Table:
    """Rows of `routing` for n tokens, of counts and mean weights [layers, experts + 1]."""
    experts = engine.family.experts
    assert experts is not None
    places = [
        (layer, expert) for layer in experts.layers for expert, *_ in experts.spans(engine.n_features[layer])
    ]
    counts = [int(picked[place]) for place in places]
    columns = {
        "layer": [layer for layer, _ in places],
        "expert": [expert for _, expert in places],
        "source": [source] * len(places),
        "n": [n] * len(places),
        "picked": counts,
        "share": [count / max(n, 1) for count in counts],
    }
    if weight is not None:
        means = [float(weight[place]) if count else None for place, count in zip(places, counts, strict=True)]
        columns["weight"] = means
    return as_table("routing", columns)
