"""A session's model: what a vindex's tables tell it, models without a vindex, and the SQL functions of forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from larql_duck.editing.knn import DatabaseFacts
from larql_duck.errors import VindexError
from larql_duck.inference.feature_labels import query_labels
from larql_duck.session.udfs.forward import model_functions
from larql_duck.session.udfs.vectors import Failures, watched
from larql_duck.vindex.bands import layer_bands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from larql_duck.aliases import Slot
    from larql_duck.inference.model import Model
    from larql_duck.inference.settings import Settings
    from larql_duck.models.checkpoint import ModelSource
    from larql_duck.session.session import Session
    from larql_duck.vindex.store import Vindex


def model_of_vindex(session: Session, vindex: Vindex, settings: Settings | None = None) -> Model:
    """The model of an open vindex; labels and probe prompts as the session's tables show them at the time."""
    from larql_duck.inference.model import Model

    def run(sql: str, values: list[object]) -> pa.Table:
        return session.run_sql(sql, values).arrow()

    def labels(slots: Sequence[Slot] | None) -> pa.Table:
        return query_labels(run, slots, session.schema)

    def probes() -> dict[str, list[str]]:
        sql = f"SELECT relation, list(DISTINCT prompt) FROM {session.schema}.probes GROUP BY relation"
        return dict(session.run_sql(sql).rows())

    return Model(
        vindex, settings=settings, labels=labels, probes=probes, bands=vindex.bands,
        overlay=lambda: session.overlay, database=DatabaseFacts(session.workspace),
    )  # fmt: skip


def open_for_passes(target: str | Path) -> tuple[ModelSource, Model]:
    """The model that `target` names, checked, and its passes. ModelError where it cannot be used."""
    from larql_duck.inference.model import Model
    from larql_duck.models.opening import open_model
    from larql_duck.vindex.manifest import INDEX

    path = Path(target).expanduser()
    if (path / INDEX).is_file():
        raise VindexError(f'{path}: is a vindex; open it with USE "{path}"', path=path)
    source = open_model(target)
    source.validate()
    n_layers = source.sizes().n_layers
    return source, Model(source, bands=layer_bands(source.family.name, n_layers))


def register_forward(session: Session, failures: Failures) -> None:
    """Adds the functions of forward passes to the session's mount; they speak of the model that is open at the time."""
    for name, function, parameters, returns in model_functions(lambda: session.model):
        session.mount.add_function(name, watched(function, failures), parameters, returns)
