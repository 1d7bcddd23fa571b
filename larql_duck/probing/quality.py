"""How good a vindex's facts are: the figures of the report, from its tables and the packs' references."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.probing.calibrate import TEST, split_of
from larql_duck.probing.report import figures
from larql_duck.probing.words import matches

if TYPE_CHECKING:
    from larql_duck.probing.control import Control
    from larql_duck.vindex.store import Vindex

BINS = 10
HALVED = math.log(2)


def quality(
    vindex: Vindex,
    controls: Sequence[Control] = (),
    references: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The report as JSON values: model, pooled, calibration, relations, effects, layers.

    Accuracy and calibration are judged on the test split of the subjects, which decided nothing, for best answers whose
    subject has references (by relation, then subject; default: those of the shipped packs). relations are ordered by
    number of facts. effects speaks of facts with p >= 0.3: halved = the share whose probability falls by half or more
    without the listed features, stays_specific = the share where other facts fall by less than half as much (None
    where that was not measured); random is None without `controls`.
    """
    facts = [r for r in vindex.table("facts").to_pylist() if r["source"] == "probe" and r["rank"] == 1]
    known = _shipped() if references is None else references
    judged: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for row in facts:
        right = known.get(row["relation"], {}).get(row["subject"])
        if right and split_of(row["subject"]) == TEST:
            judged[row["relation"]].append(
                (row["confidence"], row["p"], matches(row["object"], tuple(right)))
            )
    everything = [item for own in judged.values() for item in own]
    manifest = vindex.manifest
    return {
        "model": manifest.model,
        "layers": manifest.num_layers,
        "features": sum(vindex.n_features),
        "facts": len(facts),
        "pooled": {"accuracy": _share(r for *_, r in everything), **figures(everything)},
        "calibration": _bins([(c, r) for c, _, r in everything]),
        "calibration_p": _bins([(p, r) for _, p, r in everything]),
        "relations": _relations(vindex, facts, judged),
        "effects": _effects(facts, controls),
    }


def _shipped() -> dict[str, Mapping[str, Any]]:
    from larql_duck.probing.packs import known_relations

    return {name: relation.references for name, relation in known_relations().items()}


def _bins(pairs: Sequence[tuple[float, bool]]) -> list[dict[str, float]]:
    """Bins of equal mass: mean probability, accuracy, and count n."""
    ordered = sorted(pairs)
    parts = [ordered[i * len(ordered) // BINS : (i + 1) * len(ordered) // BINS] for i in range(BINS)]
    return [
        {
            "probability": sum(p for p, _ in part) / len(part),
            "accuracy": sum(r for _, r in part) / len(part),
            "n": len(part),
        }
        for part in parts
        if part
    ]


def _relations(
    vindex: Vindex, facts: Sequence[dict[str, Any]], judged: Mapping[str, list[tuple[float, float, bool]]]
) -> list[dict[str, Any]]:
    by_relation: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in facts:
        by_relation[row["relation"]].append(row)
    layers = _by_layer(vindex.table("edges"), vindex.n_layers)
    out = []
    for name, rows in by_relation.items():
        own = judged.get(name, [])
        effects = [r["effect"] for r in rows if r["effect"] is not None]
        out.append(
            {
                "relation": name,
                "facts": len(rows),
                "test_facts": len(own),
                "accuracy": _share(r for *_, r in own),
                "confidence": _mean(r["confidence"] for r in rows),
                "p": _mean(r["p"] for r in rows),
                "calibrated": all(r["calibrated"] for r in rows),
                "effect": _mean(effects),
                "attention_share": _mean(
                    r["attention_share"] for r in rows if r["attention_share"] is not None
                ),
                "layers": layers.get(name, [0.0] * vindex.n_layers),
                "examples": [
                    f"{r['subject']} → {r['object']}"
                    for r in sorted(rows, key=lambda r: -r["confidence"])[:3]
                ],
            }
        )
    return sorted(out, key=lambda r: (-int(r["facts"]), str(r["relation"])))


def _by_layer(edges: pa.Table, n_layers: int) -> dict[str, list[float]]:
    """Per relation the share of its facts' positive contributions that each layer holds."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * n_layers)
    columns = edges.select(["relation", "layer", "score", "source"]).to_pydict()
    for relation, layer, score, source in zip(*columns.values(), strict=True):
        if source == "probe" and score > 0:
            sums[relation][layer] += score
    return {name: [v / (sum(values) or 1.0) for v in values] for name, values in sums.items()}


def _effects(facts: Sequence[dict[str, Any]], controls: Sequence[Control]) -> dict[str, Any]:
    stated = [r for r in facts if r["p"] >= 0.3 and r["effect"] is not None]
    specific = [r["specific"] > r["effect"] / 2 for r in stated if r["specific"] is not None]
    return {
        "facts": len(stated),
        "halved": _share(r["effect"] >= HALVED for r in stated),
        "drops": [r["effect"] for r in stated],
        "stays_specific": _share(specific),
        "random": {
            "facts": len(controls),
            "listed_halved": _share(c.listed >= HALVED for c in controls),
            "random_halved": _share(c.random >= HALVED for c in controls),
            "drops": [c.random for c in controls],
        }
        if controls
        else None,
    }


def _share(values: Any) -> float | None:
    return _mean(float(v) for v in values)


def _mean(values: Any) -> float | None:
    kept = list(values)
    return sum(kept) / len(kept) if kept else None
