"""Replies made into ranked facts."""

from __future__ import annotations

import pytest

from larql_duck.probing.combine import combine
from larql_duck.probing.outcomes import NO_ARTICLE, Candidate, Outcome, Reply
from tests.probing.support import reply


def test_p_is_the_mean_over_the_templates_that_agree() -> None:
    facts = combine(
        [
            reply("France", 0, Paris=0.8, Rome=0.1),
            reply("France", 1, Paris=0.6),
            reply("France", 2, Lyon=0.5, Paris=0.2),
        ]
    )
    best = facts[0]
    assert (best.object, best.rank, best.n_templates) == ("Paris", 1, 2)
    assert best.p == pytest.approx((0.8 + 0.6) / 2)
    assert best.score == pytest.approx((0.8 + 0.6 + 0.2) / 3)
    # Its features are read where it is surest.
    assert (best.prompt, best.variant) == ("template 0 about France", 0)


def test_the_answer_of_most_templates_beats_the_surest_one() -> None:
    facts = combine([reply("X", 0, a=0.5), reply("X", 1, a=0.5), reply("X", 2, b=0.9)])
    assert [(f.object, f.rank, f.n_templates) for f in facts] == [("a", 1, 2), ("b", 2, 1)]
    assert facts[1].p == pytest.approx(0.3)
    assert facts[0].p > facts[1].p


def test_ranks_never_rise_in_p() -> None:
    facts = combine([reply("X", 0, a=0.4, b=0.35, c=0.11), reply("X", 1, b=0.3, a=0.25, c=0.2)], top_n=5)
    assert [f.rank for f in facts] == [1, 2, 3]
    assert sorted((f.p for f in facts), reverse=True) == [f.p for f in facts]


def test_answers_that_differ_in_writing_are_one() -> None:
    facts = combine([reply("X", 0, Yen=0.3, yen=0.2), reply("X", 1, yen=0.6)])
    assert [(f.object, f.p, f.n_templates) for f in facts] == [("yen", pytest.approx(0.55), 2)]


def test_no_more_answers_than_asked_for() -> None:
    replies = [reply("X", 0, a=0.3, b=0.2, c=0.15, d=0.1)]
    assert len(combine(replies, top_n=2)) == 2
    assert len(combine(replies, top_n=1)) == 1


def test_ties_go_to_the_answer_that_came_first() -> None:
    replies = [reply("X", 0, b=0.4), reply("X", 1, a=0.4)]
    assert combine(replies)[0].object == "b"
    assert combine(replies) == combine(list(replies))


def test_a_subject_without_answers_has_no_facts() -> None:
    assert [f.subject for f in combine([reply("X"), reply("Y", a=0.5)])] == ["Y"]


def test_prior_is_the_mean_over_the_other_subjects() -> None:
    facts = combine([reply("A", 0, English=0.6), reply("B", 0, English=0.2), reply("C", 0, Thai=0.9)])
    prior = {f.subject: f.prior for f in facts if f.rank == 1}
    # As if one more subject had said nothing of it.
    assert prior["A"] == pytest.approx((0.2 + 0.0) / 3)
    assert prior["B"] == pytest.approx((0.6 + 0.0) / 3)
    assert prior["C"] == pytest.approx(0.0)
    assert combine([reply("A", 0, English=0.6)])[0].prior is None


def test_the_whole_answer_is_never_more_probable_than_its_beginning() -> None:
    def ask(variant: int, p: float, p_string: float) -> Reply:
        candidate = Candidate("Buenos Aires", 7, NO_ARTICLE, p, p_string)
        return Reply("Argentina", variant, "", Outcome(7, " Buenos", p, 1.0, {7: p}, (candidate,)))

    fact = combine([ask(0, 0.4, 0.3), ask(1, 0.8, 0.4)])[0]
    assert fact.p == pytest.approx(0.6)
    assert fact.p_string == pytest.approx(0.6 * (0.75 + 0.5) / 2)


def test_a_template_in_which_the_answer_was_not_decoded_counts_its_first_token() -> None:
    facts = combine([reply("X", 0, a=0.5), reply("X", 1, b=0.5, a=0.05)])
    assert facts[0].score == pytest.approx((0.5 + 0.05) / 2)


def test_weights_say_how_much_a_template_counts() -> None:
    replies = [reply("X", 0, a=0.6), reply("X", 1, b=0.8), reply("X", 2, c=0.99)]
    facts = combine(replies, weights={0: 1.0, 1: 0.5})
    assert [(f.object, f.score) for f in facts] == [
        ("a", pytest.approx(0.6 / 1.5)),
        ("b", pytest.approx(0.4 / 1.5)),
    ]
    assert facts[0].p == pytest.approx(0.6)


def test_contrast_sets_an_answer_against_what_is_said_of_everybody() -> None:
    replies = [reply(name, 0, capital=0.6, **{city: 0.3}) for name, city in zip("ABCD", "wxyz", strict=True)]
    plain = [f for f in combine(replies) if f.rank == 1]
    assert {f.object for f in plain} == {"capital"}
    best = [f for f in combine(replies, contrast=1.0) if f.rank == 1]
    assert [f.object for f in best] == ["w", "x", "y", "z"]
    # p stays the model's own probability.
    assert [f.p for f in best] == pytest.approx([0.3] * 4)
    assert all(f.contrast > 3 for f in best) and all(f.contrast < 0.4 for f in plain)


def test_worth_drops_and_sets_back_answers() -> None:
    replies = [reply("A", 0, noun=0.6, region=0.3, city=0.1)]
    worth = {"noun": 0.0, "region": 0.25, "city": 1.0}
    facts = combine(replies, worth=lambda subject, text: worth[text])
    assert [(f.object, f.rank) for f in facts] == [("city", 1), ("region", 2)]
    assert facts[1].p == pytest.approx(0.3)
    # The model gave it; nothing else is put in its place.
    assert combine([reply("A", 0, noun=0.9)], worth=lambda subject, text: 0.0) == []


def test_an_answer_tells_how_clear_it_is() -> None:
    facts = combine(
        [reply("A", 0, a=0.6, b=0.3), reply("A", 1, a=0.4, b=0.5)], weights={0: 1.0, 1: 0.5}, top_n=2
    )
    assert [f.object for f in facts] == ["a", "b"]
    assert facts[0].agreement == pytest.approx(1.0 / 1.5)
    assert facts[0].margin > 0 and facts[0].n_variants == 2
