"""Whatever the text, parsing gives statements or an LqlSyntaxError, soon."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lql import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_seeded_texts(seed: int) -> None:
    for text in fuzz.texts(seed, 1000):
        fuzz.check(text)


def test_the_generator_makes_valid_texts_too() -> None:
    draw = random.Random(0)
    accepted = 0
    for _ in range(200):
        try:
            fuzz.parse(fuzz.valid(draw))
            accepted += 1
        except fuzz.LqlSyntaxError:
            pass
    assert accepted > 100


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    fuzz.check(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*fuzz.WORDS, *fuzz.PIECES]), max_size=15), st.sampled_from(["", " "]))
def test_any_words(words: list[str], gap: str) -> None:
    fuzz.check(gap.join(words))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [10, 1_200])
def test_deep_nesting_is_bounded(depth: int) -> None:
    for opening, middle, closing in fuzz.NESTS:
        for start in ("SELECT ", "DELETE FROM EDGES WHERE ", ""):
            fuzz.check(start + opening * depth + middle + closing * depth)


SHAPES = [
    "rows",
    "layers",
    "escapes",
    "semicolons",
    "list",
    "condition",
    "brackets",
    "columns",
    "nearest",
    "quotes",
    "words",
    "update",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHAPES, "nested comments", "pipe of queries", "wrong end"])
def test_statements_near_the_size_limit(name: str) -> None:
    # Generous: the bounds are for a quiet machine, and quadratic time would be minutes.
    assert fuzz.check(fuzz.huge()[name]) < 15
