"""SQL that makes the tables, views and macros of the schema, with their comments."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Mapping

from larql_duck.catalog.sql_files import CALLED_BY_HELPERS, HELPERS, PUBLIC, SCHEMA, sql_files, sql_query
from larql_duck.catalog.tables import BOTH_SPELLINGS, BUILD_INFO, LOOKUPS, TABLES, VIEWS, Table


def quoted(text: str) -> str:
    """`text` as a DuckDB string literal."""
    return "'" + text.replace("'", "''") + "'"


def create_tables(schema: str = SCHEMA, prefix: str = "") -> str:
    """CREATE TABLE of every table and lookup and of build_info, in `schema`, with `prefix` before each name."""
    return "".join(
        _create(table, schema, prefix) + comments(table, "TABLE", schema, prefix)
        for table in (*TABLES.values(), *LOOKUPS.values(), BUILD_INFO)
    )


def views_and_macros(schema: str = SCHEMA, *, columns: bool = True) -> list[tuple[str, str]]:
    """(name, SQL) of everything over the tables of `schema` that needs no Python functions, in load order.

    columns: with the comments of the views' columns.
    """
    return [*sql_files(HELPERS, schema), *_public(schema, schema, columns=columns)]


def main_objects() -> list[tuple[str, str]]:
    """(name, SQL) of the same names in the schema main, for those who open model.duckdb itself.

    A database file cannot carry a search path. Attached to another database, views work at once (m.model_graph);
    macros need `USE m` first, because their bodies are looked up from where they are called.
    """
    tables = "".join(
        f"CREATE VIEW main.{name} AS FROM {SCHEMA}.{name};\n" + comments(table, "VIEW", "main")
        for name, table in TABLES.items()
    )
    called = sql_files(CALLED_BY_HELPERS, SCHEMA, "main")
    return [("tables", tables), *called, *_public(SCHEMA, "main")]


def model_sql(tables: str = "tables", stored: Mapping[str, Collection[str]] | None = None) -> str:
    """What model.duckdb holds as a script over the Parquet files in `tables`, for versions that cannot open that file.

    stored: name of a table -> the columns in its file, where an earlier version wrote it.
    """
    parts = [
        f"-- Views and macros over {tables}, for DuckDB 1.1 to 1.4: duckdb -init model.sql, in the folder of this file.\n"
        f"CREATE SCHEMA {SCHEMA};\n"
    ]
    files = {name: f"read_parquet({quoted(glob.escape(tables) + f'/{name}.parquet')})" for name in TABLES}
    for name, table in TABLES.items():
        source, known = files[name], (stored or {}).get(name, table.names)
        if name == "features" and "sign" not in known:
            sources = ", ".join(f"{t} AS (FROM {files[t]})" for t in ("features", "feature_tokens"))
            source, known = f"(WITH {sources} {sql_query('features_of_2_0')}\n)", table.names
        older = {}
        if not known:
            source = "(SELECT 1 WHERE false)"
        elif name == "facts" and "held_out" not in known:
            older = {
                "calibrated": "CASE WHEN calibrated THEN 'relation' ELSE 'none' END",
                "confidence": "CASE WHEN calibrated OR source = 'patch' THEN confidence END",
            }
        columns = (
            f"{older.get(c.name, c.default or 'NULL')}::{c.type} AS {c.name}"
            if c.name in older or c.name not in known
            else c.name
            for c in table.columns
        )
        parts.append(f"CREATE VIEW {SCHEMA}.{name} AS SELECT {', '.join(columns)} FROM {source};\n")
    parts += [f"CREATE VIEW {SCHEMA}.{name} AS\n{sql_query(name)};\n" for name in LOOKUPS]
    return "".join([*parts, *(text for _, text in (*views_and_macros(), *main_objects()))])


def comments(table: Table, kind: str, schema: str, prefix: str = "", *, columns: bool = True) -> str:
    """COMMENT ON of a table or view (`kind`) and its columns."""
    name = f"{schema}.{prefix}{table.name}"
    lines = [f"COMMENT ON {kind} {name} IS {quoted(table.comment)};\n"]
    if columns:
        lines += [f"COMMENT ON COLUMN {name}.{c.name} IS {quoted(c.comment)};\n" for c in table.columns]
    return "".join(lines)


def _create(table: Table, schema: str, prefix: str) -> str:
    parts = [f"{c.name} {c.type}{f' DEFAULT {c.default}' if c.default else ''}" for c in table.columns]
    return f"CREATE TABLE {schema}.{prefix}{table.name} ({', '.join(parts)});\n"


def _public(schema: str, public: str, *, columns: bool = True) -> Iterator[tuple[str, str]]:
    yield from sql_files(PUBLIC, schema, public)
    # A Python session that has patches fills it; a database on its own has none.
    nulls = ", ".join(f"NULL::{c.type} AS {c.name}" for c in VIEWS["patches"].columns)
    yield "patches", f"CREATE VIEW {public}.patches AS SELECT {nulls} WHERE false;\n"
    for name, view in BOTH_SPELLINGS.items():
        others = ", ".join(f"{c.same_as} AS {c.name}" for c in view.columns if c.same_as)
        yield view.name, f"CREATE VIEW {public}.{view.name} AS SELECT *, {others} FROM {schema}.{name};\n"
    yield "comments", "".join(comments(view, "VIEW", public, columns=columns) for view in VIEWS.values())
