"""The cluster that a command's long work is to use, as holders of the open vindex's model."""

from __future__ import annotations

from larql_duck.cluster import current_cluster
from larql_duck.extraction.job import prepare
from larql_duck.extraction.memory_plan import asking_bytes
from larql_duck.extraction.options import Options
from larql_duck.inference.engine_nodes import EngineNodes
from larql_duck.workspace import Workspace


def engine_nodes(workspace: Workspace) -> EngineNodes | None:
    """The nodes of the current cluster with the model of the open vindex; None where there is none."""
    cluster = current_cluster()
    if cluster is None:
        return None
    path = workspace.vindex.path
    return EngineNodes(cluster, workspace.engine(), path, memory=asking_bytes(prepare(path, Options())))
