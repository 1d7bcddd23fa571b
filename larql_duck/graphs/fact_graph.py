"""Facts as a rustworkx graph."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    import pyarrow as pa
    import rustworkx as rx

    from larql_duck.workspace import Workspace

FACTS = (
    "SELECT subject, relation, object, p, confidence, source FROM {schema}.triples WHERE source <> 'weights'"
)
"""The facts that the graph is made of."""


def rustworkx() -> ModuleType:
    """The module rustworkx; LarqlError where it is not installed."""
    try:
        import rustworkx
    except ImportError:
        raise LarqlError(
            "graph algorithms need rustworkx; install it with: pip install 'larql-duck[graph]'"
        ) from None
    return rustworkx


def session_graph(
    workspace: Workspace, relations: Sequence[str] | None = None
) -> rx.PyDiGraph[str, dict[str, Any]]:
    """The graph of what a session shows as facts, edits included; relations: of these alone."""
    sql, values = FACTS.format(schema=workspace.schema), None
    if relations is not None:
        sql, values = f"{sql} AND list_contains($1, relation)", [list(relations)]
    return fact_graph(workspace.query(sql, values).arrow())


def fact_graph(facts: pa.Table) -> rx.PyDiGraph[str, dict[str, Any]]:
    """A directed graph with a node for each name, which is its weight, and an edge for each fact from subject to object,
    whose weight has relation, p, confidence and source. facts has these columns, subject and object.

    Nodes are numbered by their first mention, so that the same facts make the same graph.
    """
    graph = rustworkx().PyDiGraph()
    ends = [*zip(facts["subject"].to_pylist(), facts["object"].to_pylist(), strict=True)]
    numbers = dict.fromkeys(name for pair in ends for name in pair)
    numbers = dict(zip(numbers, graph.add_nodes_from(list(numbers)), strict=True))
    weights = facts.select(["relation", "p", "confidence", "source"]).to_pylist()
    graph.add_edges_from([(numbers[a], numbers[b], w) for (a, b), w in zip(ends, weights, strict=True)])
    return graph
