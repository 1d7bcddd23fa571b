"""AUDIT: every fact has the status that the rules give it, and the distances are those of a hand computation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import rel_entr

from larql_duck.distillation.answering import Judged
from larql_duck.distillation.audit import TeacherAudit, _with_kinds, audit
from larql_duck.distillation.parties import Party
from larql_duck.distillation.questions import audit_questions
from larql_duck.distillation.transfer import distance, status_of
from larql_duck.errors import LevelError, ModelError, PackError
from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import answer_ids, score_targets
from larql_duck.knowledge.entities import UNKNOWN
from larql_duck.knowledge.relations import Pack, Relation
from larql_duck.models.opening import open_model
from larql_duck.probing.answers import Asked, ask
from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.confidence import Calibration
from larql_duck.probing.entity_types import NamesTold
from larql_duck.probing.evidence import COLUMNS
from tests.probing.support import reply

SEATS = Relation(
    "seat", "", ("The seat of the {}",),
    entities=("France", "Germany", "Japan", "Spain", "Italy", "Europe"),
    references={"France": ("Paris",), "Germany": ("Berlin",), "Japan": ("Tokyo",), "Italy": ("Rome",)},
)  # fmt: skip
PACK = Pack("seats", (SEATS,))


@pytest.fixture(scope="module")
def parties(bigrams: tuple[Path, Path]) -> tuple[Party, Party]:
    teacher, student = (Engine.load(open_model(path)) for path in bigrams)
    return Party("teacher", teacher), Party("student", student)


def test_every_fact_has_one_status(parties: tuple[Party, Party]) -> None:
    table = audit(*parties, pack=PACK)
    rows = {r["subject"]: r for r in table.to_pylist()}
    assert {s: r["status"] for s, r in rows.items()} == {
        "France": "kept",
        "Germany": "lost",  # another answer, below .5
        "Japan": "changed",  # another answer, surely
        "Spain": "lost",  # silent
        "Italy": "gained",
        "Europe": "neither",
    }
    assert rows["Germany"]["teacher_object"] == "Berlin" and rows["Germany"]["student_object"] == "Rome"
    assert rows["Spain"]["student_object"] is None and rows["Spain"]["p_student"] is None
    assert rows["Italy"]["correct_student"] and rows["Italy"]["teacher_object"] is None
    assert (rows["France"]["rank_in_student"], rows["Europe"]["rank_in_student"]) == (1, None)
    assert rows["Japan"]["rank_in_student"] > 1
    assert rows["Europe"]["kl"] is None
    assert audit(*parties, pack=PACK, limit=2).num_rows == 2


def test_distances_are_those_of_a_hand_computation(parties: tuple[Party, Party]) -> None:
    rows = {r["subject"]: r for r in audit(*parties, pack=PACK).to_pylist()}
    for subject, answers in (("France", ["Paris"]), ("Japan", ["Tokyo", "Rome"])):
        p, q = (
            np.array([_p(party.engine, f"The seat of the {subject}", a) for a in answers])
            for party in parties
        )
        p, q = np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum())
        row, middle = rows[subject], (p + q) / 2
        assert row["kl"] == pytest.approx(rel_entr(p, q).sum(), rel=2e-3)
        # What the teacher gives to an answer beyond its 32 most probable beginnings counts as 0: here some .0008.
        jsd = (rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2
        assert row["jsd"] == pytest.approx(jsd, abs=5e-3)
        assert row["agreement"] == pytest.approx(np.minimum(p, q).sum(), abs=2e-3)
        assert row["missing_teacher"] == pytest.approx(p[-1], abs=1e-3)
        assert row["p_in_student"] == pytest.approx(q[0], rel=1e-3)


def _p(engine: Engine, prompt: str, answer: str) -> float:
    ids = engine.tokenizer.encode(prompt)
    return score_targets(engine, [(ids, answer_ids(engine.tokenizer, prompt, answer))])[0].p


def test_a_model_keeps_all_of_itself(parties: tuple[Party, Party]) -> None:
    for party in parties:
        same = audit(party, Party("the same", party.engine), pack=PACK).to_pylist()
        answered = [r for r in same if r["status"] != "neither"]
        assert answered and {r["status"] for r in answered} == {"kept"}
        assert max(r["kl"] for r in answered) < 1e-6 and min(r["agreement"] for r in answered) > 1 - 1e-6


@pytest.mark.parametrize("other", ["gemma3_text", "gpt2"])
def test_other_tokenizers_answer_the_same_questions(
    parties: tuple[Party, Party], tiny_model, other: str
) -> None:
    engine = Engine.load(open_model(tiny_model(other)))
    table = audit(parties[0], Party(other, engine), pack=PACK)
    assert table["subject"].to_pylist() == list(SEATS.entities)
    assert table["teacher_object"].to_pylist() == ["Paris", "Berlin", "Tokyo", "Madrid", None, None]
    for row in table.to_pylist()[:4]:
        assert 0 <= row["p_in_student"] < 0.1 and 1 <= row["rank_in_student"] <= engine.vocab
        assert row["jsd"] <= math.log(2) + 1e-9


def test_given_answers_are_scored_as_by_a_pass_of_their_own(tiny_model) -> None:
    engine = Engine.load(open_model(tiny_model("llama")))
    prompts = ["The capital of France is", "language of the Japan", "hot"]
    given = [" Paris", " Madrid Rome euro", " Berlin city"]
    ids = engine.tokenizer.encode_batch(prompts)
    answers = [engine.tokenizer.encode(text, special=False) for text in given]
    for decoded in (True, False):
        found = ask(engine, [Asked(row, scored=[*answers, []], decoded=decoded) for row in ids])
        for row, outcome in zip(ids, found, strict=True):
            alone = score_targets(engine, [(row, answer) for answer in answers])
            logits = engine.logits(pad([row]))[0]
            for one, scored, answer in zip(alone, outcome.scored, answers, strict=False):
                assert scored.p_string == pytest.approx(one.p, rel=1e-4)
                assert scored.rank == 1 + int((logits > logits[answer[0]]).sum())
            assert (outcome.scored[-1].p_string, bool(outcome.candidates)) == (
                0.0,
                decoded and bool(outcome.candidates),
            )


def test_the_teacher_is_asked_once_and_batches_are_found_again(
    parties: tuple[Party, Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = audit_questions(parties, pack=PACK)
    first = TeacherAudit(parties[0], asked, checkpoint=tmp_path)
    table = first.of(parties[1]).table

    def forbidden(*_: object) -> None:
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(type(parties[0].engine), "run", forbidden)
        patch.setattr("larql_duck.distillation.audit.PartyAnswers.read_names", lambda self: first._told)
        assert TeacherAudit(parties[0], asked, checkpoint=tmp_path).of(parties[1]).table == table


def _calibration(**weights: float) -> Calibration:
    return Calibration(
        (0.0,) * len(COLUMNS),
        (1.0,) * len(COLUMNS),
        tuple(weights.get(c, 0.0) for c in COLUMNS),
        0.0,
        {"seat": (0.0, 0.0)},
    )


def test_a_student_without_calibration_is_judged_with_the_teachers(parties: tuple[Party, Party]) -> None:
    teacher, student = parties
    asked = audit_questions(parties, pack=PACK)
    calibrated = Party("calibrated", teacher.engine, Knowledge(calibration=_calibration(string=-1.0)))
    made = TeacherAudit(calibrated, asked).of(student)
    assert any("teacher's calibration" in n for n in made.notices)
    rows = {r["subject"]: r for r in made.table.to_pylist()}
    # The less probable, the surer: what was lost is changed, and the other way round.
    assert (rows["Germany"]["status"], rows["Japan"]["status"]) == ("changed", "lost")
    assert rows["Japan"]["confidence_student"] == pytest.approx(1 - rows["Japan"]["p_student"], abs=1e-6)
    neither = TeacherAudit(teacher, asked).of(student)
    assert any("takes its place" in n for n in neither.notices)
    assert set(neither.table["confidence_teacher"].to_pylist()) == {None}
    own = Party("own", student.engine, Knowledge(calibration=_calibration(string=1.0)))
    assert TeacherAudit(calibrated, asked).of(own).table["status"][1].as_py() == "lost"


def test_the_first_rule_that_holds_decides() -> None:
    def judged(
        text: str, p: float = 0.9, confidence: float | None = None, correct: bool | None = None
    ) -> Judged:
        from larql_duck.probing.combine import combine

        (answer,) = combine([reply("S", 0, **{text: p})], top_n=1)
        return Judged(answer, confidence, "none", correct)

    assert status_of(None, None) == "neither"
    assert status_of(judged("A", correct=False), judged("A", correct=True)) == "gained"
    assert status_of(None, judged("A", correct=True)) == "gained"
    assert status_of(None, judged("A")) == "changed"
    assert status_of(judged("the Rome"), judged("rome")) == "kept"
    assert status_of(judged("A"), None) == "lost"
    assert status_of(judged("A"), judged("B", 0.4)) == "lost"
    assert status_of(judged("A"), judged("B", 0.4, confidence=0.5)) == "changed"
    assert status_of(judged("A"), judged("B", 0.9, confidence=0.4)) == "lost"
    assert status_of(judged("A", correct=True), judged("B", 0.9, correct=True)) == "changed"


def test_distances_of_edge_cases() -> None:
    same = distance({"a": 0.3}, {"a": 0.3})
    assert (same.kl, same.jsd, same.agreement) == (0.0, 0.0, 1.0)
    apart = distance({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0})
    assert apart.jsd == pytest.approx(math.log(2)) and apart.agreement == 0.0 and math.isfinite(apart.kl)
    # Sums above 1, of an answer that is the beginning of another, are brought back.
    assert distance({"a": 0.9, "b": 0.6}, {"a": 0.5, "b": 0.5}).missing_teacher == 0.0


def test_refusals(parties: tuple[Party, Party], world: Path, tmp_path: Path) -> None:
    with pytest.raises(LevelError, match="browse"):
        audit(world, parties[1])
    with pytest.raises(ModelError, match="no such file"):
        audit(tmp_path / "none", parties[1])
    with pytest.raises(PackError, match="limit is 0"):
        audit(*parties, pack=PACK, limit=0)
    with pytest.raises(PackError, match="no relation"):
        audit(*parties, pack=PACK, relations=["sea"])


def test_what_the_teacher_never_read_is_nothing_against_a_student_that_tells_no_types() -> None:
    teacher = NamesTold({"Zork": -9.0}, {"Zork": {UNKNOWN: 0.9, "city": 0.1}})
    silent = NamesTold({"Zork": -2.0}, {"Zork": {}})
    assert _with_kinds(silent, teacher) == NamesTold({"Zork": -2.0}, {"Zork": {"city": 0.1}})
    assert _with_kinds(teacher, silent) is teacher
