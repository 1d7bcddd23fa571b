"""Where errors point, and what they say."""

from __future__ import annotations

import pytest

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql import parse, parse_one
from larql_duck.lql import statements as s
from larql_duck.lql.tokens import Position
from larql_duck.spelling import closest


def error(text: str) -> LqlSyntaxError:
    with pytest.raises(LqlSyntaxError) as caught:
        parse(text)
    return caught.value


def test_what_stands_before_a_faulty_statement_is_said_not_to_have_run() -> None:
    for text in ("STATS; SHOW FOO", "STATS;\r\nSTATS;\r\nDESCRIBE", 'STATS; DESCRIBE "x'):
        assert str(error(text)).endswith("; nothing of the text was run"), text
        assert error(text).highlight().startswith(f"{error(text)}\n")
    for text in ("SHOW FOO", "SHOW FOO; STATS", "-- a;\n"):
        assert "nothing of the text" not in str(error(text)), text


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "no statement"),
        ("  -- only\r\n /* a comment */ ", 1, 1, "no statement"),
        ('DESCRIBE "France"\r\n  VERBOSE\r\n  TOPP 5', 3, 3, "found TOPP"),
        ('DESCRIBE "Köln 🇫🇷" WRONG', 1, 20, "found WRONG"),
        ('DESCRIBE "two\nlines" WRONG', 2, 8, "found WRONG"),
        ("STATS;\n\tSHOW FOO", 2, 7, "found FOO"),
        ("DESCRIBE France", 1, 10, 'write "France"'),
        ("DESCRIBE", 1, 9, "found the end of the text"),
        ('DESCRIBE "x" |>', 1, 16, "expected a statement"),
        ('WALK "unfinished', 1, 6, "unfinished string"),
        ("STATS /* /* */", 1, 7, "unfinished comment"),
        ("SELECT `a", 1, 8, "unfinished quoted name"),
        ("SELECT $$a", 1, 8, "unfinished string"),
        ("STATS\x0b;", 1, 6, "U+000B"),
        ("STATS\u00a0;", 1, 6, "U+00A0"),
        ("SELECT a\0b", 1, 9, "NUL"),
        ("STATS \ud800", 1, 7, "surrogate"),
        ('WALK "x" LAYERS 9-3', 1, 17, "3-9"),
        ('WALK "x" TOP 99999999999999999999', 1, 14, "above the largest"),
        ('INSERT INTO EDGES (entity, relation, target) VALUES ("a", "r", 5)', 1, 64, "string for target"),
        (
            'INSERT INTO EDGES VALUES ("a", "r", "b")',
            1,
            19,
            "found VALUES: name the columns first, as in EDGES (entity, relation, target) VALUES ...",
        ),
        ('INSERT INTO EDGES SELECT "a", "r", "b"', 1, 19, "found SELECT: name the columns first"),
        (
            'INSERT INTO EDGES (entity, entity, target) VALUES ("a", "r", "b")',
            1,
            28,
            "expected RELATION or TARGET",
        ),
        ('COMPILE CURRENT INTO MODEL "o" ON CONFLICT FAIL', 1, 44, "INTO VINDEX"),
        ('COMPILE CURRENT INTO VINDEX "o" INTO SLOTS', 1, 33, "INTO MODEL"),
        ('COMPILE CURRENT INTO MODEL "o" FORMAT SAFETENSORS Q8_0', 1, 51, "FORMAT GGUF"),
        ('PROBE TEMPLATE "{}"', 1, 16, "exactly one relation"),
        ('INFER "x" BY MEAN', 1, 11, "write ABLATE (layer, feature) BY MEAN"),
        ('EXPLAIN INFER "x" BASIS CONTEXT', 1, 25, "EXPLAIN WALK"),
        ("EXPLAIN SQL EXPLAIN SQL STATS", 1, 13, "not itself"),
        ("DELETE FROM EDGES LIMIT 5", 1, 26, "expected WHERE"),
        ("DELETE FROM EDGES WHERE", 1, 24, "expected a condition"),
        ("SHOW FEATURES 3 LIMIT 5 LIMIT 6", 1, 25, "stands twice"),
        ('EXPORT INTO "f"', 1, 16, "expected FORMAT"),
        ("STATS STATS", 1, 7, "write ; before"),
        ('WALK "x" KNOWLEDGE', 1, 10, "WALK has no clause KNOWLEDGE"),
        ('DESCRIBE "x" LIMIT 5', 1, 14, "|> SELECT * FROM _ LIMIT 5"),
        ("BEGIN TRANSACTION", 1, 7, "BEGIN PATCH"),
        ("DESCRIBE $name", 1, 10, "no value for parameter $name"),
        ('DESCRIBE "ä";\nSELECT "ö", x FROM t\nWHERE = 3', 3, 7, "syntax error"),
        ("DELETE FROM EDGES WHERE lower(a) = ) 3", 1, 36, "closes nothing"),
        ("UPDATE EDGES SET a = lower(b) c WHERE d = 1", 1, 31, "syntax error"),
    ],
)
def test_positions(text: str, line: int, column: int, message: str) -> None:
    found = error(text)
    assert (found.line, found.column) == (line, column), found
    assert message in str(found)
    assert found.exit_code == 2


