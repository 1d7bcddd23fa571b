"""The tables that LQL knows by name: which view each one is, its columns, and their other spellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from larql_duck.catalog import tables as catalog


@dataclass(frozen=True)
class LqlTable:
    """One LQL table.

    view is its name in the schema; both that of the view whose columns have both spellings, the same if it is one
    already. columns are what `SELECT *` shows, aliases the other spellings with the columns that they mean.
    """

    view: str
    both: str
    columns: tuple[str, ...]
    aliases: Mapping[str, str]


def _table(table: catalog.Table) -> LqlTable:
    both = catalog.BOTH_SPELLINGS.get(table.name, table)
    return LqlTable(
        table.name,
        both.name,
        tuple(c.name for c in both.columns if not c.same_as),
        {c.name: c.same_as for c in both.columns if c.same_as},
    )


_VIEWS = {
    "model_graph": "model_graph",
    "token_associations": "token_associations",
    "edges": "lql_edges",
    "features": "lql_features",
    "entities": "lql_entities",
    "patches": "patches",
    "stats": "stats",
    "show_layers": "show_layers",
    "show_experts": "show_experts",
}

TABLES: dict[str, LqlTable] = {
    **{name: _table(table) for name, table in catalog.TABLES.items()},
    **{name: _table(catalog.VIEWS[view]) for name, view in _VIEWS.items()},
}
"""Lower-case name in LQL -> the table. Everything else after FROM is the user's own."""

NEAREST: dict[str, LqlTable] = {name: _table(table) for name, table in catalog.NEAREST.items()}
"""The tables that NEAREST TO may follow, as macros: those whose rows have a layer and a feature."""
