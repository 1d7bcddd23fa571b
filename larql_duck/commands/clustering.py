"""Features clustered, clusters and features named, both stored in the vindex."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from larql_duck.atlas.clusters import (
    Atlas,
    discover_by_contexts,
    name_clusters,
    name_features,
    name_tables,
    read_atlas,
)
from larql_duck.atlas.naming import Named
from larql_duck.commands.opening import connect
from larql_duck.errors import LarqlError
from larql_duck.probing.clustering import discover, publish_clusters, tables_of
from larql_duck.progress import doing
from larql_duck.result import Result
from larql_duck.vindex.publish import check_database
from larql_duck.vindex.store import Vindex


def cluster_features(
    path: str | Path, *, k: int | None = None, seed: int = 0, by: str | None = None, simulate: int = 0
) -> Result:
    """The table clusters, which is saved in the vindex at `path` with what belongs to it; notices say what was named.

    by is contexts or offset; None stands for contexts where `larql-duck activations` ran. LarqlError for contexts or a
    simulation without what they need.
    """
    vindex = Vindex.open(path)
    check_database(vindex.path)
    atlas = read_atlas(vindex)
    if atlas is None and (by == "contexts" or simulate):
        raise LarqlError(f"{path}: no examples of its features are stored; run larql-duck activations {path}")
    if simulate:
        vindex.require("inference", "simulating features")
    if atlas is None or by == "offset":
        clusters = discover(vindex, k=k, seed=seed)
    else:
        clusters = discover_by_contexts(vindex, atlas, k=k, seed=seed)
    names, notices = None, []
    if atlas is not None:
        with doing("names"):
            named = name_clusters(clusters, atlas, seed)
            features, features_named = name_features(vindex, atlas, seed)
        names = name_tables(tables_of(vindex, clusters)["clusters"], named, features, features_named)
        notices += [_said(named, "clusters"), _said(features_named, "features that fire")]
    tables = publish_clusters(vindex, clusters, names)
    table = tables["clusters"]
    labelled = table.num_rows - table.column("label").null_count
    notices.insert(0, f"{labelled} of {table.num_rows} clusters have a label that is better than chance")
    if atlas is None:
        notices.append(f"names need examples of features: larql-duck activations {path}, then cluster again")
    elif simulate:
        notices += _simulated(path, vindex, atlas, simulate)
    return Result(table, notices=notices)


def _said(named: Named, what: str) -> str:
    line = f"{named.count()} of {len(named.names)} {what} have a name"
    if not named.count():
        return line
    return (
        f"{line}: mean AUROC {named.mean:.2f} on held-out contexts, with shuffled names {named.shuffled:.2f}"
    )


def _simulated(path: str | Path, vindex: Vindex, atlas: Atlas, count: int) -> list[str]:
    from larql_duck.atlas.simulating import simulate

    with connect(path) as session:
        rows = simulate(session.workspace.engine(), atlas, vindex.table("feature_names"), count)
    lines = [
        f"L{row.layer} F{row.feature} {row.name!r}: correlation {row.correlation:.2f} over {row.n} contexts"
        for row in rows
    ]
    if not rows:
        return ["no named feature has held-out contexts enough to be simulated"]
    mean = float(np.mean([row.correlation for row in rows]))
    return [*lines, f"simulated by the model: {len(rows)} features, mean correlation {mean:.2f}"]
