"""Statements in other dialects, and the refusal of everything that would silently mean something else."""

from __future__ import annotations

import pytest
import sqlglot

from larql_duck.commands.transpiling import transpile
from larql_duck.errors import LqlSyntaxError, NotSupportedError
from larql_duck.lowering.engines import ENGINES

DIALECTS = ["spark", "trino", "datafusion"]
TRANSLATED = [
    ("SELECT subject FROM FACTS WHERE p > 0.5", "SELECT subject FROM facts WHERE p > 0.5"),
    ("SELECT entity FROM FACTS WHERE relation = 'a''b'", None),
    ("SELECT relation, count(*) FROM TRIPLES GROUP BY relation HAVING count(*) > 1", None),
    ("SELECT t.subject FROM triples AS t LEFT JOIN facts f ON f.subject = t.subject", None),
    ("WITH a AS (SELECT layer FROM FEATURES) SELECT max(layer) FROM a", None),
]


@pytest.mark.parametrize("dialect", DIALECTS)
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
    assert "WHERE `triples`.`source` = 'weights'" in transpile(
        "SELECT target FROM token_associations", dialect="spark"
    )
    edges = transpile('SELECT target FROM EDGES WHERE entity = "France"', dialect="trino")
    assert 'FROM "edges" AS "e" LEFT JOIN "facts" AS "f"' in edges and "'France'" in edges


@pytest.mark.parametrize("dialect", DIALECTS)
def test_names_are_computed_before_the_engine_sees_them(dialect: str) -> None:
    sql = transpile('NEIGHBORS OF "  The O\'Brien " HOPS 2 RELATIONS "Capital"', dialect=dialect)
    assert "o''brien" in sql.replace("\\'", "''") and "capital" in sql and "Capital" not in sql
    assert all(word not in sql.lower() for word in ("nfc_normalize", "p_entity", "materialized"))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_written_is_its_own_grammar(dialect: str) -> None:
    for text in (
        'DESCRIBE "France"',
        'WALK "France" TOP 3',
        "SHOW RELATIONS",
        "STATS",
        "SELECT * FROM EDGES",
    ):
        sqlglot.parse_one(transpile(text, dialect=dialect), read=ENGINES[dialect])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SELECT unnest(layers, recursive := true) FROM RELATIONS", "function"),
        ("SELECT * FROM EDGES POSITIONAL JOIN FACTS", "POSITIONAL JOIN"),
        ("SELECT * FROM EDGES ASOF JOIN FACTS ON EDGES.layer >= FACTS.rank", "ASOF JOIN"),
        ("SELECT list(relation ORDER BY p) FROM FACTS", "function"),
        ("SELECT p::FLOAT[3] FROM FACTS", "type"),
        ("SELECT p::INTEGER FROM FACTS", "type"),
        ("SELECT * FROM read_parquet('x.parquet')", "function read_parquet"),
        ("SELECT * FROM range(5)", "function"),
        ("SELECT COLUMNS('p.*') FROM FACTS", "columns"),
        ("SELECT DISTINCT ON (relation) relation FROM FACTS", "DISTINCT ON"),
        (
            "WITH RECURSIVE a AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM a WHERE n < 3) SELECT n FROM a",
            "WITH RECURSIVE",
        ),
        (
            "WITH RECURSIVE a(n) USING KEY (n) AS (SELECT 1 UNION ALL SELECT n FROM a) SELECT n FROM a",
            "RECURSIVE",
        ),
        ('SELECT * FROM EDGES NEAREST TO "x" AT LAYER 1', "needs the model"),
        ('WALK "The capital of France is"', "needs the model"),
        ("SELECT [1, 2] AS l FROM FACTS", "a list"),
        ("SELECT row_number() OVER () AS n FROM FACTS", "row_number() without ORDER BY"),
        ("SELECT row_number() OVER () AS n FROM FACTS JOIN EDGES USING (subject)", "row_number() without"),
        ("SELECT max(p), row_number() OVER (ORDER BY relation) AS n FROM FACTS GROUP BY ALL", "GROUP BY ALL"),
        ("SELECT * FROM mine.facts", "another database"),
        ("SELECT concat(subject, object) FROM FACTS", "function concat"),
        ("SELECT greatest(p, 1) FROM FACTS", "function greatest"),
        ("SELECT md5(subject) FROM FACTS", "function"),
        ("SELECT * FROM FACTS LIMIT 10%", ""),
        ("SELECT * FROM FACTS USING SAMPLE 5", ""),
        ("SELECT * FROM (PIVOT FACTS ON relation USING count(*))", ""),
    ],
)
def test_refused_by_name(dialect: str, text: str, named: str) -> None:
    # What sqlglot itself cannot read is refused as a syntax it does not know.
    with pytest.raises((NotSupportedError, LqlSyntaxError)) as caught:
        transpile(text, dialect=dialect)
    if isinstance(caught.value, NotSupportedError):
        assert named in str(caught.value)


def test_unknown_dialect() -> None:
    with pytest.raises(NotSupportedError, match="duckdb, spark, trino or datafusion"):
        transpile("SELECT 1", dialect="oracle")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_parts_that_hold_nothing_are_left_out(dialect: str) -> None:
    one, three = (transpile(f'NEIGHBORS OF "France" HOPS {hops}', dialect=dialect) for hops in (1, 3))
    assert "links_1" in one and "links_2" not in one and "reached_1" not in one
    assert "links_3" in three and "links_4" not in three
    # What is empty still is a row where it is counted, and everything where it is taken away.
    counted = transpile(
        "WITH a AS (SELECT subject FROM EDGES WHERE 1 = 2), b AS (SELECT count(*) AS n FROM a), "
        "c AS (SELECT relation FROM FACTS WHERE subject NOT IN (SELECT subject FROM a) AND p IN (SELECT n FROM b)) "
        "SELECT n, relation FROM b, c",
        dialect=dialect,
    )
    tree = sqlglot.parse_one(counted, read=ENGINES[dialect])
    parts = {cte.alias: cte.this for cte in tree.find_all(sqlglot.exp.CTE)}
    where = parts["c"].args["where"].this
    assert set(parts) == {"a", "b", "c"} and isinstance(where, sqlglot.exp.In)
    assert [table.name for table in where.find_all(sqlglot.exp.Table)] == ["b"]


def test_group_by_all_is_the_columns_by_their_places() -> None:
    sql = transpile("SELECT count(*) AS n, relation, rank FROM FACTS GROUP BY ALL", dialect="trino")
    assert sql.endswith("GROUP BY 2, 3")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_places_in_a_sorted_query_are_places_in_its_order(dialect: str) -> None:
    sql = transpile(
        "SELECT subject, row_number() OVER () AS n FROM (SELECT * FROM (SELECT subject, -p AS key FROM FACTS ORDER BY key))",
        dialect=dialect,
    )
    windows = list(sqlglot.parse_one(sql, read=ENGINES[dialect]).find_all(sqlglot.exp.Window))
    orders = [window.args["order"].sql() for window in windows]
    # Made, handed on under its name, and sorted by.
    assert sql.count("place_1") == 4
    assert len(orders) == 2 and "place_1" in orders[0] and "p" in orders[1]


def test_having_of_what_every_group_has_is_left_out() -> None:
    assert "HAVING" not in transpile("SHOW RELATIONS", dialect="spark")
    assert "HAVING" in transpile("SHOW RELATIONS AT LAYER 3", dialect="spark")
