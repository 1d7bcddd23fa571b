"""Relations without asking: features clustered by the direction from what they activate on to what they usually promote.

A feature that activates on " France" and promotes " Paris" has the direction embedding(Paris) - embedding(France), and so
have other features that turn a country into its capital. Every label says where it comes from and how sure it is.
"""

from __future__ import annotations

import glob
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import SCHEMAS, as_table
from larql_duck.catalog.sql_files import sql_query
from larql_duck.databases import in_memory
from larql_duck.errors import LarqlError
from larql_duck.probing.packs import known_relations
from larql_duck.probing.publish import probed_labels, require_tables
from larql_duck.probing.sources import drop_source
from larql_duck.progress import doing
from larql_duck.vindex.manifest import load_manifest
from larql_duck.vindex.publish import commit_tables
from larql_duck.vindex.store import Vindex

MOST_CLUSTERS = 512
# Features a cluster there are at least where nobody says how many clusters.
_FEATURES = 8
# A label of a cluster becomes its features' relation from this confidence on.
CONFIDENT = 0.5
# Columns of clusters that naming fills.
NAME_COLUMNS = ("name", "name_source", "score", "n_scored")
# A label must be rarer than this by chance, over all clusters together.
_CHANCE = 0.05
# Multiply-adds of one round of k-means above which it goes by random batches.
_LARGE = 1e10
_SHARE_OF_PATTERN = 0.5
_LEAST_LENGTH = 1e-8
_WORDS = {
    "month": "january february march april may june july august september october november december",
    "weekday": "monday tuesday wednesday thursday friday saturday sunday",
    "number": "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty "
    "seventy eighty ninety hundred thousand million billion",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}


@dataclass(frozen=True)
class FeatureDirections:
    """n features with a direction: layer, feature [n]; the top activating and top promoted token's text; unit vectors f32 [n, hidden].

    continues says whether the promoted token goes on within a word (no blank before it); empty where that is not known.
    """

    layer: np.ndarray
    feature: np.ndarray
    activates_on: list[str]
    promotes: list[str]
    unit: np.ndarray
    continues: Sequence[bool] = ()

    def slots(self) -> list[Slot]:
        """The features as (layer, feature)."""
        return list(zip(self.layer.tolist(), self.feature.tolist(), strict=True))


@dataclass(frozen=True)
class Label:
    """A cluster's label: what named it (probe, reference, pattern, tokens) and its confidence, 0 to 1."""

    text: str
    source: str
    confidence: float


@dataclass(frozen=True)
class Clusters:
    """Clusters of directions: member [n] is each direction's cluster, centres f32 [k, hidden] have unit length.

    labels[i] is None where no label is better than chance; top_tokens are the most frequent promoted texts.
    """

    directions: FeatureDirections
    member: np.ndarray
    centres: np.ndarray
    labels: list[Label | None]
    top_tokens: list[list[str]]

    def sizes(self) -> list[int]:
        """How many features each cluster has."""
        return np.bincount(self.member, minlength=len(self.labels)).tolist()


