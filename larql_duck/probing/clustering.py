"""Relations without asking: features clustered by the direction from what they activate on to what they promote.

A feature that activates on " France" and promotes " Paris" has the direction embedding(Paris) - embedding(France), and so
have other features that turn a country into its capital. Every label says where it comes from and how sure it is.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from larql_duck.catalog import SCHEMAS, as_table
from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex

MOST_CLUSTERS = 512
# A label of a cluster becomes its features' relation from this confidence on.
CONFIDENT = 0.5
# A label must be rarer than this by chance, over all clusters together.
_CHANCE = 0.05
# Multiply-adds of one round of k-means above which it goes by random batches.
_LARGE = 2e10
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


def discover(
    vindex: Vindex, *, k: int = MOST_CLUSTERS, seed: int = 0, progress: Callable[[str], None] = lambda s: None
) -> Clusters:
    """The Clusters of the knowledge band's features (all layers where there are no bands), at most k, by seed.

    LarqlError where no feature has both a top activating and a promoted word.
    """
    progress("directions")
    found = directions(vindex)
    if not len(found.layer):
        raise LarqlError(
            f"{vindex.path}: no feature has a word among its top activating and among its promoted tokens, so there is nothing to cluster"
        )
    progress("clusters")
    member, centres = _cluster(found.unit, min(k, len(found.layer)), seed)
    progress("labels")
    named = _Namer(vindex, found, member, len(centres))
    return Clusters(found, member, centres, named.labels(), named.top_tokens())


def directions(vindex: Vindex) -> FeatureDirections:
    """The FeatureDirections of all features whose top activating and top promoted token are two different words."""
    import duckdb

    low, high = (vindex.bands or {}).get("knowledge", (0, vindex.n_layers - 1))
    path = {t: str(vindex.path / vindex.manifest.tables[t]["file"]) for t in ("feature_tokens", "tokens")}
    with duckdb.connect() as con:
        for name, file in path.items():
            con.from_parquet(file).create_view(name)
        rows = con.execute(
            "SELECT i.layer, i.feature, i.token_id, o.token_id, ti.text, tu.text, tu.token[1] <> ' ' FROM feature_tokens AS i"
            " JOIN feature_tokens AS o ON o.layer = i.layer AND o.feature = i.feature AND o.rank = 1"
            "  AND o.side = CASE WHEN i.activation < 0 THEN 'out_neg' ELSE 'out' END"
            " JOIN tokens AS ti ON ti.token_id = i.token_id AND ti.is_word"
            " JOIN tokens AS tu ON tu.token_id = o.token_id AND tu.is_word"
            " WHERE i.side = 'in' AND i.rank = 1 AND i.layer BETWEEN $1 AND $2 AND i.token_id <> o.token_id"
            " ORDER BY i.layer, i.feature",
            [low, high],
        ).fetchnumpy()
    layer, feature, source, target, answers, writes, continues = rows.values()
    embeddings = vindex.embeddings()
    import torch

    def embedded(ids: np.ndarray) -> np.ndarray:
        return embeddings[torch.from_numpy(ids.astype(np.int64))].float().numpy()

    offset = embedded(target) - embedded(source) if len(layer) else np.zeros((0, vindex.hidden), np.float32)
    length = np.linalg.norm(offset, axis=1, keepdims=True)
    kept = length[:, 0] > _LEAST_LENGTH
    return FeatureDirections(
        layer[kept],
        feature[kept],
        [str(t) for t in answers[kept]],
        [str(t) for t in writes[kept]],
        offset[kept] / length[kept],
        [bool(c) for c in continues[kept]],
    )


def _cluster(unit: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    large = float(len(unit)) * unit.shape[1] * k > _LARGE
    options: dict[str, Any] = {"n_clusters": k, "random_state": seed, "n_init": 1, "max_iter": 50}
    model = MiniBatchKMeans(batch_size=8192, **options) if large else KMeans(**options)
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

    def __init__(self, vindex: Vindex, found: FeatureDirections, member: np.ndarray, k: int) -> None:
        self._k = k
        self._members: list[list[int]] = [np.flatnonzero(member == c).tolist() for c in range(k)]
        self._writes = [t.casefold() for t in found.promotes]
        answers = [t.casefold() for t in found.activates_on]
        self._evidence: list[tuple[str, Sequence[tuple[str, ...]], float]] = [
            ("probe", _probed(vindex, found), 0.0),
            ("reference", _referenced(answers, self._writes), 0.0),
            (
                "pattern",
                [
                    _patterns(a, w, c)
                    for a, w, c in zip(
                        answers, self._writes, found.continues or [False] * len(answers), strict=True
                    )
                ],
                _SHARE_OF_PATTERN,
            ),
            ("tokens", [(w,) for w in self._writes], 0.0),
        ]
        self._rates = [
            {name: n / len(answers) for name, n in Counter(x for own in evidence for x in own).items()}
            for _, evidence, _ in self._evidence
        ]

    def labels(self) -> list[Label | None]:
        """Each cluster's label, by the first kind of evidence that is better than chance."""
        return [self._label(c) for c in range(self._k)]

    def top_tokens(self) -> list[list[str]]:
        """Each cluster's ten most frequent promoted texts, ties by text."""
        return [_most(Counter(self._writes[i] for i in own), 10) for own in self._members]

    def _label(self, c: int) -> Label | None:
        own = self._members[c]
        for (source, evidence, share), rates in zip(self._evidence, self._rates, strict=True):
            counts = Counter(x for i in own for x in evidence[i])
            # Ties go to what comes first, in the pack or among the texts.
            names = _most(counts, 3) if source == "tokens" else [n for n, _ in counts.most_common(3)]
            if not names or counts[names[0]] < max(2, share * len(own)):
                continue
            # A rival that other members speak for: neither is what the cluster is about. One that the same members
            # speak for (largest city beside capital) is none.
            others = Counter(x for i in own if names[0] not in evidence[i] for x in evidence[i])
            if source != "tokens" and others and others.most_common(1)[0][1] * 2 > counts[names[0]]:
                continue
            # Every name that could have come out on top had its chance, in every cluster.
            tries = self._k * max(len(rates), 1)
            if _tail(counts[names[0]], len(own), rates[names[0]]) * tries >= _CHANCE:
                continue
            if source != "tokens":
                return Label(names[0], source, _lower(counts[names[0]], _judged(own, evidence, source)))
            good = sum(evidence[i][0] in names for i in own)
            return Label("/".join(names), source, _lower(good, len(own)))
        return None


