"""What a vindex holds of earlier runs: how its relations are asked and ranked, their priors, its calibration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.confidence import Calibration
from larql_duck.probing.entity_types import TypeProbe
from larql_duck.probing.priors import Prior
from larql_duck.vindex.store import Vindex


def knowledge_of(vindex: Vindex) -> Knowledge:
    """The Knowledge in the tables prompts, priors and probes and in our section of the manifest; empty where they are."""
    tables = {name: vindex.table(name) for name in ("prompts", "priors", "probes")}
    stated = vindex.manifest.section.get("probe", {}).get("calibration") or {}
    types = TypeProbe.of_rows(vindex.table("type_probe").to_pylist(), vindex.hidden)
    return knowledge_in(tables, Calibration.from_json(stated), types)


def knowledge_in(
    tables: Mapping[str, pa.Table], calibration: Calibration, types: TypeProbe | None = None
) -> Knowledge:
    """The Knowledge in the tables prompts, priors and probes, with this calibration and probe of types."""
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
    asked: dict[tuple[str, str], set[str]] = defaultdict(set)
    columns = tables["probes"].select(["relation", "template", "subject"]).to_pydict()
    for relation, template, subject in zip(*columns.values(), strict=True):
        if (relation, template) in counts:
            asked[relation, template].add(subject)
    return Knowledge(
        dict(weights),
        contrasts,
        {key: Prior.stored(counts[key], own) for key, own in means.items()},
        calibration,
        dict(asked),
        types,
    )
