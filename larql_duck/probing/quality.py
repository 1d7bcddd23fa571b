"""How good a vindex's facts are: the figures of the report, from its tables and the view accuracy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.probing.metrics import bins, figures
from larql_duck.probing.sources import of_source, probed_rows
from larql_duck.vindex.store import Vindex

if TYPE_CHECKING:
    from larql_duck.probing.control import Control

HALVED = math.log(2)
# Facts whose effects are counted: those that the model states with at least this p.
_STATED_P = 0.3


def quality(vindex: Vindex, accuracy: pa.Table, controls: Sequence[Control] = ()) -> dict[str, Any]:
    """The report as JSON values: model, pooled, calibration, relations, effects, layers.

    accuracy are the rows of the view of that name: relations has them, in their order, with more figures. pooled and
    calibration are judged on the subjects that are held out, which decided nothing: accuracy on best answers with a
    reference, the other figures on those that have a confidence too. effects speaks of facts with p >= 0.3: halved = the
    share whose probability falls by half or more without the listed features, stays_specific = the share where other
    facts fall by less than half as much (None where that was not measured); random is None without `controls`.
    """
    facts = [row for row in of_source(vindex.table("facts"), "probe").to_pylist() if row["rank"] == 1]
    judged = [row for row in facts if row["held_out"] and row["correct"] is not None]
    pooled = [(r["confidence"], r["p"], r["correct"]) for r in judged if r["confidence"] is not None]
    manifest = vindex.manifest
    return {
        "model": manifest.model,
        "layers": manifest.num_layers,
        "features": sum(vindex.n_features),
        "facts": len(facts),
        "pooled": {"accuracy": _mean(r["correct"] for r in judged), "judged": len(judged), **figures(pooled)},
        "calibration": bins([(confidence, right) for confidence, _, right in pooled]),
        "calibration_p": bins([(p, right) for _, p, right in pooled]),
        "relations": _relations(vindex, facts, accuracy),
        "effects": _effects(facts, controls),
    }


def _relations(vindex: Vindex, facts: Sequence[dict[str, Any]], accuracy: pa.Table) -> list[dict[str, Any]]:
    by_relation: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in facts:
        by_relation[row["relation"]].append(row)
    layers = _by_layer(vindex.table("edges"), vindex.n_layers)
    return [
        {
            **counted,
            "p": _mean(r["p"] for r in rows),
            "calibrated": rows[0]["calibrated"] if rows else "none",
            "effect": _mean(r["effect"] for r in rows),
            "attention_share": _mean(r["attention_share"] for r in rows),
            "layers": layers.get(counted["relation"], [0.0] * vindex.n_layers),
            "examples": [f"{r['subject']} → {r['object']}" for r in sorted(rows, key=_surest)[:3]],
        }
        for counted in accuracy.to_pylist()
        for rows in [by_relation[counted["relation"]]]
    ]


def _surest(fact: Mapping[str, Any]) -> tuple[float, float]:
    """What sorts the most confident facts first, and those without a confidence behind them, by p."""
    return 1.0 if fact["confidence"] is None else -fact["confidence"], -fact["p"]


def _by_layer(edges: pa.Table, n_layers: int) -> dict[str, list[float]]:
    """Per relation the share of its facts' positive contributions that each layer holds."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * n_layers)
    for relation, layer, score in probed_rows(edges, "relation", "layer", "score"):
        if score > 0:
            sums[relation][layer] += score
    return {name: [v / (sum(values) or 1.0) for v in values] for name, values in sums.items()}


def _effects(facts: Sequence[dict[str, Any]], controls: Sequence[Control]) -> dict[str, Any]:
    stated = [r for r in facts if r["p"] >= _STATED_P and r["effect"] is not None]
    random = {
        "facts": len(controls),
        "listed_halved": _mean(c.listed >= HALVED for c in controls),
        "random_halved": _mean(c.random >= HALVED for c in controls),
        "drops": [c.random for c in controls],
    }
    return {
        "facts": len(stated),
        "halved": _mean(r["effect"] >= HALVED for r in stated),
        "drops": [r["effect"] for r in stated],
        "stays_specific": _mean(r["specific"] > r["effect"] / 2 for r in stated if r["specific"] is not None),
        "random": random if controls else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is not None; None without any."""
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None
