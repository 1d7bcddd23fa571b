"""docs/schema.md, made from the catalog."""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from larql_duck.catalog.ddl import create_tables, main_objects, views_and_macros
from larql_duck.catalog.sql_files import SCHEMA
from larql_duck.catalog.tables import TABLES, VIEWS, Table

_HEAD = """# The schema

Every table is a Parquet file in `tables/` of a vindex and a table of `model.duckdb`, where views and macros stand over
it. A Python session shows the same names in the schema `lq`. An edit changes what a session shows, never what is on
disk. Words are explained in the [glossary](glossary.md).

This page is made from the catalog: `python -m larql_duck.catalog docs/schema.md`.
"""


def schema_markdown() -> str:
    """The public schema as Markdown: tables and views with their columns, and the macros."""
    parts = [_HEAD, "## Tables\n", *_tables(TABLES.values()), "## Views\n", *_tables(VIEWS.values())]
    rows = "\n".join(
        f"| `{name}({', '.join(parameters)})` | {_cell(text)} |" for name, parameters, text in _macros()
    )
    parts.append(f"## Macros\n\n| macro | answers |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _tables(tables: Iterable[Table]) -> Iterable[str]:
    for table in tables:
        rows = "\n".join(f"| `{c.name}` | {c.type} | {_cell(c.comment)} |" for c in table.columns)
        yield f"### `{table.name}`\n\n{table.comment}\n\n| column | type | meaning |\n|---|---|---|\n{rows}\n"


def _macros() -> list[tuple[str, list[str], str]]:
    """Name, parameters and comment of the macros that model.duckdb has in main."""
    with duckdb.connect() as con:
        con.execute(f"CREATE SCHEMA {SCHEMA};\n{create_tables()}")
        for _, text in (*views_and_macros(), *main_objects()):
            con.execute(text)
        return con.execute(
            "SELECT DISTINCT ON (function_name) function_name, parameters, comment FROM duckdb_functions()"
            " WHERE schema_name = 'main' AND function_type LIKE '%macro' AND NOT internal ORDER BY function_name"
        ).fetchall()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
