"""The public schema: columns, types and comments are what schemas.py says, and everything says what it is."""

from __future__ import annotations

import pyarrow as pa
import pytest

from larql_duck.catalog import SCHEMAS, TABLES
from tests.duckdb_cli import run_cli

_TYPES = {
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.list_(pa.string()): "VARCHAR[]",
    pa.list_(pa.int32()): "INTEGER[]",
    pa.list_(pa.float32()): "FLOAT[]",
}


@pytest.mark.parametrize("table", SCHEMAS)
@pytest.mark.parametrize("schema", ["lq", "main"])
def test_columns_types_and_comments(ask, table: str, schema: str) -> None:
    rows = ask(
        "SELECT column_name, data_type, comment FROM duckdb_columns()"
        " WHERE schema_name = $1 AND table_name = $2 ORDER BY column_index",
        [schema, table],
    )
    comments = {c.name: c.comment for c in TABLES[table].columns}
    expected = [(f.name, _TYPES[f.type], comments[f.name]) for f in SCHEMAS[table]]
    assert [(r["column_name"], r["data_type"], r["comment"]) for r in rows] == expected


def test_every_table_has_its_comment(ask) -> None:
    rows = ask("SELECT table_name, comment FROM duckdb_tables() WHERE schema_name = 'lq'")
    comments = {r["table_name"]: r["comment"] for r in rows}
    assert {name: comments[name] for name in SCHEMAS} == {name: TABLES[name].comment for name in SCHEMAS}


def test_nothing_is_without_a_comment(database) -> None:
    queries = (
        "SELECT table_name AS name FROM duckdb_tables() WHERE comment IS NULL AND NOT internal",
        "SELECT view_name AS name FROM duckdb_views() WHERE comment IS NULL AND NOT internal",
        "SELECT table_name || '.' || column_name AS name FROM duckdb_columns() WHERE comment IS NULL AND NOT internal",
        "SELECT function_name AS name FROM duckdb_functions() WHERE comment IS NULL AND NOT internal",
    )
    assert run_cli(database, *queries) == [[], [], [], []]


def test_help_names_every_macro_with_an_example_that_runs(ask) -> None:
    rows = ask("FROM help()")
    names = ask(
        "SELECT DISTINCT function_name AS name FROM duckdb_functions() WHERE schema_name = 'main' AND NOT internal"
    )
    assert {r["macro"].split("(")[0] for r in rows} == {r["name"] for r in names}
    assert any(r["macro"] == "who(p_relation, p_object)" for r in rows)
    for row in rows:
        assert ask(row["example"]), row
        assert row["answers"].endswith(".")


def test_main_has_what_lq_has(ask) -> None:
    helpers = {
        "entity_named",
        "names_alike",
        "plain_name",
        "token_hits",
        "token_text",
        "is_among",
        "promoted",
        "rounded",
        "wilson",
        "cut_out",
        "excerpt",
        "side",
    }
    lookups = {
        "entity_names",
        "name_aliases",
        "other_names",
        "links",
        "token_names",
        "best_examples",
        "build_info",
    }
    names = {
        schema: {
            r["name"]
            for r in ask(
                "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = $1"
                " UNION ALL SELECT function_name FROM duckdb_functions() WHERE schema_name = $1 AND NOT internal",
                [schema],
            )
        }
        for schema in ("lq", "main")
    }
    assert names["main"] == names["lq"] - helpers - lookups


def test_macros_in_main_take_the_same_parameters(ask) -> None:
    rows = ask(
        "SELECT function_name AS name, list(DISTINCT parameters) AS parameters FROM duckdb_functions()"
        " WHERE schema_name IN ('lq', 'main') AND NOT internal GROUP BY function_name"
    )
    assert rows and all(len(r["parameters"]) == 1 for r in rows)
