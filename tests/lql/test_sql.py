"""The SQL inside LQL: quotes, NEAREST TO, where it ends, and that values stay values."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql import parse, parse_one
from larql_duck.lql import statements as s
from larql_duck.lql.literals import NEAREST_FUNCTION, Sql, quote
from tests.lql import strategies


def query(text: str, **parameters: str | int | float | bool | None) -> Sql:
    statement = parse_one(text, parameters)
    assert isinstance(statement, s.Select)
    return statement.query


def where(text: str) -> Sql:
    statement = parse_one(f"DELETE FROM EDGES {text}")
    assert isinstance(statement, s.Delete)
    return statement.where


@pytest.mark.parametrize(
    ("lql", "text"),
    [
        (
            'SELECT relationship, object FROM model_graph WHERE subject = "France"',
            "SELECT relationship, object FROM model_graph WHERE subject = 'France'",
        ),
        (
            'SELECT "a" AS "b c" FROM "t" JOIN "u" ON "t"."x" = 1',
            'SELECT \'a\' AS "b c" FROM "t" JOIN "u" ON \'t\'."x" = 1',
        ),
        ('WITH "a b" AS (SELECT 1) SELECT * FROM "a b"', 'WITH "a b" AS (SELECT 1) SELECT * FROM "a b"'),
        ("SELECT `odd``name` FROM t", 'SELECT "odd`name" FROM t'),
        ('SELECT * FROM t WHERE a IS DISTINCT FROM "x"', "SELECT * FROM t WHERE a IS DISTINCT FROM 'x'"),
        ('SELECT extract(year FROM "2020-01-01")', "SELECT extract(year FROM '2020-01-01')"),
        ('SELECT a FROM (FROM "x" SELECT a)', 'SELECT a FROM (FROM "x" SELECT a)'),
        ('FROM "x" WHERE a = "b"', "SELECT * FROM \"x\" WHERE a = 'b'"),
        ("FROM x SELECT a", "FROM x SELECT a"),
        ("FROM x UNION ALL FROM y SELECT *", "SELECT * FROM x UNION ALL FROM y SELECT *"),
        (
            "WITH c AS (FROM x) FROM c, (FROM y)",
            "WITH c AS (SELECT * FROM x) SELECT * FROM c, (SELECT * FROM y)",
        ),
        ("SELECT trim(both FROM b) FROM x", "SELECT trim(both FROM b) FROM x"),
        (
            'SELECT "it\'s", \'say "hi"\', "it""s", \'it\'\'s\'',
            "SELECT 'it''s', 'say \"hi\"', 'it\"s', 'it''s'",
        ),
        (r"""SELECT '\d+\\\'' """, r"SELECT '\d+\'''"),
        ("SELECT 1 -- ; c\n , /* |> */ 2", "SELECT 1, 2"),
        ("SELECT {'a': {'b': [1,2]}}, x -> x+1, a->>'$.k', $$a;b$$, E'\\'', -1, 1 - -1", None),
        (
            "SELECT count ( * ) FILTER (WHERE a) OVER (ORDER BY b)",
            "SELECT count(*) FILTER (WHERE a) OVER (ORDER BY b)",
        ),
        (
            "SELECT `from` FROM EDGES WHERE `and` = 5 AND LAYER = 3",
            'SELECT "from" FROM EDGES WHERE "and" = 5 AND LAYER = 3',
        ),
        (
            "SELECT * FROM EDGES WHERE entity IN () AND layer IN (5)",
            "SELECT * FROM EDGES WHERE entity IN () AND layer IN (5)",
        ),
        ("SELECT position('a' IN \"abc\")", "SELECT position('a' IN 'abc')"),
        # A column called name is no BY NAME.
        ("SELECT name FROM EDGES", "SELECT name FROM EDGES"),
    ],
)
def test_text(lql: str, text: str | None) -> None:
    part = query(lql)
    if text is not None:
        assert part.text == text
    assert query(part.lql) == part
    assert query(part.lql).text == part.text
    duckdb.default_connection().extract_statements(part.text)


@pytest.mark.parametrize(
    ("lql", "text"),
    [
        (
            'SELECT * FROM EDGES NEAREST TO "Mozart" AT LAYER 26 LIMIT 20',
            "SELECT * FROM __nearest('EDGES', 'Mozart', 26, NULL) LIMIT 20",
        ),
        (
            'SELECT * FROM EDGES NEAREST TO "it\'s" AT LAYER = 26 BASIS = CONTEXT AS n JOIN t ON n.layer = t.a',
            "SELECT * FROM __nearest('EDGES', 'it''s', 26, 'context') AS n JOIN t ON n.layer = t.a",
        ),
        (
            'SELECT * FROM t, lq.features f NEAREST TO "x" AT LAYER 0 WHERE f.layer = 1',
            "SELECT * FROM t, __nearest('lq.features', 'x', 0, NULL) AS \"f\" WHERE f.layer = 1",
        ),
        (
            'SELECT (SELECT max(distance) FROM EDGES AS "a b" NEAREST TO "x" AT LAYER -1)',
            "SELECT (SELECT max(distance) FROM __nearest('EDGES', 'x', -1, NULL) AS \"a b\")",
        ),
        (
            'SELECT * FROM t JOIN EDGES NEAREST TO "x" AT LAYER 1 ON true',
            "SELECT * FROM t JOIN __nearest('EDGES', 'x', 1, NULL) ON true",
        ),
        ("SELECT nearest FROM t", "SELECT nearest FROM t"),
    ],
)
def test_nearest(lql: str, text: str) -> None:
    part = query(lql)
    assert part.text == text
    assert query(part.lql) == part and query(part.lql).text == text
    calls = [f for f in part.tree.find_all(exp.Anonymous) if f.name == NEAREST_FUNCTION]
    assert len(calls) == lql.count("NEAREST TO")


@pytest.mark.parametrize(
    ("lql", "message"),
    [
        ('SELECT * FROM EDGES NEAREST "x" AT LAYER 2', "expected TO"),
        ("SELECT * FROM EDGES NEAREST TO x AT LAYER 2", "expected the entity as a string"),
        ('SELECT * FROM EDGES NEAREST TO "x"', "expected AT"),
        ('SELECT * FROM EDGES NEAREST TO "x" AT LAYER 2 BASIS INDEX', "EMBEDDING or CONTEXT"),
        ('SELECT * FROM EDGES WHERE layer = 1 NEAREST TO "x" AT LAYER 2', "behind the name of a table"),
        ("SELECT * FROM __nearest('EDGES', 'x', 1, NULL)", "write NEAREST TO"),
        ("WITH a AS (SELECT 1) DELETE FROM t", "only SELECT"),
        ("WITH a AS (PIVOT t ON a USING sum(b)) INSERT INTO t SELECT * FROM a", "only SELECT"),
        ("SELECT (1", "never closed"),
        ("SELECT 1)", "closes nothing"),
        ("SELECT [1)", "expected ]"),
        ("SELECT * FORM EDGES", "did you mean FROM"),
        ("SELECT * FROM t WEHRE a = 1", "did you mean WHERE"),
        ('SELECT (a) "b" FROM t', 'AS "b"'),
        ("SELECT from FROM EDGES", "written `from`"),
        ("SELECT a FROM EDGES ORDER BY limit", "written `limit`"),
        ("DELETE FROM EDGES WHERE and = 5", "written `and`"),
        ('SELECT * FROM EDGES WHERE entity IN "France"', 'IN takes a list: write IN ("France")'),
        ("DELETE FROM EDGES WHERE layer IN 5", "IN takes a list: write IN (5)"),
    ],
)
def test_refused(lql: str, message: str) -> None:
    with pytest.raises(LqlSyntaxError) as caught:
        parse(lql)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("lql", "condition"),
    [
        ('WHERE entity = "x" AND layer = 26 LIMIT 3 DRY RUN', "entity = 'x' AND layer = 26"),
        ("LIMIT 3 WHERE `limit` = 5 DRY RUN", '"limit" = 5'),
        ("WHERE layer > 3 OR (target ILIKE '%a' AND NOT dry IS NULL) LIMIT = 3 DRY RUN", None),
        (
            "WHERE layer IN (SELECT layer FROM t LIMIT 5) LIMIT 3 DRY RUN",
            "layer IN (SELECT layer FROM t LIMIT 5)",
        ),
        ("WHERE layer = 1 DRY RUN LIMIT 3", "layer = 1"),
    ],
)
def test_where_a_condition_ends(lql: str, condition: str | None) -> None:
    statement = parse_one(f"DELETE FROM EDGES {lql}")
    assert isinstance(statement, s.Delete)
    assert (statement.limit, statement.dry_run) == (3, True)
    if condition is not None:
        assert statement.where.text == condition


@pytest.mark.parametrize(
    "lql",
    [
        "SELECT 1",
        "a, b",
        "1 THEN 2 WHEN 3",
        "a = 1 GROUP BY b",
        "a AS b",
        "a = 1) OR (b = 2",
        "a = 1; ",
        "TRUE --",
    ],
)
def test_a_condition_is_one_expression(lql: str) -> None:
    if lql in ("a = 1; ", "TRUE --"):
        assert where(f"WHERE {lql}").text in ("a = 1", "TRUE")
        return
    with pytest.raises(LqlSyntaxError):
        parse(f"DELETE FROM EDGES WHERE {lql}")


def test_where_a_query_ends() -> None:
    insert = parse_one(
        "INSERT INTO EDGES (entity, relation, target) SELECT a, confidence, alpha FROM t "
        'WHERE confidence = 0.5 AND mode = "knn" CONFIDENCE = 0.5 MODE KNN AT LAYER 3'
    )
    assert isinstance(insert, s.Insert) and insert.query is not None
    assert insert.query.text == "SELECT a, confidence, alpha FROM t WHERE confidence = 0.5 AND mode = 'knn'"
    assert (insert.confidence, insert.mode, insert.layer) == (0.5, "knn", 3)
    nested = parse_one(
        'INSERT INTO EDGES (entity, relation, target) SELECT * FROM EDGES NEAREST TO "x" AT LAYER 3 AT LAYER 5'
    )
    assert isinstance(nested, s.Insert) and nested.layer == 5
    export = parse_one('EXPORT SELECT format FROM t GROUP BY ALL INTO "f" FORMAT csv')
    assert isinstance(export, s.Export) and export.format == "csv"
    update = parse_one("UPDATE EDGES SET a = f(1, 2), b = b * 2 WHERE c = 1")
    assert isinstance(update, s.Update)
    assert [(a.column, a.value.text) for a in update.assignments] == [("a", "f(1, 2)"), ("b", "b * 2")]


def test_a_pipe_ends_a_query_and_a_string_does_not() -> None:
    pipe = parse_one('SELECT "|>" AS a |> SELECT * FROM _ WHERE a = ";"')
    assert isinstance(pipe, s.Pipe)
    assert [str(stage) for stage in pipe.stages] == ["SELECT '|>' AS a", "SELECT * FROM _ WHERE a = ';'"]


def test_trees() -> None:
    assert isinstance(query("SELECT a FROM t").tree, exp.Select)
    tree = where('WHERE a = "x" OR b').tree
    assert isinstance(tree, exp.Or) and tree.parent is None
    one = query("SELECT a FROM t")
    assert one.tree is not one.tree, "each access gives a tree that the caller may change"


@settings(max_examples=300, deadline=None)
@given(strategies.texts)
def test_strings_reach_duckdb_as_they_are(text: str) -> None:
    part = query(f"SELECT {quote(text)} AS a, lower('x') AS b")
    assert duckdb.execute(part.text).fetchall() == [(text, "x")]
    bound = query("SELECT $p AS a, lower('x') AS b", p=text)
    assert duckdb.execute(bound.text).fetchall() == [(text, "x")]
    compared = query(f"SELECT * FROM EDGES WHERE entity = {quote(text)}")
    found = duckdb.execute(f"WITH EDGES AS (SELECT $t AS entity) {compared.text}", {"t": text}).fetchall()
    assert found == [(text,)]


@settings(max_examples=200, deadline=None)
@given(strategies.names)
def test_names_reach_duckdb_as_they_are(name: str) -> None:
    ticked = "`" + name.replace("`", "``") + "`"
    part = query(f"SELECT 1 AS {ticked}")
    assert [column[0] for column in duckdb.execute(part.text).description] == [name]


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_bound_values(value: int | float | bool | None) -> None:
    part = query("SELECT * FROM EDGES WHERE lower(a) = $p", p=value)
    assert query(part.lql).text == part.text
    found = duckdb.execute(query("SELECT $p AS a, lower('')", p=value).text).fetchall()
    assert found == [(value, "")]


@settings(max_examples=200, deadline=None)
@given(strategies.plain_queries)
def test_a_query_is_valid_sql(text: str) -> None:
    assert len(duckdb.default_connection().extract_statements(query(text).text)) == 1