def test_carets() -> None:
    found = error('DESCRIBE "France"\r\n\tVERBOS')
    assert found.highlight().split("\n")[1:] == ["  \tVERBOS", "  \t^"]
    wide = error('DESCRIBE "日本" WRONG')
    assert wide.column == 15


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ('DESCRIB "x"', "DESCRIBE"),
        ('DESCRIBE "x" VERBOS', "VERBOSE"),
        ('DESCRIBE "x" RELATIONS ONYL', "ONLY"),
        ('DESCRIBE "x" AT LAYERS 3', "LAYER"),
        ('WALK "x" TPO 5', "TOP"),
        ('WALK "x" MODE pur', "PURE"),
        ("SHOW RELATION", "RELATIONS"),
        ("SHOW PATCH", "PATCHES"),
        ('USE MODEL "m" AUTO EXTRACT', "AUTO_EXTRACT"),
        ("SELECT * FROM t GROPU BY a", "GROUP"),
        ("DELETE FROM EDGES WHERE a BETWEN 1 AND 2", "BETWEEN"),
        ("FOOBAR", None),
        ('WALK "x" LAYERS 24 TO 33', None),
    ],
)
def test_suggestions(text: str, suggestion: str | None) -> None:
    found = error(text)
    assert found.suggestion == suggestion
    assert ("did you mean" in str(found)) == (suggestion is not None)


def test_expected_words_are_attributes() -> None:
    assert error('WALK "x" MODE turbo').expected == ("HYBRID", "PURE", "DENSE")
    assert {"TOP", "LAYERS", ";", "|>"} <= set(error('WALK "x" "y"').expected)
    assert "DESCRIBE" in error("FOOBAR").expected


def test_nothing_of_a_text_is_returned_when_its_end_is_wrong() -> None:
    assert error("STATS; STATS; STATS STATS").column == 21


def test_positions_of_statements_and_fields() -> None:
    text = 'STATS;\r\n  WALK "é" TOP 5\r\n  LAYERS 3-4;'
    stats, walk = parse(text)
    assert stats.at == Position(1, 1, 0, 5)
    assert text[walk.at.start : walk.at.end] == 'WALK "é" TOP 5\r\n  LAYERS 3-4'
    assert (walk.at.line, walk.at.column) == (2, 3)
    spans = {name: text[p.start : p.end] for name, p in walk.places.items()}
    assert spans == {"prompt": '"é"', "top": "5", "layers": "3-4"}
    assert (walk.places["layers"].line, walk.places["layers"].column) == (3, 10)


def test_positions_are_not_compared() -> None:
    assert parse_one("STATS") == parse_one("\n\n STATS ;")


def test_parameters_are_values() -> None:
    nasty = 'x"; DELETE FROM EDGES WHERE true; --'
    assert parse("WALK $e TOP $n", {"e": nasty, "n": 5}) == [s.Walk(nasty, top=5)]
    assert parse("WALK $e TOP $n", {"e": 1984, "n": "5"}) == [s.Walk("1984", top=5)]
    assert parse("REBALANCE FLOOR $f", {"f": 0.25}) == [s.Rebalance(floor=0.25)]
    assert parse("STATS $e", {"e": 0}) == [s.Stats("0")]
    for nothing in (None, True):
        with pytest.raises(LqlSyntaxError, match="a string"):
            parse("DESCRIBE $e", {"e": nothing})
    with pytest.raises(LqlSyntaxError, match="whole number"):
        parse("WALK 'x' TOP $n", {"n": "5; STATS"})


@pytest.mark.parametrize(
    ("word", "candidates", "found"),
    [
        ("captial", ["capital", "continent"], "capital"),
        ("CAPITAL", ["capital"], "capital"),
        ("subjet", ["object", "subject"], "subject"),
        ("cap", ["capital"], "capital"),
        ("zzz", ["capital"], None),
        ("x", ["y"], None),
        ("", ["y"], None),
    ],
)
def test_closest(word: str, candidates: list[str], found: str | None) -> None:
    assert closest(word, candidates) == found
