"""The quick audit of training rounds: each fact asked once, in the prompt in which the teacher stated it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from larql_duck.distillation.probes import StatedFact, asked_of
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import TargetProbability, score_targets
from larql_duck.progress import report

# Facts that are asked between two reports of progress.
_PART = 128


def recall(engine: Engine, facts: Sequence[StatedFact]) -> pa.Table:
    """What a student kept of the facts, a row each in their order, with the columns that an audit calls so: subject,
    relation, teacher_object, status, confidence_teacher, p_student.

    kept: every token of the teacher's answer is the student's most probable one; else lost. p_student is the probability
    that the student gives to the whole of that answer.
    """
    asked, scores = asked_of(engine.tokenizer, facts), list[TargetProbability | None]()
    for start in range(0, len(asked), _PART):
        part = asked[start : start + _PART]
        fit = [i for i, (prompt, answer) in enumerate(part) if engine.unfit([*prompt, *answer]) is None]
        found = dict(zip(fit, score_targets(engine, [part[i] for i in fit]), strict=True))
        scores += [found.get(i) for i in range(len(part))]
        report("asking the student", len(scores), len(asked))
    kept = [score is not None and score.greedy for score in scores]
    return pa.table(
        {
            "subject": pa.array([f.subject for f in facts], pa.string()),
            "relation": pa.array([f.relation for f in facts], pa.string()),
            "teacher_object": pa.array([f.object for f in facts], pa.string()),
            "status": pa.array(["kept" if k else "lost" for k in kept], pa.string()),
            "confidence_teacher": pa.array([f.confidence for f in facts], pa.float64()),
            "p_student": pa.array([0.0 if s is None else s.p for s in scores], pa.float64()),
        }
    )
