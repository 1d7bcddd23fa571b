"""Confidence: learnt from all evidence, by relation and pooled; nothing is learnt from nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from larql_duck.knowledge.relations import Relation
from larql_duck.probing.combine import combine
from larql_duck.probing.confidence import ENOUGH, Calibration, Graded, fit
from larql_duck.probing.evidence import COLUMNS, LEAST_UNKNOWN, UNKNOWN_NAME, Known, evidence, log_odds
from larql_duck.probing.metrics import bins, ece, figures
from larql_duck.probing.splits import SPLITS, split_of
from tests.probing.support import reply


def test_splits_are_thirds_that_never_change() -> None:
    assert [split_of(s) for s in ("France", "Japan", "Ghana", "gold")] == ["test", "test", "train", "train"]
    assert split_of("FRANCE") == split_of("France")
    counts = [sum(split_of(f"subject {i}") == split for i in range(3000)) for split in SPLITS]
    assert all(900 < n < 1100 for n in counts)


def graded(name: str, n: int, offset: float, seed: int, slope: float = 1.5) -> Graded:
    """Answers that are right with log-odds offset + slope * string: everything else is noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(COLUMNS)))
    rows[:, UNKNOWN_NAME] = log_odds(LEAST_UNKNOWN)
    p = 1 / (1 + np.exp(-(offset + slope * rows[:, 0])))
    return Graded(name, rows, rng.random(n) < p, [f"{name} {i}" for i in range(n)])


def stated(calibration: Calibration, g: Graded, name: str | None = None) -> np.ndarray:
    return np.array([p for p, _ in calibration.judge(g.relation if name is None else name, g.evidence)])


def test_relations_with_other_shares_of_right_answers_get_their_own_intercept() -> None:
    learnt = [graded("good", 150, 2.0, 1), graded("bad", 150, -2.0, 2), graded("even", 150, 0.0, 3)]
    calibration = fit(learnt)
    for name, offset in (("good", 2.0), ("bad", -2.0), ("even", 0.0)):
        fresh = graded(name, 2000, offset, 9)
        confidence = stated(calibration, fresh)
        assert abs(confidence.mean() - fresh.right.mean()) < 0.06
        assert ece(list(zip(confidence, fresh.right, strict=True))) < 0.08
    assert {kind for _, kind in calibration.judge("good", learnt[0].evidence)} == {"relation"}


def test_a_relation_without_references_is_pooled_and_less_sure() -> None:
    learnt = [graded(f"r{i}", 120, offset, i) for i, offset in enumerate((2.0, -2.0, 1.0, -1.0))]
    calibration = fit(learnt)
    assert calibration.spread > 0
    fresh = graded("new", 500, 0.0, 9)
    judged = calibration.judge("new", fresh.evidence)
    assert {kind for _, kind in judged} == {"pooled"}
    own = np.array([p for p, _ in judged])
    sure = stated(Calibration(**{**vars(calibration), "spread": 0.0}), fresh)
    assert np.abs(own - 0.5).mean() < np.abs(sure - 0.5).mean()


def test_an_echo_is_never_likely_where_no_reference_shows_one() -> None:
    zeros = (0.0,) * len(COLUMNS)
    sure = Calibration(zeros, (1.0,) * len(COLUMNS), zeros, 4.0, {"capital": (0.0, 0.0)}, 0.0)
    rows = np.zeros((2, len(COLUMNS)))
    rows[:, UNKNOWN_NAME] = log_odds(LEAST_UNKNOWN)
    rows[1, COLUMNS.index("echo")] = 1
    assert [p for p, _ in sure.judge("new", rows)] == [pytest.approx(0.982, abs=1e-3), 0.5]
    assert [p for p, _ in sure.judge("capital", rows)] == pytest.approx([0.982, 0.982], abs=1e-3)


def test_nothing_is_sure_of_a_name_that_the_model_never_read() -> None:
    zeros = (0.0,) * len(COLUMNS)
    sure = Calibration(zeros, (1.0,) * len(COLUMNS), zeros, 4.0, {"capital": (0.0, 0.0)}, 0.0)
    rows = np.zeros((3, len(COLUMNS)))
    rows[:, UNKNOWN_NAME] = [log_odds(p) for p in (LEAST_UNKNOWN, 0.51, 0.98)]
    assert [p for p, _ in sure.judge("capital", rows)] == pytest.approx([0.982, 0.5, 0.02], abs=1e-2)


