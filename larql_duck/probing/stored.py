"""What a vindex holds of earlier runs: how its relations are asked and ranked, their priors, its calibration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.confidence import Calibration
from larql_duck.probing.priors import Prior


def knowledge_of(tables: Mapping[str, pa.Table], section: Mapping[str, Any]) -> Knowledge:
    """The Knowledge in the tables prompts and priors and in our section of a manifest; empty where they are."""
    weights: dict[str, dict[str, float]] = defaultdict(dict)
    contrasts: dict[str, float] = {}
    prompts = tables["prompts"].filter(pc.is_valid(tables["prompts"]["weight"]))
    columns = prompts.select(["relation", "template", "weight", "contrast"]).to_pydict()
    for relation, template, weight, contrast in zip(*columns.values(), strict=True):
        weights[relation][template] = weight
        contrasts[relation] = contrast
    means: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    counts: dict[tuple[str, str], int] = {}
    columns = tables["priors"].select(["relation", "template", "token_id", "p", "n_subjects"]).to_pydict()
    for relation, template, token, p, n in zip(*columns.values(), strict=True):
        means[relation, template][token] = p
        counts[relation, template] = n
    return Knowledge(
        dict(weights),
        contrasts,
        {key: Prior.stored(counts[key], own) for key, own in means.items()},
        Calibration.from_json(section.get("probe", {}).get("calibration") or {}),
    )
