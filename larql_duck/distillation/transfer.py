"""The table `transfer`: teacher's and student's answers side by side, what became of each fact, and how far both are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from larql_duck.catalog.comparison_tables import table_of
from larql_duck.distillation.answering import Judged, PartyAnswers, QuestionKey
from larql_duck.distillation.questions import AuditQuestion, entity_type_of
from larql_duck.knowledge.keys import name_key
from larql_duck.probing.splits import TEST, split_of

TransferStatus: TypeAlias = Literal["neither", "gained", "kept", "lost", "changed"]
STATUSES: tuple[TransferStatus, ...] = ("kept", "lost", "changed", "gained", "neither")
# An answer is stated surely from here on: by its confidence, or by its p where nothing taught confidence.
SURE = 0.5
# No probability counts as less where it is divided by.
_LEAST = 1e-12


def sureness(judged: Judged) -> float:
    """The answer's confidence, and the probability of all of it where nothing taught confidence."""
    return judged.answer.p_string if judged.confidence is None else judged.confidence


def status_of(teacher: Judged | None, student: Judged | None) -> TransferStatus:
    """What became of a fact: the first status that holds of neither, gained, kept, lost, changed."""
    if teacher is None and student is None:
        return "neither"
    if student is not None and student.correct and (teacher is None or not teacher.correct):
        return "gained"
    if teacher is not None and student is not None:
        if name_key(teacher.answer.object) == name_key(student.answer.object):
            return "kept"
        return "lost" if sureness(student) < SURE else "changed"
    return "changed" if teacher is None else "lost"


@dataclass(frozen=True)
class Distance:
    """How far two distributions over whole answers are apart; kl and jsd in nats. The answers that neither states are one
    more, of probability missing_teacher and missing_student.
    """

    kl: float
    jsd: float
    agreement: float
    missing_teacher: float
    missing_student: float


def distance(teacher: Mapping[str, float], student: Mapping[str, float]) -> Distance:
    """The Distance of the probabilities that both give to the same answers."""
    p, q = _whole(list(teacher.values())), _whole([student[key] for key in teacher])
    middle = (p + q) / 2
    jsd = (_kl(p, middle) + _kl(q, middle)) / 2
    return Distance(_kl(p, q), jsd, float(np.minimum(p, q).sum()), float(p[-1]), float(q[-1]))


def _whole(stated: Sequence[float]) -> np.ndarray:
    """The probabilities with what is missing behind them; they sum to 1."""
    p = np.array([*stated, max(0.0, 1.0 - math.fsum(stated))], np.float64)
    # An answer that goes on with another one's words is counted in both.
    return p / p.sum()


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    some = p > 0
    return max(0.0, float((p[some] * np.log(p[some] / np.maximum(q[some], _LEAST))).sum()))


def transfer_table(
    asked: Sequence[AuditQuestion],
    sides: tuple[Mapping[QuestionKey, list[Judged]], Mapping[QuestionKey, list[Judged]]],
    student: PartyAnswers,
    by_teacher: Mapping[tuple[QuestionKey, str], float],
) -> pa.Table:
    """The table `transfer`, in the order of the questions.

    sides are the teacher's and the student's judged answers. The student was asked with the teacher's answers to score;
    by_teacher is what the teacher gives to answers of the student alone.
    """
    types = entity_type_of(asked)
    return table_of(
        "transfer",
        (
            _row(a, subject, types[a.relation.name, subject], sides, student, by_teacher)
            for a in asked
            for subject in a.relation.entities
        ),
    )


def _row(
    asked: AuditQuestion,
    subject: str,
    kind: str,
    sides: tuple[Mapping[QuestionKey, list[Judged]], Mapping[QuestionKey, list[Judged]]],
    student: PartyAnswers,
    by_teacher: Mapping[tuple[QuestionKey, str], float],
) -> dict[str, Any]:
    relation = asked.relation
    key = relation.name, subject
    own, others = (side.get(key, []) for side in sides)
    teacher_best, student_best = (judged[0] if judged else None for judged in (own, others))
    reply = student.replies.get(key)
    # In the order of the teacher's ranked answers, which the student was asked about.
    scored = reply.outcome.scored if reply is not None else ()
    by_student = dict(zip((j.answer.object for j in own), scored, strict=False))
    row: dict[str, Any] = {
        "subject": subject,
        "relation": relation.name,
        "status": status_of(teacher_best, student_best),
        "type": kind,
        "reference": relation.references.get(subject),
        "held_out": split_of(subject) == TEST,
    }
    for side, best in (("teacher", teacher_best), ("student", student_best)):
        if best is not None:
            row |= {
                f"{side}_object": best.answer.object,
                f"p_{side}": best.answer.p_string,
                f"confidence_{side}": best.confidence,
                f"correct_{side}": best.correct,
            }
    if teacher_best is not None:
        row["object_key"] = name_key(teacher_best.answer.object)
        if given := by_student.get(teacher_best.answer.object):
            row |= {"rank_in_student": given.rank, "p_in_student": given.p_string}
    if teacher_best is not None or student_best is not None:
        p = _probabilities(
            own, {o.answer.object: by_teacher.get((key, o.answer.object), 0.0) for o in others}
        )
        q = _probabilities(others, {text: one.p_string for text, one in by_student.items()})
        row |= vars(distance({k: p.get(k, 0.0) for k in {**p, **q}}, {k: q.get(k, 0.0) for k in {**p, **q}}))
    return row


def _probabilities(own: Sequence[Judged], given: Mapping[str, float]) -> dict[str, float]:
    """QuestionKey of an answer -> its probability: of the model's own answers as it states them, of others as they were scored."""
    out: dict[str, float] = {}
    for judged in own:
        key = name_key(judged.answer.object)
        out[key] = out.get(key, 0.0) + judged.answer.p_string
    stated = frozenset(out)
    for text, p in given.items():
        key = name_key(text)
        if key not in stated:
            out[key] = out.get(key, 0.0) + p
    return out


def lacking(
    teacher: Mapping[QuestionKey, list[Judged]], student: Mapping[QuestionKey, list[Judged]]
) -> dict[QuestionKey, list[str]]:
    """The student's answers that the teacher does not state, by question."""
    return dict(_lacking(teacher, student))


def _lacking(
    teacher: Mapping[QuestionKey, list[Judged]], student: Mapping[QuestionKey, list[Judged]]
) -> Iterator[tuple[QuestionKey, list[str]]]:
    for key, judged in student.items():
        stated = {name_key(j.answer.object) for j in teacher.get(key, ())}
        if new := [j.answer.object for j in judged if name_key(j.answer.object) not in stated]:
            yield key, new