def test_few_references_of_a_new_relation_move_its_intercept_alone() -> None:
    known = fit([graded(f"r{i}", 120, offset, i) for i, offset in enumerate((1.0, -1.0, 0.5))])
    few = graded("new", 40, -3.0, 7)
    extended = fit([few], known)
    assert extended.weights == known.weights
    assert {kind for _, kind in extended.judge("new", few.evidence)} == {"relation"}
    fresh = graded("new", 2000, -3.0, 8)
    assert abs(stated(extended, fresh).mean() - fresh.right.mean()) < abs(
        stated(known, fresh).mean() - fresh.right.mean()
    )


def test_nothing_is_learnt_from_nothing() -> None:
    rows = np.zeros((3, len(COLUMNS)))
    assert Calibration().judge("r", rows) == [(None, "none")] * 3
    few = graded("r", ENOUGH - 1, 0.0, 1)
    assert not fit([few])
    always = Graded("r", np.zeros((50, len(COLUMNS))), np.ones(50, bool), [str(i) for i in range(50)])
    assert not fit([always])


def test_a_stored_calibration_judges_as_before() -> None:
    calibration = fit([graded("a", 100, 1.0, 1), graded("b", 100, -1.0, 2)])
    again = Calibration.from_json(json.loads(json.dumps(calibration.as_json())))
    rows = graded("a", 20, 0.0, 3).evidence
    assert again.judge("a", rows) == calibration.judge("a", rows)
    # One that another version learnt from other columns says nothing.
    other = calibration.as_json() | {"columns": ["p"]}
    for value in (other, {}, {"custom": [[0.0, 0.5]]}):
        assert Calibration.from_json(value).judge("a", rows)[0] == (None, "none")


RELATION = Relation(
    "capital", "The capital of a country.", ("The capital of {} is",), expects="city",
    entities=tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), references={c: (f"town {c}",) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
)  # fmt: skip


def column(rows: np.ndarray, name: str) -> list[float]:
    return rows[:, COLUMNS.index(name)].tolist()


def test_evidence_tells_what_speaks_against_an_answer() -> None:
    replies = [reply(c, 0, **{f"town {c}" if c < "U" else "Paris": 0.6}) for c in RELATION.entities]
    replies += [reply("Panama", 0, Panama=0.6)]
    answers = combine(replies, top_n=1)
    rows = evidence(RELATION, answers, {"paris"}, Known(frozenset({"town", "paris"})))
    by_subject = {a.subject: i for i, a in enumerate(answers)}
    assert column(rows, "shared")[by_subject["A"]] == 0 < column(rows, "shared")[by_subject["Z"]]
    assert column(rows, "excess")[by_subject["Z"]] > 1
    assert [column(rows, "copied")[by_subject[c]] for c in "AZ"] == [0, 1]
    assert [column(rows, "echo")[by_subject[c]] for c in ("A", "Panama")] == [0, 1]
    assert column(rows, "unknown_words")[by_subject["Panama"]] == 1
    assert np.isfinite(rows).all()


def test_evidence_never_looks_at_the_answers_own_reference() -> None:
    answers = combine([reply(c, 0, **{f"town {c}": 0.6}) for c in RELATION.entities], top_n=1)
    changed = dict.fromkeys(RELATION.entities, ("elsewhere",))
    for c in RELATION.entities:
        one = Relation(**{**vars(RELATION), "references": RELATION.references | {c: changed[c]}})
        i = next(i for i, a in enumerate(answers) if a.subject == c)
        assert evidence(one, answers)[i].tolist() == evidence(RELATION, answers)[i].tolist()


def test_bins_have_equal_mass() -> None:
    pairs = [(i / 100, i % 2 == 0) for i in range(100)]
    assert [b["n"] for b in bins(pairs, 10)] == [10] * 10
    assert ece([(0.75, True)] * 3 + [(0.75, False)], 1) == pytest.approx(0.0)
    assert ece([(1.0, False)]) == 1.0
    assert figures([]) == {"answered": 0}
