"""Clusters of features by what fires them, and the names that clusters and features earn, as tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.atlas.contexts import NEITHER, Contexts, Firings, read_contexts
from larql_duck.atlas.naming import Group, Name, Named, Namer
from larql_duck.atlas.scoring import MOST_WORDS, Scorer
from larql_duck.catalog import SCHEMAS, as_table
from larql_duck.catalog.sql_files import sql_query
from larql_duck.databases import in_memory
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.probing.clustering import Clusters, FeatureDirections, discover, feature_directions
from larql_duck.progress import doing
from larql_duck.vindex.store import Vindex

# Contexts of a cluster: those in which its features fire most.
CONTEXTS = 60
# Names of features are many and have few contexts each: those that are scored must do so well where they were chosen.
_PROMISE = 0.9


@dataclass(frozen=True)
class Atlas:
    """What the examples of a vindex say: contexts, firings, the scorer's vectors, and names that facts suggest by feature."""

    contexts: Contexts
    firings: Firings
    namer: Namer
    facts: Mapping[Slot, list[str]]


def read_atlas(vindex: Vindex) -> Atlas | None:
    """The Atlas of a vindex; None before `larql-duck activations` ran."""
    stored = vindex.manifest.tables.get("feature_firings")
    if stored is None or not stored["rows"]:
        return None
    contexts, firings = read_contexts(vindex)
    scorer = Scorer(vindex.embeddings().float().numpy(), load_tokenizer(vindex.tokenizer_files()))
    return Atlas(contexts, firings, Namer(contexts, scorer), _facts(vindex))


def discover_by_contexts(vindex: Vindex, atlas: Atlas, *, k: int | None = None, seed: int = 0) -> Clusters:
    """The Clusters of the features of all layers that fire, by the mean of the contexts that fire them (those that may name)."""
    with doing("directions"):
        directions = _directions(feature_directions(vindex, (0, vindex.n_layers - 1)), atlas)
    return discover(vindex, k=k, seed=seed, directions=directions)


def _directions(directions: FeatureDirections, atlas: Atlas) -> FeatureDirections:
    """Those of the features that fire in contexts which may name, with the mean of these contexts as their direction."""
    from scipy.sparse import csr_matrix

    firings = atlas.firings
    at = {slot: i for i, slot in enumerate(directions.slots())}
    rows = np.array([at.get(slot, -1) for slot in _slots(firings)], np.int64)
    use = (rows >= 0) & atlas.contexts.naming()[firings.context]
    weights = csr_matrix(
        (firings.strength[use] ** 2, (rows[use], firings.context[use])),
        shape=(len(at), len(atlas.contexts.texts)),
    )
    mean = np.asarray(weights @ atlas.namer.vectors, np.float32)
    length = np.linalg.norm(mean, axis=1)
    kept = np.flatnonzero(length > 1e-6)
    return replace(
        directions,
        layer=directions.layer[kept],
        feature=directions.feature[kept],
        activates_on=[directions.activates_on[i] for i in kept],
        promotes=[directions.promotes[i] for i in kept],
        unit=mean[kept] / length[kept, None],
        continues=[directions.continues[i] for i in kept.tolist()],
    )


# -- names ----------------------------------------------------------------------------------------------------


def name_clusters(clusters: Clusters, atlas: Atlas, seed: int = 0) -> Named:
    """The Named of the clusters, by the contexts in which their features fire together and those of other clusters do not."""
    from scipy.sparse import csr_matrix

    firings, k = atlas.firings, len(clusters.labels)
    slots = clusters.directions.slots()
    member = dict(zip(slots, clusters.member.tolist(), strict=True))
    own = np.array([member.get(slot, -1) for slot in _slots(firings)], np.int64)
    use = (own >= 0) & (atlas.contexts.side[firings.context] != NEITHER)
    strength = csr_matrix(
        (firings.strength[use] ** 2, (own[use], firings.context[use])),
        shape=(k, len(atlas.contexts.texts)),
    ).toarray()
    # What fires many clusters is typical of none.
    strength *= np.log(k / np.maximum((strength > 0).sum(0), 1)) if k > 1 else 1.0
    relations: dict[int, Counter[str]] = defaultdict(Counter)
    for slot, names in atlas.facts.items():
        if slot in member:
            relations[member[slot]].update(names)
    groups = []
    for number, row in enumerate(strength):
        contexts = np.argsort(-row, kind="stable")[:CONTEXTS]
        contexts = contexts[row[contexts] > 0]
        said = [text for text, n in relations[number].most_common(4) if n >= 2]
        tokens = clusters.top_tokens[number][:3]
        known = {"facts": said, "tokens": _fit([*tokens, " ".join(tokens)])}
        groups.append(Group(contexts, row[contexts], known))
    return atlas.namer.name(groups, seed)


