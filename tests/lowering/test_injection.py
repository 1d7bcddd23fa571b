"""Whatever a user's text is, the SQL has the same shape: the text is one literal in it."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from larql_duck.lowering import plan
from larql_duck.lowering.types import EmptyCatalog
from larql_duck.lql import parse_one

FRAGMENTS = [
    "'", "''", '"', "\\", ";", "--", "/*", "*/", "$$", "$x$", "lq.", "lq_udf_topk", ")", "(", " OR 1=1", "DROP TABLE t",
    "\n", "\r", "\0", "\t", "{}", "%", "_", ":=", "E'", "x'", "|>", "`", "🦆", "é", "日本", "\u2028", "\ufeff",
]  # fmt: skip
hostile = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
    max_size=12,
).map("".join)

TEMPLATES = [
    "DESCRIBE $t",
    "WALK $t BASIS EMBEDDING TOP 3",
    "EXPLAIN WALK $t BASIS CONTEXT VERBOSE",
    "NEIGHBORS OF $t RELATIONS $t",
    "PATHS FROM $t TO $t",
    "SELECT $t AS a FROM EDGES WHERE entity = $t",
    "SELECT * FROM EDGES NEAREST TO $t AT LAYER 2 WHERE target LIKE $t",
    "SHOW FEATURES 3 WHERE token = $t OR token IN ($t, 'x')",
]


@pytest.fixture(scope="module")
def con():
    connection = duckdb.connect()
    yield connection
    connection.close()


def _shape(con: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, list[str]]:
    """The query as DuckDB's parser sees it, its constants taken out; and those of them that are text."""
    texts: list[str] = []

    def strip(node: Any) -> Any:
        if isinstance(node, list):
            return [strip(n) for n in node]
        if not isinstance(node, dict):
            return node
        if node.get("class") == "CONSTANT":
            # DuckDB 2 says {"literal": {"kind", "text"}}, DuckDB 1 {"value": {"value"}}.
            literal = node.get("literal") or {}
            value = (
                literal.get("text") if literal.get("kind") == "STRING" else node.get("value", {}).get("value")
            )
            if isinstance(value, str):
                texts.append(value)
            return "constant"
        return {k: strip(v) for k, v in node.items() if not k.startswith("query_location")}

    row = con.execute("SELECT json_serialize_sql($1)", [sql]).fetchone()
    assert row is not None
    tree = json.loads(row[0])
    assert not tree["error"], tree
    assert len(tree["statements"]) == 1
    return strip(tree), texts


def _sql(template: str, text: str) -> str:
    found = plan(parse_one(template, {"t": text}), EmptyCatalog(), running=False)
    return found.sql  # type: ignore[union-attr]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=hostile)
def test_text_is_one_literal(con: duckdb.DuckDBPyConnection, template: str, text: str) -> None:
    if "\0" in text:
        # Written as a call that puts the parts together: another shape, the same value.
        assert "\0" not in _sql(template, text)
        return
    shape, texts = _shape(con, _sql(template, text))
    assert shape == _shape(con, _sql(template, "plain"))[0]
    assert texts.count(text) >= template.count("$t")