def discover(
    vindex: Vindex, *, k: int | None = None, seed: int = 0, directions: FeatureDirections | None = None
) -> Clusters:
    """The Clusters of `directions`, else of the knowledge band's features (all layers where there are no bands), by seed.

    At most k; None stands for 512, fewer where there are fewer than eight features a cluster.

    LarqlError where no feature has both a top activating and a promoted word.
    """
    if directions is None:
        with doing("directions"):
            directions = feature_directions(vindex)
    if not len(directions.layer):
        raise LarqlError(
            f"{vindex.path}: no feature has a word among its top activating and among its promoted tokens, so there is "
            "nothing to cluster"
        )
    n = len(directions.layer)
    most = min(MOST_CLUSTERS, max(1, n // _FEATURES)) if k is None else k
    with doing("clusters"):
        member, centres = _cluster(directions.unit, min(most, n), seed)
    with doing("labels"):
        namer = _Namer(vindex, directions, member, len(centres))
        return Clusters(directions, member, centres, namer.labels(), namer.top_tokens())


def feature_directions(vindex: Vindex, layers: tuple[int, int] | None = None) -> FeatureDirections:
    """The FeatureDirections of all features whose top activating and top promoted token are two different words.

    layers are the first and the last; None stands for the knowledge band.
    """
    import torch

    low, high = layers or (vindex.bands or {}).get("knowledge", (0, vindex.n_layers - 1))
    with in_memory() as con:
        for name in ("feature_tokens", "tokens"):
            # The path is one, whatever stands in it: a star would read another vindex's rows as well.
            path = glob.escape(str(vindex.path / vindex.manifest.tables[name]["file"]))
            con.from_parquet(path).create_view(name)
        rows = con.sql(sql_query("feature_directions"), params={"low": low, "high": high}).to_arrow_table()
    embeddings = vindex.embeddings()
    source, target = (
        embeddings[torch.from_numpy(rows[name].to_numpy().astype(np.int64))].float().numpy()
        for name in ("source", "target")
    )
    offset = target - source
    length = np.linalg.norm(offset, axis=1, keepdims=True)
    apart = length[:, 0] > _LEAST_LENGTH
    rows = rows.filter(pa.array(apart))
    return FeatureDirections(
        rows["layer"].to_numpy(),
        rows["feature"].to_numpy(),
        rows["activates_on"].to_pylist(),
        rows["promotes"].to_pylist(),
        offset[apart] / length[apart],
        rows["continues"].to_pylist(),
    )


def _cluster(unit: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    large = float(len(unit)) * unit.shape[1] * k > _LARGE
    options: dict[str, Any] = {"n_clusters": k, "random_state": seed, "n_init": 1, "max_iter": 50}
    model = (
        MiniBatchKMeans(batch_size=8192, init_size=max(4 * k, 2048), **options)
        if large
        else KMeans(**options)
    )
    # One thread: several add up in an order that differs from run to run.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Features may share a direction; a cluster then stays empty, which does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        member = model.fit_predict(unit)
    centres = model.cluster_centers_
    return member, centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)


# -- labels ---------------------------------------------------------------------------------------------------


class _Namer:
    """Labels by evidence: what a member is counted for, compared with how often all features are."""

    def __init__(self, vindex: Vindex, directions: FeatureDirections, member: np.ndarray, k: int) -> None:
        self._k = k
        self._members: list[list[int]] = [np.flatnonzero(member == c).tolist() for c in range(k)]
        self._promoted = [t.casefold() for t in directions.promotes]
        texts = [t.casefold() for t in directions.activates_on]
        continues = directions.continues or [False] * len(texts)
        patterns = map(_patterns, texts, self._promoted, continues)
        self._evidence: list[tuple[str, Sequence[tuple[str, ...]], float]] = [
            ("probe", _probed(vindex, directions), 0.0),
            ("reference", _referenced(texts, self._promoted), 0.0),
            ("pattern", list(patterns), _SHARE_OF_PATTERN),
            ("tokens", [(text,) for text in self._promoted], 0.0),
        ]
        self._rates = [
            {name: n / len(texts) for name, n in Counter(x for names in evidence for x in names).items()}
            for _, evidence, _ in self._evidence
        ]

    def labels(self) -> list[Label | None]:
        """Each cluster's label, by the first kind of evidence that is better than chance."""
        return list(map(self._label, self._members))

    def top_tokens(self) -> list[list[str]]:
        """Each cluster's ten most frequent promoted texts, ties by text."""
        return [_most(Counter(self._promoted[i] for i in members), 10) for members in self._members]

    def _label(self, members: list[int]) -> Label | None:
        from scipy.stats import binom

        for (source, evidence, share), rates in zip(self._evidence, self._rates, strict=True):
            counts = Counter(x for i in members for x in evidence[i])
            # Ties go to what comes first, in the pack or among the texts.
            names = _most(counts, 3) if source == "tokens" else [n for n, _ in counts.most_common(3)]
            if not names or counts[names[0]] < max(2, share * len(members)):
                continue
            best = counts[names[0]]
            # A rival that other members speak for: neither is what the cluster is about. One that the same members
            # speak for (largest city beside capital) is none.
            others = Counter(x for i in members if names[0] not in evidence[i] for x in evidence[i])
            if source != "tokens" and others and max(others.values()) * 2 > best:
                continue
            # The chance of at least so many at the rate of all features. Every name that could have come out on top
            # had its chance, in every cluster.
            tries = self._k * max(len(rates), 1)
            if binom.sf(best - 1, len(members), min(rates[names[0]], 1.0)) * tries >= _CHANCE:
                continue
            if source == "tokens":
                listed = sum(evidence[i][0] in names for i in members)
                return Label("/".join(names), source, _lower_bound(listed, len(members)))
            # For a probed label only those members speak for or against it that have one.
            judged = sum(bool(evidence[i]) for i in members) if source == "probe" else len(members)
            return Label(names[0], source, _lower_bound(best, judged))
        return None


def _probed(vindex: Vindex, directions: FeatureDirections) -> list[tuple[str, ...]]:
    known = probed_labels(vindex.table("features"))
    return [(known[slot],) if slot in known else () for slot in directions.slots()]


def _referenced(texts: Sequence[str], promoted: Sequence[str]) -> list[tuple[str, ...]]:
    """Per feature the shipped relations in which the promoted text is the object of the activating one (by first words)."""
    pairs: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for name, relation in known_relations().items():
        for subject, objects in relation.references.items():
            for answer in objects:
                pairs[_first(subject), _first(answer)][name] = None
    return [tuple(pairs.get(pair, ())) for pair in zip(texts, promoted, strict=True)]


def _first(text: str) -> str:
    return next(iter(text.casefold().split()), "")


def _patterns(text: str, promoted: str, continues: bool = False) -> tuple[str, ...]:
    """What can be seen from the two texts alone."""
    for name, holds in (
        (_KINDS.get(promoted, ""), promoted in _KINDS),
        ("number", promoted.isdigit()),
        ("same word", text == promoted),
        ("plural", promoted in (f"{text}s", f"{text}es")),
        ("ending", continues and len(promoted) <= 4 and len(text) >= 3 and promoted.isalpha()),
        ("longer word", len(text) >= 3 and promoted.startswith(text)),
        ("shorter word", len(promoted) >= 3 and text.startswith(promoted)),
    ):
        if holds:
            return (name,)
    return ()


def _most(counts: Counter[str], n: int) -> list[str]:
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]]


