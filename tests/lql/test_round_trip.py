"""Printing a statement and parsing it again gives the same statement, however it was written."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from larql_duck.lql import parse, parse_one
from larql_duck.lql import statements as s
from larql_duck.lql.literals import Sql
from larql_duck.lql.statements import Statement
from larql_duck.lql.tokens import TokenKind, tokenize
from tests.lql import strategies

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def test_every_kind_has_a_strategy() -> None:
    kinds = {c for c in vars(s).values() if isinstance(c, type) and issubclass(c, Statement)}
    assert kinds - {Statement, s.Pipe, s.ExplainSql} == set(strategies.STATEMENTS)


@pytest.mark.parametrize("kind", list(strategies.STATEMENTS), ids=lambda k: k.__name__)
def test_each_kind(kind: type[Statement]) -> None:
    @QUICK
    @given(strategies.STATEMENTS[kind])
    def check(statement: Statement) -> None:
        assert parse(str(statement)) == [statement]

    check()


@LONG
@given(st.lists(strategies.statements, min_size=1, max_size=3))
def test_texts_of_several_statements(wanted: list[Statement]) -> None:
    # A pipe that EXPLAIN SQL begins belongs to it as a whole.
    assert parse(";\n;".join(map(str, wanted)) + ";") == wanted


@LONG
@given(strategies.statements, st.integers(0, 2**32))
def test_case_white_space_and_comments_do_not_matter(statement: Statement, seed: int) -> None:
    text, draw = str(statement), random.Random(seed)
    tokens = tokenize(text)
    gaps = ["\n", "\r\n", "  ", "\t", " -- x; 'y\n", '/* " /* ; */ */']
    parts: list[str] = []
    in_sql = isinstance(statement, s.Pipe) or any(
        isinstance(getattr(statement, name, None), Sql | Statement)
        for name in ("query", "where", "statement")
    )
    for i in range(len(tokens) - 1):
        raw = tokens.raw(i)
        # Names in SQL keep their spelling; the words of LQL do not.
        recase = not in_sql and tokens.kinds[i] is TokenKind.WORD
        parts.append(draw.choice([raw.lower(), raw.upper(), raw.title()]) if recase else raw)
        glued = tokens.touches(i + 1)
        parts.append("" if glued else draw.choice(gaps))
    assert parse("".join(parts)) == [statement]


@LONG
@given(strategies.single)
def test_equality_means_the_same_text(statement: Statement) -> None:
    again = parse_one(f"  {statement} ;")
    assert again == statement and hash(again) == hash(statement)
    assert str(again) == str(statement)
    assert repr(again) == repr(statement)


def test_layer_ranges_with_minus_signs_are_no_comments() -> None:
    walk = s.Walk("x", layers=((-5, -3), (-2, 4), (7, 7)))
    assert parse(str(walk)) == [walk]
    assert not re.search("--", str(walk))