def name_features(vindex: Vindex, atlas: Atlas, seed: int = 0) -> tuple[list[tuple[int, int, int]], Named]:
    """All features that fire, as (layer, feature, sign), and the Named of them."""
    firings = atlas.firings
    promoted = {
        (row["layer"], row["feature"]): row["down_tokens"] or []
        for row in vindex.table("features").select(["layer", "feature", "down_tokens"]).to_pylist()
    }
    keys = np.stack([firings.layer, firings.feature, firings.sign], axis=1)
    starts = np.flatnonzero((np.diff(keys, axis=0, prepend=-1) != 0).any(1))
    features: list[tuple[int, int, int]] = []
    groups: list[Group] = []
    usable = atlas.contexts.side != NEITHER
    for begin, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        layer, feature, sign = keys[begin].tolist()
        contexts, strength = firings.context[begin:end], firings.strength[begin:end]
        use = usable[contexts]
        known = {
            "facts": atlas.facts.get((layer, feature), []),
            "tokens": _fit(promoted.get((layer, feature), [])[:2]),
        }
        features.append((layer, feature, sign))
        groups.append(Group(contexts[use], strength[use], known))
    return features, atlas.namer.name(groups, seed, promise=_PROMISE)


def name_tables(
    clusters: pa.Table, named: Named, features: list[tuple[int, int, int]], features_named: Named
) -> dict[str, pa.Table]:
    """The tables clusters, with the names, and feature_names."""
    columns = {name: clusters[name] for name in clusters.column_names} | _columns(named.names)
    schema = SCHEMAS["clusters"]
    known = [(slot, name) for slot, name in zip(features, features_named.names, strict=True) if name]
    rows = {
        "layer": [slot[0] for slot, _ in known],
        "feature": [slot[1] for slot, _ in known],
        "sign": [slot[2] for slot, _ in known],
        "name": [name.text for _, name in known],
        "source": [name.source for _, name in known],
        "score": [name.score for _, name in known],
        "n_scored": [name.n_scored for _, name in known],
    }
    return {
        "clusters": pa.table({name: columns[name] for name in schema.names}).cast(schema),
        "feature_names": as_table("feature_names", rows),
    }


def _columns(names: Iterable[Name | None]) -> dict[str, pa.Array]:
    given = list(names)
    return {
        "name": pa.array([n.text if n else None for n in given], pa.string()),
        "name_source": pa.array([n.source if n else None for n in given], pa.string()),
        "score": pa.array([n.score if n else None for n in given], pa.float64()),
        "n_scored": pa.array([n.n_scored if n else None for n in given], pa.int32()),
    }


def _facts(vindex: Vindex) -> dict[Slot, list[str]]:
    """Names that facts suggest, by feature: the relation, of what type of subject, and the types."""
    with in_memory() as con:
        for name in ("feature_relations", "entity_types", "edges"):
            con.register(name, vindex.table(name))
        rows = con.sql(sql_query("fact_names")).to_arrow_table().to_pylist()
    found: dict[Slot, list[str]] = defaultdict(list)
    for row in rows:
        relation, subject, target = row["relation"], row["subject_type"], row["object_type"]
        texts = [f"{relation} of {subject}"] if subject else []
        texts += [text for text in (relation, subject, target) if text]
        found[row["layer"], row["feature"]] += _fit(texts)
    return found


def _fit(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if 0 < len(text.split()) <= MOST_WORDS]


def _slots(firings: Firings) -> Iterable[Slot]:
    return zip(firings.layer.tolist(), firings.feature.tolist(), strict=True)
