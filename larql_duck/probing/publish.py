"""A probing run made part of a vindex: merged with what it knew, everything derived from it anew, published."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.aliases import Slot
from larql_duck.errors import VindexError
from larql_duck.probing.merge import PROBED, merge
from larql_duck.probing.sources import of_source
from larql_duck.vindex.derive import derive_entities, derive_triples, label_features
from larql_duck.vindex.manifest import load_manifest
from larql_duck.vindex.publish import commit_tables
from larql_duck.vindex.store import Vindex

LABELS = "feature_labels.json"
# Attempts to publish when other processes publish at the same time.
_ATTEMPTS = 5


class _Overtaken(Exception):
    """Another process published between reading and writing."""


def merged_tables(
    vindex: Vindex, known: Mapping[str, pa.Table], probed: Mapping[str, pa.Table], many: Collection[str]
) -> dict[str, pa.Table]:
    """All tables that a probing run changes after `probed` was merged into `known` (those of PROBED as they are now).

    The labels of features, triples and entities are derived anew. many names the relations whose further answers are
    triples too.
    """
    merged = merge(known, probed)
    # A relation that was asked about no longer needs the row that clustering gave it.
    relations = merged["relations"]
    asked = of_source(relations, "probe")["relation"]
    replaced = pc.and_(pc.equal(relations["source"], "cluster"), pc.is_in(relations["relation"], asked))
    merged["relations"] = relations.filter(pc.invert(replaced))
    merged["features"] = label_features(vindex.table("features"), merged["feature_relations"])
    merged["triples"] = derive_triples(merged["facts"], merged["edges"], many)
    return merged | {"entities": derive_entities(merged["triples"])}


def publish(
    vindex: Vindex,
    probed: Mapping[str, pa.Table],
    *,
    name: str,
    many: Collection[str] = (),
    statistics: Mapping[str, Any] | None = None,
) -> dict[str, pa.Table]:
    """The vindex's changed tables after `probed` was merged into them and published in one transaction.

    The manifest then lists the pack `name` with the relations that have many answers, and the run's `statistics`
    (see `probe_section`). vindex.manifest is read again. VindexError where the directory is LARQL's or cannot be
    written.
    """
    require_tables(vindex)
    for _ in range(_ATTEMPTS):
        manifest = load_manifest(vindex.path)
        revision = _revision(manifest.section)
        vindex.manifest = manifest
        tables = merged_tables(
            vindex, {t: vindex.table(t) for t in PROBED}, probed, vindex.manifest.many_relations | set(many)
        )

        def change(section: dict[str, Any], revision: int = revision) -> None:
            if _revision(section) != revision:
                raise _Overtaken
            section["revision"] = revision + 1
            _note_pack(section, name, many)
            probe_section(section, statistics or {})

        try:
            commit_tables(vindex.path, tables, change, {LABELS: feature_labels(tables["features"])})
        except _Overtaken:
            continue
        vindex.manifest = load_manifest(vindex.path)
        return tables
    raise VindexError.at(
        vindex.path, "other processes keep changing this vindex; try again when they have finished"
    )


def require_tables(vindex: Vindex) -> None:
    """Raise VindexError for a directory that LARQL wrote, whose tables cannot grow."""
    if not vindex.has_tables:
        raise VindexError.at(
            vindex.path,
            "written by LARQL, so it has no tables to add to; "
            "make a vindex of the model with: larql-duck extract MODEL -o OUT.vindex",
        )


def probed_labels(features: pa.Table) -> dict[Slot, str]:
    """Slot -> its label, of those in the table `features` whose label comes from probing."""
    probed = features.filter(pc.equal(features["relation_source"], "probe"))
    columns = probed.select(["layer", "feature", "relation"]).to_pydict().values()
    return {(layer, feature): relation for layer, feature, relation in zip(*columns, strict=True)}


def feature_labels(features: pa.Table) -> bytes:
    """feature_labels.json in LARQL's format, from the probed labels of `features`: {"L26_F9515": "capital"}."""
    labels = {f"L{layer}_F{feature}": name for (layer, feature), name in probed_labels(features).items()}
    return json.dumps(labels, indent=1, ensure_ascii=False).encode()


def probe_section(section: dict[str, Any], statistics: Mapping[str, Any]) -> None:
    """Put a run's statistics into our section of the manifest, under "probe": "calibration", as the run learnt it."""
    section.setdefault("probe", {}).update(statistics)


def _note_pack(section: dict[str, Any], name: str, many: Collection[str]) -> None:
    packs = section.setdefault("packs", [])
    pack = next((pack for pack in packs if pack.get("name") == name), None)
    if pack is None:
        packs.append(pack := {"name": name})
    pack["many"] = sorted({*pack.get("many", ()), *many})


def _revision(section: Mapping[str, Any]) -> int:
    return int(section.get("revision", 0))
