"""Characters -> tokens: literals, comments, positions, and the splitting of scripts."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql.literals import quote
from larql_duck.lql.tokens import MAX_STATEMENT_BYTES, TokenKind, decode_string, split, tokenize


def pairs(text: str) -> list[tuple[str, str]]:
    tokens = tokenize(text)
    return [(kind.name, value) for kind, value in zip(tokens.kinds, tokens.values, strict=True)][:-1]


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ('"it\'s"', "it's"),
        ("'it''s'", "it's"),
        ("'it\\'s'", "it's"),
        ('"a""b"', 'a"b'),
        ("\"a''b\"", "a''b"),
        (r'"\n\t\r\0\\\""', '\n\t\r\0\\"'),
        (r'"\q"', "q"),
        (r'"\é"', "é"),
        ('"two\nlines"', "two\nlines"),
        (r"'\\''x'", "\\'x"),
        ('""', ""),
        ('"-- no /* no"', "-- no /* no"),
    ],
)
def test_strings(literal: str, text: str) -> None:
    assert pairs(literal) == [("STRING", text)]


def test_regular_expressions_keep_their_backslashes() -> None:
    assert decode_string(r"'\d+\.\w\'\\'", keep_unknown=True) == r"\d+\.\w'" + "\\"


def test_kinds() -> None:
    assert pairs("walk `a``b` 1e-3 .5 |> != E'x' $$y$$ order \n by ß") == [
        ("WORD", "WALK"),
        ("NAME", "a`b"),
        ("NUMBER", "1e-3"),
        ("OPERATOR", "."),
        ("NUMBER", "5"),
        ("OPERATOR", "|>"),
        ("OPERATOR", "!="),
        ("RAW", "E'x'"),
        ("RAW", "$$y$$"),
        ("WORD", "ORDER BY"),
        ("WORD", "SS"),
    ]


def test_commands_of_sqlglot_are_plain_words() -> None:
    assert pairs("SHOW a; EXPLAIN b; FETCH c")[:3] == [("WORD", "SHOW"), ("WORD", "A"), ("OPERATOR", ";")]


def test_templating_is_not_read() -> None:
    assert " ".join(v for _, v in pairs("{# a #} {{b}} {% c %}")) == "{ # A # } { { B } } { % C % }"


@pytest.mark.parametrize("comment", ["-- x\n", "-- x\r\n", "--\n", "/* x */", "/* /* x */ ' */", "/**/"])
def test_comments(comment: str) -> None:
    assert pairs(f"A {comment} B{comment}") == [("WORD", "A"), ("WORD", "B")]


def test_a_byte_order_mark_is_white_space() -> None:
    assert pairs("\ufeffSTATS") == [("WORD", "STATS")]
    with pytest.raises(LqlSyntaxError):
        tokenize("STATS \ufeff;")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_and_columns(newline: str) -> None:
    text = f"a{newline}  bé{newline}{newline}'x{newline}y' c"
    tokens = tokenize(text)
    places = [tokens.position(i) for i in range(len(tokens) - 1)]
    assert [(p.line, p.column, text[p.start : p.end]) for p in places] == [
        (1, 1, "a"),
        (2, 3, "bé"),
        (4, 1, f"'x{newline}y'"),
        (5, 4, "c"),
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=5))
def test_quoted_texts_come_back(texts: list[str]) -> None:
    assert pairs(" ".join(map(quote, texts))) == [("STRING", text) for text in texts]
    doubled = ["'" + t.replace("\\", "\\\\").replace("'", "''") + "'" for t in texts]
    assert pairs(" ".join(doubled)) == [("STRING", text) for text in texts]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("a;b", ["a", "b"]),
        ("a;;", ["a", "", ""]),
        ("';' \";\" `;` -- ;\n/* ; /* ; */ ; */ $$;$$ $t$;$t$;b", None),
        (r"'\';' ; b", [r"'\';' ", " b"]),
        ("a -- ;", ["a -- ;"]),
        ("a //* 2; b", ["a //* 2", " b"]),
    ],
)
def test_split(text: str, pieces: list[str] | None) -> None:
    found = [text[start:end] for start, end in split(text)]
    assert found == (pieces or [text[:-2], "b"])


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list("ab;'\"`\\-/* \n$|"))), st.booleans())
@example("$;a$", False)
@example("$'a$", False)
def test_split_agrees_with_the_tokens(text: str, more: bool) -> None:
    """Semicolons that are tokens are where the pieces end; what one calls unfinished the other does, too."""
    try:
        tokens = tokenize(text, {})
    except LqlSyntaxError as error:
        if "unfinished" in str(error):
            with pytest.raises(LqlSyntaxError, match="unfinished"):
                list(split(text))
        return
    semicolons = [tokens.starts[i] for i in range(len(tokens)) if tokens.is_operator(i, ";")]
    assert [end for _, end in split(text)] == [*semicolons, len(text)]


def test_size_limit() -> None:
    # The limit is a statement's, not the text's.
    n = 2 * MAX_STATEMENT_BYTES // len("STATS;") + 1
    assert tokenize("STATS;" * n).kinds.count(TokenKind.OPERATOR) == n
    with pytest.raises(LqlSyntaxError, match="kB") as caught:
        tokenize("STATS;\n  DESCRIBE '" + "é" * 140_000 + "';")
    assert (caught.value.line, caught.value.column) == (2, 3)
