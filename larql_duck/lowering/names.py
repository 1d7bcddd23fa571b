"""The tables that LQL knows by name: where each one is, its columns, and which other names its columns have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from larql_duck.catalog import SCHEMAS, VIEWS

_ENDS = {"entity": "subject", "target": "object"}


@dataclass(frozen=True)
class Table:
    """One LQL table: view is its name in the schema, columns in order, aliases from another name to the column's."""

    view: str
    columns: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)


def _stored(name: str) -> Table:
    columns = tuple(SCHEMAS[name].names)
    return Table(name, columns, {k: v for k, v in _ENDS.items() if v in columns and k not in columns})


_EDGES = VIEWS["lql_edges"].names
_GRAPH = VIEWS["model_graph"].names
_PATCHES = ("position", "name", "path", "description", "inserts", "updates", "deletes", "recording")

TABLES: dict[str, Table] = {
    **{name: _stored(name) for name in SCHEMAS},
    "model_graph": Table("model_graph", _GRAPH, {**_ENDS, "relation": "relationship"}),
    "edges": Table("lql_edges", _EDGES, {"subject": "entity", "object": "target"}),
    "features": Table("lql_features", (*SCHEMAS["features"].names, "token", "score")),
    "entities": Table("lql_entities", (*SCHEMAS["entities"].names, "layers")),
    "patches": Table("patches", _PATCHES),
    "stats": Table("stats", ("section", "name", "value", "number")),
    "show_layers": Table(
        "show_layers", ("layer", "band", "n_features", "with_tokens", "labelled", "top_token")
    ),
}
"""Lower-case name in LQL -> the table. Everything else after FROM is the user's own."""

NEAREST: dict[str, Table] = {
    "edges": Table("nearest_edges", (*_EDGES, "distance", "basis"), TABLES["edges"].aliases),
    "features": Table(
        "nearest_features",
        (*(c for c in TABLES["features"].columns if c != "basis"), "distance", "basis"),
    ),
}
"""The tables that NEAREST TO may follow: those whose rows have a layer and a feature."""
