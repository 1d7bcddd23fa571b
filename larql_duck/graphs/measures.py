"""What algorithms find in the graph of facts: PageRank, communities, shortest paths from hubs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.catalog import as_table
from larql_duck.graphs.fact_graph import rustworkx
from larql_duck.progress import report

if TYPE_CHECKING:
    import rustworkx as rx

HUBS = 16
"""Names from which shortest paths are stored, where nothing else is said."""

# Louvain's order of nodes: the same for the same facts.
_SEED = 0


def graph_measures(graph: rx.PyDiGraph[str, dict[str, Any]], hubs: int = HUBS) -> dict[str, pa.Table]:
    """The tables entity_ranks and hub_paths of a graph of facts, with paths from the `hubs` names of largest PageRank."""
    ranks = _ranks(graph)
    chosen = ranks["entity"][:hubs].to_pylist()
    return {"entity_ranks": ranks, "hub_paths": _hub_paths(graph, chosen)}


def _ranks(graph: rx.PyDiGraph[str, dict[str, Any]]) -> pa.Table:
    """entity_ranks, the largest PageRank first."""
    report("graph", 0, 3)
    pagerank = dict(rustworkx().pagerank(graph)) if len(graph) else {}
    report("graph", 1, 3)
    community = _communities(graph)
    report("graph", 2, 3)
    order = sorted(graph.node_indices(), key=lambda n: (-pagerank[n], graph[n]))
    return as_table(
        "entity_ranks",
        {
            "entity": [graph[n] for n in order],
            "pagerank": [pagerank[n] for n in order],
            "place": list(range(1, len(order) + 1)),
            "community": [community[n] for n in order],
        },
    )


def _communities(graph: rx.PyDiGraph[str, dict[str, Any]]) -> dict[int, int]:
    """Node -> its community by Louvain's method, numbered from 0, the largest first; directions do not count."""
    import networkx

    plain = networkx.Graph()
    plain.add_nodes_from(graph.node_indices())
    plain.add_edges_from(graph.edge_list())
    found = networkx.community.louvain_communities(plain, seed=_SEED)
    found.sort(key=lambda nodes: (-len(nodes), min(nodes)))
    return {node: number for number, nodes in enumerate(found) for node in nodes}


def _hub_paths(graph: rx.PyDiGraph[str, dict[str, Any]], hubs: list[str]) -> pa.Table:
    """hub_paths: breadth first from each hub, facts followed in both directions."""
    both = graph.to_undirected()
    numbers = {both[n]: n for n in both.node_indices()}
    columns: dict[str, list[Any]] = {"hub": [], "entity": [], "length": [], "previous": []}
    for i, hub in enumerate(hubs):
        report("hubs", i, len(hubs))
        lengths, previous = _breadth_first(both, numbers[hub])
        columns["hub"] += [hub] * len(lengths)
        columns["entity"] += [both[n] for n in lengths]
        columns["length"] += lengths.values()
        columns["previous"] += [previous[n] for n in lengths]
    report("hubs", len(hubs), len(hubs))
    return as_table("hub_paths", columns)


def _breadth_first(graph: rx.PyGraph[str, Any], start: int) -> tuple[dict[int, int], dict[int, str | None]]:
    """Node -> its distance from `start`, nearest first; and node -> the name before it on the way, the smallest number of
    those that lead there.
    """
    lengths: dict[int, int] = {start: 0}
    previous: dict[int, str | None] = {start: None}
    frontier = [start]
    while frontier:
        reached = []
        for node in frontier:
            for other in sorted(set(graph.neighbors(node))):
                if other not in lengths:
                    lengths[other], previous[other] = lengths[node] + 1, graph[node]
                    reached.append(other)
        frontier = reached
    return lengths, previous
