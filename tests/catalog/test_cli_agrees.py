"""The DuckDB CLI (an older version than Python's) gives the same rows for every macro and view."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.duckdb_cli import run_cli

QUERIES = [
    "SELECT relationship, object FROM model_graph WHERE subject = 'France'",
    "FROM describe_entity('France')",
    "FROM describe_entity('france', p_band := 'all', p_rows := 2)",
    "FROM describe_entity('TURKEY')",
    "FROM describe_entity('Europe')",
    "FROM describe_entity('France', p_layer := 9)",
    "FROM describe_entity('France', p_relations_only := true)",
    "FROM token_associations",
    "FROM relation_facts('CAPITAL')",
    "FROM who('capital', 'paris')",
    "FROM who(NULL, 'Europe')",
    "FROM who('capital', 'the Paris.')",
    "SELECT name_key('The U.S.') AS key",
    "SELECT object, name_key(object) = object_key AS same FROM model_graph ORDER BY ALL",
    "FROM explain_fact('france', 'capital')",
    "FROM explain_fact('France', NULL)",
    "FROM entities_like('%r%')",
    "FROM entities_near('Frnace')",
    "FROM tokens_of(5, 9)",
    "FROM feature_examples",
    "FROM examples_of(5, 9)",
    "FROM examples_of(5, 9, p_sign := -1)",
    "FROM examples_of_facts('France')",
    "FROM tokens_of(5, 9, p_side := 'in')",
    "FROM feature(5, 9)",
    "FROM facts_of_feature(5, 9)",
    "FROM facts_of_feature(5, 3)",
    "FROM shared_features",
    "FROM feature(4, 2)",
    "FROM walk('France')",
    "FROM walk('france', p_top := 3, p_layers := [1, 2, 3])",
    "FROM walk('France', p_mode := 'dense', p_compare := true)",
    "FROM walk('Paris', p_band := 'knowledge', p_explain := true, p_tokens := 5)",
    "FROM neighbors('France')",
    "FROM neighbors('France', p_hops := 3, p_relations := ['CAPITAL', 'continent'], p_limit := 20)",
    "FROM paths('France', 'Japan', p_max := 6)",
    "FROM paths('France', 'Germany')",
    "FROM central(p_limit := 3)",
    "FROM community_of('France')",
    "FROM shortest_path('Paris', 'Germany')",
    "FROM show_layers",
    "FROM show_relations()",
    "FROM show_relations(p_mode := 'verbose', p_examples := true)",
    "FROM show_relations(p_layer := 5)",
    "FROM show_entities(p_limit := 5)",
    "FROM show_entities(p_layer := 9)",
    "FROM stats",
    "FROM help()",
    "FROM lql_edges ORDER BY ALL",
    "FROM lql_features WHERE layer = 5 ORDER BY feature",
    "FROM lql_entities ORDER BY ALL",
    "FROM patches",
]


def _comparable(value: Any) -> Any:
    """Floats by their 32 bits (the CLI prints FLOAT and DOUBLE alike), everything else as it is."""
    if isinstance(value, float):
        return struct.pack("<f", value)
    if isinstance(value, list):
        return [_comparable(v) for v in value]
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items()}
    return float(value).hex() if isinstance(value, bool) else value


@pytest.fixture(scope="module")
def by_cli(database) -> dict[str, list[dict[str, Any]]]:
    return dict(zip(QUERIES, run_cli(database, *QUERIES), strict=True))


@pytest.mark.parametrize("query", QUERIES)
def test_same_rows(by_cli, ask, query: str) -> None:
    python = ask(query)
    # A number without a fraction is printed without one.
    assert [_comparable(_floats(r)) for r in by_cli[query]] == [_comparable(_floats(r)) for r in python]
    if query not in ("FROM paths('France', 'Japan', p_max := 6)", "FROM patches"):
        assert python


def _floats(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, list):
        return [_floats(v) for v in value]
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    return value


def test_every_macro_is_compared(ask) -> None:
    names = {
        r["name"]
        for r in ask(
            "SELECT function_name AS name FROM duckdb_functions() WHERE schema_name = 'main' AND NOT internal"
        )
    }
    assert {n for n in names if not any(f"FROM {n}(" in q or f"SELECT {n}(" in q for q in QUERIES)} == set()
