"""What facts and edges say about features and relations: tables derived from tables, no model needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import rows_as_table
from larql_duck.probing.sources import probed_rows


def relations_table(
    facts: pa.Table,
    edges: pa.Table,
    described: Sequence[str],
    descriptions: Mapping[str, str],
    templates: Mapping[str, Sequence[str]],
) -> pa.Table:
    """The table relations for the probed relations `described`, in that order, from the probe rows of facts and edges."""
    examples: dict[str, list[tuple[float, str]]] = defaultdict(list)
    columns = ("relation", "subject", "object", "rank", "confidence")
    for relation, subject, answer, rank, confidence in probed_rows(facts, *columns):
        if rank == 1:
            examples[relation].append((confidence, f"{subject} -> {answer}"))
    slots: dict[str, set[Slot]] = defaultdict(set)
    for relation, layer, feature in probed_rows(edges, "relation", "layer", "feature"):
        slots[relation].add((layer, feature))
    return rows_as_table(
        "relations",
        [
            {
                "relation": name,
                "source": "probe",
                "description": descriptions.get(name),
                "templates": list(templates.get(name, ())),
                "n_facts": len(examples[name]),
                "n_features": len(slots[name]),
                "layers": sorted({layer for layer, _ in slots[name]}),
                "examples": [text for _, text in sorted(examples[name], key=lambda e: -e[0])[:3]],
            }
            for name in described
        ],
    )
