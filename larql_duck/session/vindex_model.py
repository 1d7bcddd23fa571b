"""A session's model: what a vindex's tables tell it, models without a vindex, and the SQL functions of forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.editing.knn import DatabaseFacts
from larql_duck.errors import VindexError
from larql_duck.inference.feature_labels import ask
from larql_duck.session.udfs.forward import model_functions
from larql_duck.session.udfs.vectors import Failures, watched
from larql_duck.session.vindex_catalog import NoVindex
from larql_duck.vindex.bands import layer_bands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from larql_duck.aliases import Slot
    from larql_duck.inference.model import Model
    from larql_duck.inference.settings import Settings
    from larql_duck.lql.statements import Statement
    from larql_duck.models.checkpoint import ModelSource
    from larql_duck.session.session import Session
    from larql_duck.vindex.store import Vindex


class ModelFacts(NoVindex):
    """What is known where USE MODEL opened a model without a vindex."""

    has_model = True

    def __init__(self, source: ModelSource, schema: str, auto_extract: bool) -> None:
        super().__init__(schema)
        self.source = source
        self.auto_extract = auto_extract


def model_of_vindex(session: Session, vindex: Vindex, settings: Settings | None = None) -> Model:
    """The model of an open vindex; labels and probe prompts as the session's tables show them at the time."""
    from larql_duck.inference.model import Model

    def run(sql: str, values: list[object]) -> pa.Table:
        return session.run_sql(sql, values).arrow()

    def labels(slots: Sequence[Slot] | None) -> pa.Table:
        return ask(run, slots, session.schema)

    def probes() -> dict[str, list[str]]:
        sql = f"SELECT relation, list(DISTINCT prompt) FROM {session.schema}.probes GROUP BY relation"
        return dict(session.run_sql(sql).rows())

    return Model(
        vindex, settings=settings, labels=labels, probes=probes, bands=vindex.bands,
        overlay=lambda: session.overlay, database=DatabaseFacts(session),
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


# -- AUTO_EXTRACT ---------------------------------------------------------------------------------------------


def extract_if_needed(session: Session, statement: Statement) -> list[str]:
    """Remarks on the vindex that was made, or opened again, for a statement that needs one; none where nothing was.

    After USE MODEL ... AUTO_EXTRACT the first such statement makes NAME.vindex in the working directory.
    """
    facts = session.facts
    if not isinstance(facts, ModelFacts) or not facts.auto_extract or not _needs_vindex(statement, facts):
        return []
    source = facts.source
    out = Path(f"{source.name.rsplit('/', 1)[-1]}.vindex")
    if out.exists():
        _open_again(session, source, out)
        return [f"opened {out}, which was made from this model before"]
    from larql_duck.extraction import extract

    notices: list[str] = []
    # Nothing of the model stays in memory beside the extraction.
    session.model.reload(session.settings)
    path = extract(source.path, out, progress=session.progress, notice=notices.append)
    session.use(path)
    return [*notices, f"made {path} first (AUTO_EXTRACT)"]


def _needs_vindex(statement: Any, facts: ModelFacts) -> bool:
    from larql_duck.lowering import PLANNERS, WITH_MODEL, WITHOUT_VINDEX, Query, plan, verb_of

    if statement.kind == "Pipe":
        return any(_needs_vindex(stage, facts) for stage in statement.stages)
    if statement.kind == "ExplainSql":
        return _needs_vindex(statement.statement, facts)
    verb = verb_of(statement)
    if verb not in PLANNERS or verb in WITH_MODEL:
        return False
    if verb == "SELECT":
        found = plan(statement, facts, running=False)
        return isinstance(found, Query) and found.uses_vindex
    return verb not in WITHOUT_VINDEX


def _open_again(session: Session, source: ModelSource, out: Path) -> None:
    from larql_duck.vindex.store import Vindex

    vindex = Vindex.open(out)
    sizes = source.sizes()
    same = vindex.manifest.model == source.name and (vindex.n_layers, vindex.hidden, vindex.vocab) == (
        sizes.n_layers,
        sizes.hidden,
        sizes.vocab,
    )
    if not same:
        raise VindexError(
            f"{out}: exists already and is of another model; make a vindex yourself: EXTRACT MODEL ... INTO ...",
            path=out,
        )
    session.show(vindex)
