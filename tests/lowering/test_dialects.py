"""SELECT over the tables in other dialects, and the refusal of everything that would silently mean something else."""

from __future__ import annotations

import pytest

from larql_duck.commands.transpiling import transpile
from larql_duck.errors import LqlSyntaxError, NotSupportedError

TRANSLATED = [
    ("SELECT subject FROM FACTS WHERE p > 0.5", "SELECT subject FROM facts WHERE p > 0.5"),
    ("SELECT entity FROM FACTS WHERE relation = 'a''b'", None),
    ("SELECT relation, count(*) FROM TRIPLES GROUP BY relation HAVING count(*) > 1", None),
    ("SELECT t.subject FROM triples AS t LEFT JOIN facts f ON f.subject = t.subject", None),
    ("WITH a AS (SELECT layer FROM FEATURES) SELECT max(layer) FROM a", None),
]


@pytest.mark.parametrize("dialect", ["spark", "trino"])
@pytest.mark.parametrize(("text", "sql"), TRANSLATED)
def test_translated(dialect: str, text: str, sql: str | None) -> None:
    found = transpile(text, dialect=dialect)
    assert "lq." not in found
    if sql is not None:
        assert found == sql


def test_what_differs_between_dialects() -> None:
    assert transpile("SELECT layer / 2 AS half FROM LAYERS", dialect="trino") == (
        "SELECT CAST(layer AS DOUBLE) / 2 AS half FROM layers"
    )
    assert transpile("SELECT p FROM FACTS ORDER BY p", dialect="spark").endswith("ORDER BY p NULLS LAST")
    assert transpile("SELECT 'a\\\\b' AS x FROM FACTS", dialect="spark").startswith("SELECT 'a\\\\b'")
    assert "LOWER(subject) LIKE LOWER('fr%')" in transpile(
        "SELECT p FROM FACTS WHERE subject ILIKE 'fr%'", dialect="trino"
    )


def test_views_become_their_queries() -> None:
    # A file of its own.
    sql = "SELECT relationship FROM model_graph"
    assert transpile(sql, dialect="spark") == sql
    assert transpile("SELECT target FROM token_associations", dialect="spark").endswith(
        "FROM triples WHERE source = 'weights') AS token_associations) AS token_associations"
    )
    edges = transpile('SELECT target FROM EDGES WHERE entity = "France"', dialect="trino")
    assert "FROM edges AS e LEFT JOIN facts AS f" in edges and edges.endswith(
        "AS EDGES WHERE entity = 'France'"
    )


@pytest.mark.parametrize("dialect", ["spark", "trino"])
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SELECT unnest(layers, recursive := true) FROM RELATIONS", "function"),
        ("SELECT [x FOR x IN layers] FROM RELATIONS", "function"),
        ("SELECT * FROM EDGES POSITIONAL JOIN FACTS", "POSITIONAL JOIN"),
        ("SELECT * FROM EDGES ASOF JOIN FACTS ON EDGES.layer >= FACTS.rank", "ASOF JOIN"),
        ("SELECT * FROM EDGES SEMI JOIN FACTS ON true", "SEMI JOIN"),
        ("SELECT list(relation ORDER BY p) FROM FACTS", "function"),
        ("SELECT p::FLOAT[3] FROM FACTS", "type"),
        ("SELECT p::INTEGER FROM FACTS", "type"),
        ("SELECT * FROM read_parquet('x.parquet')", "function read_parquet"),
        ("SELECT * FROM range(5)", "function"),
        ("SELECT * EXCLUDE (p) FROM FACTS", "EXCLUDE"),
        ("SELECT COLUMNS('p.*') FROM FACTS", "columns"),
        ("SELECT relation, count(*) FROM FACTS GROUP BY ALL", "GROUP BY ALL"),
        ("SELECT relation FROM FACTS ORDER BY ALL DESC", "ORDER BY ALL"),
        ("SELECT DISTINCT ON (relation) relation FROM FACTS", "DISTINCT ON"),
        ("SELECT * FROM FACTS QUALIFY row_number() OVER (ORDER BY p) = 1", "QUALIFY with *"),
        (
            "WITH RECURSIVE a AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM a WHERE n < 3) SELECT n FROM a",
            "WITH RECURSIVE",
        ),
        (
            "WITH RECURSIVE a(n) USING KEY (n) AS (SELECT 1 UNION ALL SELECT n FROM a) SELECT n FROM a",
            "RECURSIVE",
        ),
        ("SELECT entity FROM ENTITIES WHERE layer = 3", "function"),
        ("SELECT * FROM ENTITIES", "ENTITIES with its layers"),
        ('SELECT * FROM EDGES NEAREST TO "x" AT LAYER 1', "NEAREST TO"),
        ("SELECT concat(subject, object) FROM FACTS", "function concat"),
        ("SELECT greatest(p, 1) FROM FACTS", "function greatest"),
        ("SELECT md5(subject) FROM FACTS", "function"),
        ("SELECT * FROM FACTS LIMIT 10%", ""),
        ("SELECT * FROM FACTS USING SAMPLE 5", ""),
        ("SELECT * FROM (PIVOT FACTS ON relation USING count(*))", ""),
        ('DESCRIBE "France"', "only SELECT over tables"),
        ('DESCRIBE "France" |> SELECT * FROM _', "only SELECT over tables"),
    ],
)
def test_refused_by_name(dialect: str, text: str, named: str) -> None:
    # What sqlglot itself cannot read is refused as a syntax it does not know.
    with pytest.raises((NotSupportedError, LqlSyntaxError)) as caught:
        transpile(text, dialect=dialect)
    if isinstance(caught.value, NotSupportedError):
        assert named in str(caught.value)


def test_unknown_dialect() -> None:
    with pytest.raises(NotSupportedError, match="duckdb, spark or trino"):
        transpile("SELECT 1", dialect="oracle")
