"""The public schema, written once: every table and view, what each column holds and what it means.

DDL and comments (`ddl`), Arrow schemas (`arrow`) and docs/schema.md (`markdown`) are made from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

# Facts have two spellings: the tables' own, and the one that LQL's grammar uses.
SPELLINGS = {"subject": "entity", "relation": "relationship", "object": "target"}
_OTHER = SPELLINGS | {lql: name for name, lql in SPELLINGS.items()}


@dataclass(frozen=True)
class Column:
    """One column: its DuckDB type and its meaning.

    default is the SQL of what a writer who leaves it out means. same_as names the column of the same table that it is
    a second spelling of; `SELECT *` in LQL does not show it.
    """

    name: str
    type: str
    comment: str
    default: str = ""
    same_as: str = ""


@dataclass(frozen=True)
class Table:
    """A table or view with its columns in order."""

    name: str
    comment: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)


def with_both_spellings(given: tuple[Column, ...]) -> tuple[Column, ...]:
    """The columns, and behind them the other spelling of each that has one and stands alone."""
    names = {column.name for column in given}
    others = [
        Column(_OTHER[c.name], c.type, f"The same as {c.name}.", same_as=c.name)
        for c in given
        if c.name in _OTHER and _OTHER[c.name] not in names
    ]
    return (*given, *others)


def read_tables(file: str) -> dict[str, Table]:
    """Name -> table, of a text file of this package (the file says how it is written)."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    tables: dict[str, Table] = {}
    for line in text.splitlines():
        if line.startswith(" "):
            name, kind, comment = re.split(r"\s{2,}", line.strip(), maxsplit=2)
            kind, _, default = kind.partition(" DEFAULT ")
            table = tables.popitem()[1]
            columns = (*table.columns, Column(name, kind, comment, default))
            tables[table.name] = replace(table, columns=columns)
        elif line and not line.startswith("#"):
            name, _, comment = line.partition(":")
            tables[name] = Table(name, comment.strip(), ())
    return tables


TABLES = read_tables("tables.txt")
"""Name -> the table, as extraction writes it to tables/NAME.parquet and model.duckdb holds it."""

LATER_COLUMNS = {
    "layers": ("mixer",),
    "features": ("activates_on", "sign", "opposite_tokens", "expert"),
    "edges": ("activation",),
    "clusters": ("name", "name_source", "score", "n_scored"),
    "facts": ("reference", "correct", "held_out", "contrast", "subject_key", "object_key"),
    **dict.fromkeys(("triples", "model_graph"), ("subject_key", "object_key")),
}
"""Name of a file in tables/ -> its columns that vindexes of earlier schemas may lack."""

LATER_TABLES = {
    "prompts": (3, 0),
    "priors": (3, 0),
    "type_probe": (3, 1),
    "entity_types": (3, 1),
    **dict.fromkeys(("feature_stats", "feature_firings", "example_texts", "feature_names"), (3, 2)),
    **dict.fromkeys(("dictionaries", "dictionary_features", "dictionary_firings"), (3, 2)),
    **dict.fromkeys(("experts", "routing", "entity_ranks", "hub_paths"), (3, 3)),
}
"""Table -> the schema from which on every vindex has it."""

# Each is sorted by its first column: an equality on that column reads one row group, which lower(subject) = ... or a
# search by object could not. The graph goes by number because a hop over many names would unpack millions of strings.
LOOKUPS = read_tables("lookups.txt")
"""Name -> the lookup, which sql/queries/NAME.sql computes from the tables, in this order."""

BUILD_INFO = LOOKUPS.pop("build_info")
"""The table of model.duckdb that says what it was built from."""


def _columns_of(table: Table, *names: str, **renamed: str) -> tuple[Column, ...]:
    """Columns of a table (all, or those in `names`), under new names where `renamed` gives one."""
    return tuple(
        replace(c, name=renamed.get(c.name, c.name), default="")
        for c in table.columns
        if not names or c.name in names
    )


_EDGES = (
    *_columns_of(TABLES["edges"], "subject", "relation", "object", subject="entity", object="target"),
    *_columns_of(TABLES["edges"], "layer", "feature", "score", "effect"),
    *_columns_of(TABLES["triples"], "confidence"),
    *_columns_of(TABLES["edges"], "source", "stale"),
)
_FEATURES = (
    *_columns_of(TABLES["features"]),
    Column("token", "VARCHAR", "The same as top_token."),
    Column("score", "FLOAT", "The same as c_score: a raw logit, no probability."),
    Column(
        "example",
        "VARCHAR",
        "The text that fires it most with its usual sign; NULL before larql-duck activations ran.",
    ),
)
_DISTANCE = (
    Column("distance", "FLOAT", "Cosine distance of the feature's gate row to the entity's vector."),
    Column("basis", "VARCHAR", "context or embedding: what the entity's vector is."),
)
_ENTITIES = (*_columns_of(TABLES["entities"]), *_columns_of(LOOKUPS["entity_names"], "layers"))
_COMPOSED = (
    Table(
        "model_graph",
        "What the model states: one row per subject, relationship and object, most confident first. "
        "Also a file, tables/model_graph.parquet, by subject.",
        _columns_of(TABLES["triples"], relation="relationship"),
    ),
    Table(
        "token_associations",
        "Which tokens the weights connect, without asking: the subject activates a feature that promotes the object.",
        _columns_of(TABLES["triples"], "subject", "relation", "object", "layers", "n_edges", "stale"),
    ),
    Table("lql_edges", "LQL's table EDGES: one row per feature and triple.", with_both_spellings(_EDGES)),
    Table(
        "lql_features",
        "LQL's table FEATURES: features with token (= top_token) and score (= c_score, a raw logit).",
        _FEATURES,
    ),
    Table(
        "lql_entities",
        "LQL's table ENTITIES: entities with the layers of the triples that mention them.",
        _ENTITIES,
    ),
)

BOTH_SPELLINGS = {
    table.name: Table(
        view,
        f"{table.name} for LQL, which knows its columns under either name.",
        with_both_spellings(table.columns),
    )
    for view, table in (
        ("lql_graph", _COMPOSED[0]),
        ("lql_associations", _COMPOSED[1]),
        *((f"lql_{name}", TABLES[name]) for name in ("facts", "triples", "probes")),
    )
}
"""Name of a table or view -> the view over it whose columns have both spellings."""

VIEWS = {view.name: view for view in (*_COMPOSED, *BOTH_SPELLINGS.values())} | read_tables("views.txt")
"""Name -> the view over the tables."""

NEAREST = {
    "edges": Table("nearest_edges", "LQL's EDGES NEAREST TO.", (*VIEWS["lql_edges"].columns, *_DISTANCE)),
    "features": Table(
        "nearest_features",
        "LQL's FEATURES NEAREST TO.",
        (*(c for c in _FEATURES if c.name != "basis"), *_DISTANCE),
    ),
}
"""LQL's name of a table -> the table macro of a Python session that NEAREST TO is."""
