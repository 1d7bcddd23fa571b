"""The two sides of an audit, teacher and student: an engine, what earlier probing learnt of it, and the facts it is known for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from larql_duck.catalog import empty_table
from larql_duck.inference.engine import Engine
from larql_duck.inference.model import open_source
from larql_duck.inference.settings import Settings
from larql_duck.models.source import WeightSource
from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.stored import knowledge_of
from larql_duck.vindex.store import Vindex
from larql_duck.workspace import Workspace

_TABLES = ("facts", "relations")


def _no_rows(name: str) -> pa.Table:
    return empty_table(name)


@dataclass(frozen=True)
class Party:
    """A model that is asked: name for people, engine, what its vindex learnt about asking it (nothing for a model alone).

    table(name) gives its facts and relations as they are shown, without rows for a model alone.
    """

    name: str
    engine: Engine
    known: Knowledge = field(default_factory=Knowledge, repr=False)
    table: Callable[[str], pa.Table] = field(default=_no_rows, repr=False)


def open_party(path: str | Path, settings: Settings | None = None) -> Party:
    """The party that a vindex or a model at `path` is. LevelError for a vindex without weights, ModelError for no model."""
    source = open_source(path)
    engine = _loaded(source, settings)
    if isinstance(source, Vindex):
        return Party(str(path), engine, knowledge_of(source), source.table)
    return Party(str(path), engine)


def open_engine(path: str | Path, settings: Settings | None = None) -> Engine:
    """The engine of a vindex or a model at `path`; errors as of `open_party`."""
    return _loaded(open_source(path), settings)


def _loaded(source: WeightSource, settings: Settings | None) -> Engine:
    return Engine.load(source, settings or Settings.from_environment())


def current_party(workspace: Workspace) -> Party:
    """The party that a workspace is: its model under its edits, its facts as it shows them."""
    workspace.vindex.require("inference", "AUDIT")
    workspace.refresh("facts")
    tables = {name: workspace.query(f"FROM {workspace.schema}.{name}").arrow() for name in _TABLES}
    return Party("CURRENT", workspace.engine(), knowledge_of(workspace.vindex), tables.__getitem__)
