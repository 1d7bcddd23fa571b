"""What facts and edges say about features and relations: tables derived from tables, no model needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import as_table, empty_table


def feature_relations(facts: pa.Table, edges: pa.Table) -> pa.Table:
    """The table feature_relations, from the probe rows of facts and edges: a row for each relation a feature is in.

    support is the share of the relation's facts (those with features) that list the feature; specificity is support
    divided by support plus the feature's rate over the other relations' facts; mean_contribution the mean score
    where it is listed. Ordered by relation, then support, then slot.
    """
    totals = _facts_with_features(facts)
    listed: dict[str, dict[Slot, list[float]]] = defaultdict(lambda: defaultdict(list))
    counted: dict[Slot, int] = defaultdict(int)
    columns = edges.select(["relation", "layer", "feature", "score", "source"]).to_pydict()
    for relation, layer, feature, score, source in zip(*columns.values(), strict=True):
        if source == "probe" and relation in totals:
            listed[relation][layer, feature].append(score)
            counted[layer, feature] += 1
    everything = sum(totals.values())
    rows: list[tuple[int, int, str, float, float, float]] = []
    for relation in sorted(listed):
        n, rest = totals[relation], everything - totals[relation]
        own = []
        for (layer, feature), scores in listed[relation].items():
            support = len(scores) / n
            elsewhere = (counted[layer, feature] - len(scores)) / rest if rest else 0.0
            specificity = support / (support + elsewhere)
            own.append((layer, feature, relation, support, specificity, sum(scores) / len(scores)))
        rows += sorted(own, key=lambda r: (-r[3], r[0], r[1]))
    names = ("layer", "feature", "relation", "support", "specificity", "mean_contribution")
    return (
        as_table("feature_relations", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
        if rows
        else empty_table("feature_relations")
    )


def _facts_with_features(facts: pa.Table) -> dict[str, int]:
    totals: dict[str, int] = defaultdict(int)
    columns = facts.select(["relation", "n_features", "source"]).to_pydict()
    for relation, n, source in zip(*columns.values(), strict=True):
        if source == "probe" and n:
            totals[relation] += 1
    return totals


def relations_table(
    facts: pa.Table,
    edges: pa.Table,
    described: Sequence[str],
    descriptions: Mapping[str, str],
    templates: Mapping[str, Sequence[str]],
) -> pa.Table:
    """The table relations for the probed relations `described`, in that order, from the probe rows of facts and edges."""
    examples: dict[str, list[tuple[float, str]]] = defaultdict(list)
    columns = facts.select(["relation", "subject", "object", "rank", "confidence", "source"]).to_pydict()
    for relation, subject, answer, rank, confidence, source in zip(*columns.values(), strict=True):
        if source == "probe" and rank == 1:
            examples[relation].append((-confidence, f"{subject} -> {answer}"))
    slots: dict[str, set[Slot]] = defaultdict(set)
    places = edges.select(["relation", "layer", "feature", "source"]).to_pydict()
    for relation, layer, feature, source in zip(*places.values(), strict=True):
        if source == "probe":
            slots[relation].add((layer, feature))
    return as_table(
        "relations",
        {
            "relation": list(described),
            "source": ["probe"] * len(described),
            "description": [descriptions.get(r) for r in described],
            "templates": [list(templates.get(r, ())) for r in described],
            "n_facts": [len(examples[r]) for r in described],
            "n_features": [len(slots[r]) for r in described],
            "layers": [sorted({layer for layer, _ in slots[r]}) for r in described],
            "examples": [
                [text for _, text in sorted(examples[r], key=lambda e: e[0])[:3]] for r in described
            ],
        },
    )