def _judged(own: Sequence[int], evidence: Sequence[Sequence[str]], source: str) -> int:
    """How many members could have spoken for or against a label: for probe labels, those that have one."""
    return sum(bool(evidence[i]) for i in own) if source == "probe" else len(own)


def _probed(vindex: Vindex, found: FeatureDirections) -> list[tuple[str, ...]]:
    columns = vindex.table("features").select(["layer", "feature", "relation", "relation_source"]).to_pydict()
    known = {
        (layer, feature): (relation,)
        for layer, feature, relation, source in zip(*columns.values(), strict=True)
        if source == "probe"
    }
    return [known.get((int(a), int(b)), ()) for a, b in zip(found.layer, found.feature, strict=True)]


def _referenced(answers: Sequence[str], writes: Sequence[str]) -> list[tuple[str, ...]]:
    """Per feature the shipped relations in which the promoted text is the object of the activating one (by first words)."""
    from larql_duck.probing.packs import known_relations

    pairs: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for name, relation in known_relations().items():
        for subject, objects in relation.references.items():
            for answer in objects:
                pairs[_first(subject), _first(answer)][name] = None
    return [tuple(pairs.get((a, w), ())) for a, w in zip(answers, writes, strict=True)]


def _first(text: str) -> str:
    return text.casefold().split()[0] if text.split() else ""


def _patterns(answer: str, written: str, continues: bool = False) -> tuple[str, ...]:
    """What can be seen from the two texts alone."""
    for name, holds in (
        (_KINDS.get(written, ""), written in _KINDS),
        ("number", written.isdigit()),
        ("same word", answer == written),
        ("plural", written in (f"{answer}s", f"{answer}es")),
        ("ending", continues and len(written) <= 4 and len(answer) >= 3 and written.isalpha()),
        ("longer word", len(answer) >= 3 and written.startswith(answer)),
        ("shorter word", len(written) >= 3 and answer.startswith(written)),
    ):
        if holds:
            return (name,)
    return ()


def _most(counts: Counter[str], n: int) -> list[str]:
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]]


def _tail(count: int, n: int, rate: float) -> float:
    """The chance of at least `count` among n at this rate."""
    from scipy.stats import binom

    return float(binom.sf(count - 1, n, min(rate, 1.0)))


def _lower(count: int, n: int) -> float:
    """The lower end of a share's 95 % interval (Wilson): few members give little confidence."""
    z = 1.96
    share = count / n
    centre = share + z * z / (2 * n)
    spread = z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return float(max(0.0, (centre - spread) / (1 + z * z / n)))


# -- tables ---------------------------------------------------------------------------------------------------


