"""docs/schema.md, made from the catalog."""

from __future__ import annotations

from collections.abc import Iterable

from larql_duck.catalog.comparison_tables import COMPARISONS
from larql_duck.catalog.ddl import create_tables, main_objects, views_and_macros
from larql_duck.catalog.sql_files import SCHEMA
from larql_duck.catalog.tables import TABLES, VIEWS, Table
from larql_duck.databases import in_memory

_HEAD = """# The schema

Every table is a Parquet file in `tables/` of a vindex and a table of `model.duckdb` (DuckDB 1.5 or newer; `model.sql` for
older ones), where views and macros stand over it. A Python session shows the same names in the schema `lq`. An edit changes what a session shows, never what is on
disk. Words are explained in the [glossary](glossary.md).

This page is made from the catalog: `python -m larql_duck.catalog docs/schema.md`.
"""


def schema_markdown() -> str:
    """The public schema as Markdown: tables and views with their columns, and the macros."""
    parts = [_HEAD, "## Tables\n", *_tables(TABLES.values()), "## Views\n", *_tables(VIEWS.values())]
    parts += [_COMPARED, *_tables(COMPARISONS.values())]
    rows = "\n".join(
        f"| `{macro}` | {_cell(answers)} | `{example}` |" for macro, example, answers in _macros()
    )
    parts.append(f"## Macros\n\n`FROM help()` lists them.\n\n{_MACROS}{rows}\n")
    return "\n".join(parts)


_COMPARED = """## Tables of two models

A vindex does not hold them: `AUDIT` and `DIFF ... TEXTS` leave them in the session, commands write them to files
([Distillation](distillation.md)).
"""
_MACROS = "| macro | answers | example |\n|---|---|---|\n"


def _tables(tables: Iterable[Table]) -> Iterable[str]:
    for table in tables:
        rows = "\n".join(f"| `{c.name}` | {c.type} | {_cell(c.comment)} |" for c in table.columns)
        yield f"### `{table.name}`\n\n{table.comment}\n\n| column | type | meaning |\n|---|---|---|\n{rows}\n"


def _macros() -> list[tuple[str, str, str]]:
    """Name with parameters, an example and what it answers, of the macros that model.duckdb has in main."""
    with in_memory() as con:
        con.execute(f"CREATE SCHEMA {SCHEMA};\n{create_tables()}")
        for _, text in (*views_and_macros(), *main_objects()):
            con.execute(text)
        return con.execute("FROM main.help()").fetchall()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
