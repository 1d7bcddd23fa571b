"""PageRank, communities and shortest paths of the facts, stored in the open vindex."""

from __future__ import annotations

from typing import TYPE_CHECKING

from larql_duck.commands.storing import store
from larql_duck.errors import LarqlError
from larql_duck.graphs.measures import HUBS, graph_measures
from larql_duck.probing.publish import require_tables
from larql_duck.result import Result
from larql_duck.vindex.publish import check_database

if TYPE_CHECKING:
    from larql_duck.session import Session


def measure_graph(session: Session, hubs: int = HUBS) -> Result:
    """The names with the largest PageRank, after the tables entity_ranks and hub_paths were stored, anew if they were there.

    LarqlError where the session has edits, which are no facts of the vindex yet, and where there are no facts.
    """
    workspace = session.workspace
    require_tables(workspace.vindex)
    if workspace.edits.patch_rows():
        raise LarqlError(
            "the graph of the stored facts is measured, and this session has edits: COMPILE CURRENT INTO VINDEX, then open that one"
        )
    check_database(workspace.vindex.path)
    graph = session.graph()
    if not len(graph):
        raise LarqlError(f"{workspace.vindex.path} holds no facts yet: larql-duck probe asks the model")
    store(workspace, graph_measures(graph, hubs))
    shown = session.sql(f"FROM {session.schema}.central()")
    said = f"{len(graph)} names, {graph.num_edges()} facts; saved in {workspace.vindex.path}"
    return Result(
        shown.arrow(), notices=[said, "ask: FROM central(), community_of(NAME), shortest_path(NAME, NAME)"]
    )
