"""Which language a text is in, and where it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larql_duck.repl.colours import LqlLexer, fragments
from larql_duck.repl.loop import chunks
from larql_duck.repl.route import is_complete, language, segments


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "blank"),
        (" ; -- x\n/* y */ ;", "blank"),
        ('describe "x"', "lql"),
        ("/* a */ -- b\n; SHOW LAYERS", "lql"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "lql"),
        ("FROM t", "lql"),
        ("(SELECT 1)", "sql"),
        ("! SELECT 1", "sql"),
        ("describes", "sql"),
        ("\ufeffSTATS", "lql"),
        (".help", "command"),
        ("\\q", "command"),
        ("exit;", "command"),
        ("help", "command"),
        ("help me", "sql"),
    ],
)
def test_language(text: str, kind: str) -> None:
    assert language(text) == kind


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", True),
        (".mode", True),
        ("exit", True),
        ("STATS", False),
        ("STATS;", True),
        ("STATS; -- done", True),
        ("STATS; /* not", False),
        ("STATS; SHOW", False),
        ('DESCRIBE "a;', False),
        ('DESCRIBE "a;";', True),
        ('DESCRIBE "a\\";', False),
        ("CREATE TABLE t AS SELECT 1", False),
        ("CREATE TABLE t AS SELECT 'a\\';", True),
        ("CREATE TABLE t AS SELECT 'a'';", False),
        ("FROM t WHERE x = 'a;", False),
        ('FROM "a;"', False),
        ("FROM $$a;$$;", True),
        ("FROM $t$a;$$;", False),
        ("FROM t; -- x", True),
        ("FROM t /* ; */", False),
        ("STATS; CREATE TABLE t AS SELECT 'a\\';", True),
        ("! SELECT 1", False),
        ("! SELECT 1;", True),
    ],
)
def test_complete(text: str, done: bool) -> None:
    assert is_complete(text) is done


def test_pieces_keep_their_places() -> None:
    text = "STATS;\n SHOW LAYERS;\nCREATE TABLE t AS SELECT 'a\\;';\n  STATS; SELECT 1"
    found = segments(text)
    assert [(p.language, p.text.strip()) for p in found] == [
        ("lql", "STATS;\n SHOW LAYERS"),
        ("sql", "CREATE TABLE t AS SELECT 'a\\;'"),
        ("lql", "STATS; SELECT 1"),
    ]
    assert found[2].text.index("STATS") == text.index("  STATS") + 2
    assert found[2].text.count("\n") == 3


def test_plain_sql_stays_whole_at_the_prompt_and_is_split_in_files() -> None:
    text = "CREATE TABLE t AS SELECT 1; STATS;"
    assert [p.language for p in segments(text)] == ["sql"]
    assert [p.language for p in segments(text, each=True)] == ["sql", "lql"]
    assert [p.text for p in segments("! STATS; STATS;")] == [" STATS; STATS;"]


def test_chunks() -> None:
    text = ".mode csv\nSTATS;\nDESCRIBE 'a\n.b';\n.timing off\nSTATS\n"
    found = list(chunks(text))
    assert [c.strip() for c in found] == [".mode csv", "STATS;\nDESCRIBE 'a\n.b';", ".timing off", "STATS"]
    assert [c.count("\n") for c in found] == [1, 4, 1, 6]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(list("aS;'\"`\\-/*!.$ \n"))))
def test_nothing_gets_lost(text: str) -> None:
    """No routing function fails, and every statement of a file is in exactly one piece."""
    is_complete(text)
    for each in (True, False):
        kept = "".join("".join(p.text.split()) for p in segments(text, each=each))
        assert set(kept) <= set(text)
    assert "".join(chunks(text)).split() == text.split() or not text.strip()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_colours_change_no_text(text: str) -> None:
    assert "".join(piece[1] for piece in fragments(text)) == text


def test_colours() -> None:
    from prompt_toolkit.document import Document

    found = [
        (style.removeprefix("class:lql."), text)
        for style, text, *_ in fragments('WALK "x" top 5 |> foo -- c')
        if style
    ]
    assert found == [
        ("keyword", "WALK"),
        ("string", '"x"'),
        ("keyword", "top"),
        ("number", "5"),
        ("pipe", "|>"),
        ("comment", "-- c"),
    ]
    line = LqlLexer().lex_document(Document("STATS 'a\nb' 5"))
    assert "".join(t for _, t, *_ in line(1)) == "b' 5" and line(7) == []
    assert ("class:lql.string", "b'") in line(1)
