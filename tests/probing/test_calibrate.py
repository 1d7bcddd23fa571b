"""Confidence: calibrated where there are references, p itself elsewhere; the figures that judge it."""

from __future__ import annotations

import itertools
import random

import pytest

from larql_duck.knowledge.relations import Relation
from larql_duck.probing.calibrate import (
    SPLITS,
    VALIDATION,
    Calibration,
    RelationReplies,
    calibrate,
    isotonic,
    logistic,
    split_of,
    template_weights,
)
from larql_duck.probing.metrics import bins, ece, figures
from larql_duck.probing.outcomes import Reply
from tests.probing.support import reply


def world(n: int, seed: int = 0, family: str = "geo", name: str = "capital") -> RelationReplies:
    """n subjects whose answer is right with probability p squared: p overstates, and calibration must say so."""
    rng = random.Random(seed)
    replies: list[Reply] = []
    references: dict[str, tuple[str, ...]] = {}
    for i in range(n):
        subject, p = f"{name} {i}", rng.random()
        references[subject] = ("right",)
        replies.append(reply(subject, 0, **{"right" if rng.random() < p * p else "wrong": max(p, 0.1)}))
    relation = Relation(name, "", family, ("{} is",), entities=tuple(references), references=references)
    return RelationReplies(relation, tuple(replies))


def test_the_splits_are_fixed_and_even() -> None:
    assert [split_of(s) for s in ("France", "Japan", "Ghana", "gold")] == ["test", "test", "train", "train"]
    assert split_of("FRANCE") == split_of("France")
    counts = [sum(split_of(f"subject {i}") == split for i in range(3000)) for split in SPLITS]
    assert all(900 < c < 1100 for c in counts)


def test_confidence_says_how_often_answers_are_right() -> None:
    judged = calibrate([world(4000)])
    confidence = judged.report["pooled"]["confidence"]
    raw = judged.report["pooled"]["p"]
    assert confidence["ece"] < 0.05 < raw["ece"]
    assert confidence["brier"] < raw["brier"]
    assert confidence["auroc"] == pytest.approx(raw["auroc"], abs=0.02)
    assert all(calibrated for _, calibrated in judged.confidence[0])


def test_confidence_never_falls_as_the_score_rises() -> None:
    judged = calibrate([world(400)])
    pairs = sorted((f.score, c) for f, (c, _) in zip(judged.answers[0], judged.confidence[0], strict=True))
    assert all(a[1] <= b[1] + 1e-12 for a, b in itertools.pairwise(pairs))
    assert all(0 <= c <= 1 for _, c in pairs)


def test_without_references_confidence_is_p() -> None:
    replies = (reply("A", 0, x=0.7), reply("B", 0, y=0.4))
    judged = calibrate([RelationReplies(Relation("r", "", "f", ("{} is",), entities=("A", "B")), replies)])
    assert judged.confidence == [[(0.7, False), (0.4, False)]]
    assert judged.report == {"pooled": None, "relations": {}}
    assert judged.calibration == Calibration()


def test_too_few_references_calibrate_nothing() -> None:
    assert not any(calibrated for _, calibrated in calibrate([world(20)]).confidence[0])


def test_an_earlier_calibration_serves_its_family() -> None:
    earlier = calibrate([world(600)]).calibration
    stored = Calibration.from_json(earlier.as_json())
    relation = Relation("other", "", "geo", ("{} is",), entities=("A",))
    judged = calibrate([RelationReplies(relation, (reply("A", 0, x=0.9),))], known=stored)
    ((value, calibrated),) = judged.confidence[0]
    assert calibrated and value == pytest.approx(earlier.confidence("geo", 0.9))


def test_small_families_share_the_pooled_map() -> None:
    judged = calibrate([world(600), world(12, 1, "small", "rare")])
    assert judged.calibration.maps["small"] == judged.calibration.maps[""]


def test_templates_that_mislead_are_left_out() -> None:
    references = {f"s{i}": ("right",) for i in range(90)}
    relation = Relation(
        "r", "", "f", ("a {}", "b {}", "c {}"), entities=tuple(references), references=references
    )
    replies = []
    for i, subject in enumerate(references):
        replies.append(reply(subject, 0, right=0.5))
        replies.append(reply(subject, 1, wrong=0.9))  # sure, and always wrong
        replies.append(reply(subject, 2, **{"right" if i % 2 else "wrong": 0.4}))
    weights = template_weights(relation, replies)
    assert set(weights) == {0, 2} and weights[0] == 1.0 > weights[2]
    judged = calibrate([RelationReplies(relation, tuple(replies))])
    assert judged.report["pooled"]["accuracy"] == 1.0
    assert judged.weights == [weights]
    assert {f.object for f in judged.answers[0] if f.rank == 1} == {"right"}


def test_templates_are_weighed_on_the_validation_split_alone() -> None:
    references = {f"s{i}": ("right",) for i in range(90)}
    relation = Relation("r", "", "f", ("a {}", "b {}"), entities=tuple(references), references=references)
    replies = []
    for subject in references:
        good = split_of(subject) == VALIDATION
        replies.append(reply(subject, 0, **{"right" if good else "wrong": 0.5}))
        replies.append(reply(subject, 1, **{"wrong" if good else "right": 0.5}))
    assert set(template_weights(relation, replies)) == {0}


@pytest.mark.parametrize("fit", [logistic, isotonic])
def test_maps_survive_what_little_data_gives(fit) -> None:
    for graded in ([], [(0.4, True)], [(0.4, True), (0.4, False)], [(0.9, False), (0.1, True)]):
        points = fit(graded)
        assert all(0 < y < 1 for _, y in points)
        assert [y for _, y in points] == sorted(y for _, y in points)


def test_figures() -> None:
    def of_p(*pairs: tuple[float, bool]) -> dict[str, float | None]:
        return figures([(0.0, p, right) for p, right in pairs])["p"]

    assert of_p((0.9, True), (0.8, False), (0.7, True), (0.1, False))["auroc"] == pytest.approx(0.75)
    assert of_p((0.5, True), (0.5, False))["auroc"] == pytest.approx(0.5)
    assert of_p((0.5, True))["auroc"] is None
    assert of_p((0.8, True), (0.3, False))["brier"] == pytest.approx((0.04 + 0.09) / 2)
    assert of_p((0.8, True), (0.7, True))["brier"] == pytest.approx((0.04 + 0.09) / 2)
    assert ece([(0.7, True)] * 7 + [(0.7, False)] * 3, n_bins=1) == pytest.approx(0.0)
    assert bins([(0.2, False), (0.4, True)], 1) == [
        {"probability": pytest.approx(0.3), "accuracy": 0.5, "n": 2}
    ]
    assert ece([(1.0, False), (1.0, False)]) == pytest.approx(1.0)