def _lower_bound(count: int, n: int) -> float:
    """The lower end of a share's 95 % interval (Wilson): few members give little confidence."""
    from scipy.stats import binomtest

    return float(binomtest(count, n).proportion_ci(method="wilson").low)


# -- tables ---------------------------------------------------------------------------------------------------


def tables_of(vindex: Vindex, clusters: Clusters) -> dict[str, pa.Table]:
    """The tables clusters, feature_clusters, features and relations with these clusters in place of earlier ones."""
    d = clusters.directions
    columns: dict[str, list[Any]] = {
        "cluster_id": list(range(len(clusters.labels))),
        "label": [x.text if x else None for x in clusters.labels],
        "source": [x.source if x else None for x in clusters.labels],
        "confidence": [x.confidence if x else None for x in clusters.labels],
        "size": clusters.sizes(),
        "top_tokens": clusters.top_tokens,
        **dict.fromkeys(NAME_COLUMNS, [None] * len(clusters.labels)),
    }
    sure = [x and x.source != "tokens" and x.confidence >= CONFIDENT for x in clusters.labels]
    names = [label if use else None for label, use in zip(columns["label"], sure, strict=True)]
    members = as_table(
        "feature_clusters", {"layer": d.layer, "feature": d.feature, "cluster_id": clusters.member}
    )
    others = drop_source(vindex.table("relations"), "cluster")
    with in_memory() as con:
        con.register("features", vindex.table("features"))
        con.register("feature_clusters", members)
        named = {"cluster_id": columns["cluster_id"], "name": pa.array(names, pa.string())}
        con.register("cluster_names", pa.table(named))
        features = con.sql(sql_query("clustered_features")).to_arrow_table().cast(SCHEMAS["features"])
        con.register("labelled_features", features)
        con.register("known_relations", others)
        relations = con.sql(sql_query("cluster_relations")).to_arrow_table().cast(SCHEMAS["relations"])
    return {
        "clusters": as_table("clusters", columns),
        "feature_clusters": members,
        "features": features,
        "relations": pa.concat_tables([others, relations]),
    }


def publish_clusters(
    vindex: Vindex, clusters: Clusters, names: Mapping[str, pa.Table] | None = None
) -> dict[str, pa.Table]:
    """The tables that were published: those of `tables_of`, and `names` in place of them or beside them."""
    require_tables(vindex)
    tables = tables_of(vindex, clusters) | dict(names or {})
    commit_tables(vindex.path, tables, None, files_of(clusters))
    vindex.manifest = load_manifest(vindex.path)
    return tables


def files_of(clusters: Clusters) -> dict[str, bytes]:
    """relation_clusters.json and feature_clusters.jsonl as LARQL writes them; unnamed clusters are 'cluster-<id>'."""
    content = {
        "k": len(clusters.labels),
        "centres": [[round(float(v), 6) for v in row] for row in clusters.centres],
        "labels": [x.text if x else f"cluster-{i}" for i, x in enumerate(clusters.labels)],
        "counts": clusters.sizes(),
        "top_tokens": clusters.top_tokens,
    }
    lines = [
        json.dumps({"l": layer, "f": feature, "c": int(c)}) + "\n"
        for (layer, feature), c in zip(clusters.directions.slots(), clusters.member, strict=True)
    ]
    return {
        "relation_clusters.json": json.dumps(content, ensure_ascii=False).encode(),
        "feature_clusters.jsonl": "".join(lines).encode(),
    }
