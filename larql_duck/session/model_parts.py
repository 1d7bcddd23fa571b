"""What a session computes with: model, gate search and query vectors. It needs torch and is loaded when first used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.editing.knn import DatabaseFacts
from larql_duck.errors import VindexError
from larql_duck.inference.feature_labels import query_labels
from larql_duck.inference.gate_search import GateSearch
from larql_duck.inference.model import Lender, Model
from larql_duck.inference.query_vectors import QueryVectors
from larql_duck.inference.search_overlay import SearchOverlay
from larql_duck.inference.settings import Settings
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.opening import open_model
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.session.mount import Mount
from larql_duck.vindex.bands import layer_bands
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.store import Vindex
from larql_duck.workspace import Workspace

__all__ = [
    "GateSearch",
    "Model",
    "QueryVectors",
    "gate_search",
    "model_alone",
    "model_of_vindex",
    "query_vectors",
    "search_overlay",
]


def model_of_vindex(workspace: Workspace, settings: Settings, lender: Lender | None = None) -> Model:
    """The model of an open vindex; labels and probe prompts as the tables show them at the time. lender is as in `Model`."""

    def labels(slots: Sequence[Slot] | None) -> pa.Table:
        return query_labels(
            lambda sql, values: workspace.query(sql, values, aside=True).arrow(), slots, workspace.schema
        )

    def probes() -> Mapping[str, Sequence[str]]:
        sql = f"SELECT relation, list(DISTINCT prompt) FROM {workspace.schema}.probes GROUP BY relation"
        return dict(workspace.query(sql, aside=True).rows())

    def database(prompts: Sequence[str]) -> list[list[EditedFact]]:
        if not workspace.overlay.knn:
            return [[] for _ in prompts]
        facts = workspace.cache.setdefault(("database facts", ""), DatabaseFacts(workspace))
        return facts(prompts)

    return Model(
        workspace.vindex,
        settings=settings,
        labels=labels,
        probes=probes,
        bands=workspace.vindex.bands,
        edits=workspace.edits,
        database=database,
        lender=lender,
    )


def model_alone(target: str | Path, settings: Settings) -> tuple[ModelSource, Model]:
    """The model that `target` names, checked, and its passes. ModelError where it cannot be used."""
    path = Path(target).expanduser()
    if (path / INDEX).is_file():
        raise VindexError(f'{path}: is a vindex; open it with USE "{path}"', path=path)
    source = open_model(target)
    source.validate()
    bands = layer_bands(source.family.name, source.sizes().n_layers)
    return source, Model(source, settings=settings, bands=bands)


def gate_search(mount: Mount, vindex: Vindex, overlay: Overlay) -> GateSearch:
    """The gate search over the vindex's mapped rows, under the overlay."""

    def norms() -> dict[str, Any]:
        # Those of the stored rows, whatever edits show in their place.
        stored = mount.stored("features")
        cursor = mount.con.cursor()
        try:
            return cursor.execute(
                f"SELECT layer, gate_norm, up_norm FROM {stored} ORDER BY layer, feature"
            ).fetchnumpy()
        finally:
            cursor.close()

    search = GateSearch(vindex, norms)
    search.overlay = search_overlay(vindex, overlay)
    return search


def search_overlay(vindex: Vindex, overlay: Overlay) -> SearchOverlay | None:
    """What gate search makes of an overlay; None for one without edits."""
    return SearchOverlay(vindex, overlay) if overlay else None


def query_vectors(workspace: Workspace) -> QueryVectors:
    """The vectors of prompts and entities, under the edits as they are now."""
    return QueryVectors(workspace.vindex, workspace.engine)
