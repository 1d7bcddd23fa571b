"""Fluency and likeness of texts."""

from __future__ import annotations

import math

import pytest

from larql_duck.editing.text_measures import ReferenceScore, fluency


def test_fluency_is_the_weighted_entropy_of_pairs_and_triples() -> None:
    # a b c d: three pairs, two triples, each once.
    assert fluency("a b c d") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * 1) / 2)
    # Two pairs with 2 and 1 of 3, two triples with 1 each.
    pairs = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert fluency("a b a b") == pytest.approx((2 / 3 * pairs + 4 / 3 * 1) / 2)
    assert fluency("no, no, no") > fluency("no no no no no no") == 0 == fluency("") == fluency("one two")


def test_consistency_is_the_cosine_of_words_by_rarity() -> None:
    score = ReferenceScore(["a city in France", "a river in France", "a piano"])
    assert score("city", "city city") == pytest.approx(1)
    assert score("city", "piano") == 0
    assert score("a city", "a piano") < score("a city", "the city") < 1
    assert score("nothing known", "city") is None and ReferenceScore([""])("a", "a") is None