def tables_of(vindex: Vindex, found: Clusters) -> dict[str, pa.Table]:
    """The tables clusters, feature_clusters, features and relations with these clusters in place of earlier ones."""
    d = found.directions
    k = len(found.labels)
    counts = np.bincount(found.member, minlength=k).tolist()
    clusters = as_table(
        "clusters",
        {
            "cluster_id": list(range(k)),
            "label": [x.text if x else None for x in found.labels],
            "source": [x.source if x else None for x in found.labels],
            "confidence": [x.confidence if x else None for x in found.labels],
            "size": counts,
            "top_tokens": found.top_tokens,
        },
    )
    slots = {"layer": d.layer.tolist(), "feature": d.feature.tolist(), "cluster_id": found.member.tolist()}
    features = _features(vindex, found)
    return {
        "clusters": clusters,
        "feature_clusters": as_table("feature_clusters", slots),
        "features": features,
        "relations": _relations(vindex, features),
    }


def publish_clusters(vindex: Vindex, found: Clusters) -> dict[str, pa.Table]:
    """The tables that were published: those of `tables_of`, and edges, triples and entities with the new labels."""
    from larql_duck.probing.publish import derived_tables, many_relations, require_tables
    from larql_duck.vindex.manifest import load_manifest
    from larql_duck.vindex.publish import commit_tables

    require_tables(vindex)
    tables = tables_of(vindex, found)
    known = {name: vindex.table(name) for name in ("facts", "edges", "feature_relations")}
    tables |= derived_tables(vindex, known, many_relations(vindex), tables["features"])
    commit_tables(vindex.path, tables, None, files_of(found))
    vindex.manifest = load_manifest(vindex.path)
    return tables


def files_of(found: Clusters) -> dict[str, bytes]:
    """relation_clusters.json and feature_clusters.jsonl as LARQL writes them; unnamed clusters are 'cluster-<id>'."""
    d = found.directions
    k = len(found.labels)
    clusters = {
        "k": k,
        "centres": [[round(float(v), 6) for v in row] for row in found.centres],
        "labels": [x.text if x else f"cluster-{i}" for i, x in enumerate(found.labels)],
        "counts": np.bincount(found.member, minlength=k).tolist(),
        "top_tokens": found.top_tokens,
    }
    lines = [
        json.dumps({"l": int(layer), "f": int(feature), "c": int(c)})
        for layer, feature, c in zip(d.layer, d.feature, found.member, strict=True)
    ]
    return {
        "relation_clusters.json": json.dumps(clusters, ensure_ascii=False).encode(),
        "feature_clusters.jsonl": ("\n".join(lines) + "\n").encode(),
    }


def _confident(label: Label | None) -> bool:
    return label is not None and label.source != "tokens" and label.confidence >= CONFIDENT


def _features(vindex: Vindex, found: Clusters) -> pa.Table:
    d = found.directions
    of = {
        (int(layer), int(feature)): int(c)
        for layer, feature, c in zip(d.layer, d.feature, found.member, strict=True)
    }
    table = vindex.table("features")
    relations, sources, ids = [], [], []
    columns = table.select(["layer", "feature", "relation", "relation_source"]).to_pydict()
    for layer, feature, relation, source in zip(*columns.values(), strict=True):
        cluster = of.get((layer, feature))
        label = None if cluster is None else found.labels[cluster]
        if source in (None, "cluster"):
            named = label if _confident(label) else None
            relation, source = (named.text, "cluster") if named else (None, None)
        relations.append(relation)
        sources.append(source)
        ids.append(cluster)
    for name, values in (("relation", relations), ("relation_source", sources), ("cluster_id", ids)):
        at = table.schema.get_field_index(name)
        field = SCHEMAS["features"].field(name)
        table = table.set_column(at, field, pa.array(values, field.type))
    return table


def _relations(vindex: Vindex, features: pa.Table) -> pa.Table:
    """relations without earlier clusters' rows, and one for each cluster label that is no relation already."""
    from larql_duck.probing.publish import drop_source

    kept = drop_source(vindex.table("relations"), "cluster")
    known = set(kept.column("relation").to_pylist())
    layers: dict[str, list[int]] = defaultdict(list)
    columns = features.select(["layer", "relation", "relation_source"]).to_pydict()
    for layer, relation, source in zip(*columns.values(), strict=True):
        if source == "cluster" and relation not in known:
            layers[relation].append(layer)
    names = sorted(layers)
    found = as_table(
        "relations",
        {
            "relation": names,
            "source": ["cluster"] * len(names),
            "description": ["Found by clustering what features activate on and promote."] * len(names),
            "templates": [[] for _ in names],
            "n_facts": [0] * len(names),
            "n_features": [len(layers[n]) for n in names],
            "layers": [sorted(set(layers[n])) for n in names],
            "examples": [[] for _ in names],
        },
    )
    return pa.concat_tables([kept, found])
