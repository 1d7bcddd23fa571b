"""AUDIT: teacher and student asked the same questions, and what the student kept of what the teacher states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.distillation.answering import PartyAnswers, ask_party, score_answers
from larql_duck.distillation.carried import WhereItWent, where_it_went
from larql_duck.distillation.parties import Party, open_party
from larql_duck.distillation.questions import AuditQuestion, audit_questions
from larql_duck.distillation.transfer import STATUSES, lacking, transfer_table
from larql_duck.knowledge.entities import UNKNOWN
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.entity_types import NamesTold
from larql_duck.progress import report

# Subjects that could not be asked about, named one by one.
_NAMED = 5


@dataclass(frozen=True)
class Transfer:
    """An audit: the table `transfer`, what should be said beside it, what both parties said, and where what was kept went,
    if that was asked for.
    """

    table: pa.Table
    notices: list[str] = field(default_factory=list)
    teacher: PartyAnswers | None = field(default=None, repr=False)
    student: PartyAnswers | None = field(default=None, repr=False)
    where: WhereItWent | None = field(default=None, repr=False)

    def counts(self) -> dict[str, int]:
        """Status -> number of facts, in a fixed order."""
        found = Counter(self.table["status"].to_pylist())
        return {status: found[status] for status in STATUSES}


class TeacherAudit:
    """Questions, and a teacher that is asked them once; students can be compared with it one after the other.

    checkpoint is a directory in which finished batches are kept and found again.
    """

    def __init__(
        self, teacher: Party, asked: Sequence[AuditQuestion], *, checkpoint: Path | None = None
    ) -> None:
        self.teacher, self.asked = teacher, list(asked)
        self._directory = checkpoint
        self._answers: PartyAnswers | None = None
        self._told: NamesTold | None = None

    @property
    def prompts(self) -> int:
        """How many questions each party is asked."""
        return sum(len(a.relation.entities) for a in self.asked)

    def of(self, student: Party, *, features: bool = False) -> Transfer:
        """What the student kept. Its calibration is its own, else the teacher's; the teacher's likewise.

        features: also which features carry what was kept; see `carried`.
        """
        steps = _Steps(2 * self.prompts)
        if self._answers is None:
            self._answers = ask_party(
                self.teacher, self.asked, checkpoint=self._store(self.teacher), done=steps.done
            )
            self._told = self._answers.read_names()
        else:
            steps.done(self.prompts)
        assert self._told is not None
        teacher = self._answers
        store = self._store(student)
        answers = ask_party(student, self.asked, teacher.stated(), checkpoint=store, done=steps.done)
        told = answers.read_names()
        own, other = self.teacher.known, student.known
        judged = (
            teacher.judged(own.calibration or other.calibration, _with_kinds(self._told, told)),
            answers.judged(other.calibration or own.calibration, _with_kinds(told, self._told)),
        )
        by_teacher = score_answers(teacher, lacking(*judged), checkpoint=self._store(self.teacher))
        table = transfer_table(self.asked, judged, answers, by_teacher)
        notices = _notices(teacher, answers)
        if not features:
            return Transfer(table, notices, teacher, answers)
        table, where = _with_features(table, teacher, answers)
        return Transfer(table, [*notices, *where.notices], teacher, answers, where)

    def _store(self, party: Party) -> Checkpoint:
        return Checkpoint(self._directory, [party.engine.fingerprint, str(party.engine.model.dtype)])


def audit(
    teacher: str | Path | Party,
    student: str | Path | Party,
    *,
    pack: Any = None,
    entities: Any = None,
    relations: Collection[str] | None = None,
    limit: int | None = None,
    features: bool = False,
    checkpoint: Path | None = None,
) -> pa.Table:
    """The table `transfer` of two vindexes or models: one row a question, with its status. See catalog/comparison.txt.

    Asked are the facts that either is known for (else those of the pack 'core'), or those of `pack`, or about `entities`;
    relations picks some by name, limit each relation's first subjects; features: also which features carry what was kept.
    LevelError for a vindex without weights, PackError
    where nothing is left to ask. To compare several students with one teacher, make an `TeacherAudit` once.
    """
    parties = [party if isinstance(party, Party) else open_party(party) for party in (teacher, student)]
    asked = audit_questions(parties, pack=pack, entities=entities, relations=relations, limit=limit)
    run = TeacherAudit(parties[0], asked, checkpoint=checkpoint)
    return run.of(parties[1], features=features).table


def _with_features(
    table: pa.Table, teacher: PartyAnswers, student: PartyAnswers
) -> tuple[pa.Table, WhereItWent]:
    """The table with carried_by, and all that is told of the kept facts."""
    keys = list(zip(table["relation"].to_pylist(), table["subject"].to_pylist(), strict=True))
    kept = [key for key, status in zip(keys, table["status"].to_pylist(), strict=True) if status == "kept"]
    where = where_it_went(teacher, student, kept)
    at = table.schema.get_field_index("carried_by")
    column = pa.array([where.carried_by.get(key) for key in keys], pa.string())
    return table.set_column(at, table.schema.field(at), column), where


def _with_kinds(told: NamesTold, other: NamesTold) -> NamesTold:
    """What a party makes of names; where it tells no types, those that the other one tells, which are the same names. Whether
    the other one has read them says nothing of this one.
    """
    if any(told.kinds.values()):
        return told
    kinds = {name: {t: p for t, p in own.items() if t != UNKNOWN} for name, own in other.kinds.items()}
    return replace(told, kinds=kinds)


class _Steps:
    """Counts prompts and reports them as the stage 'audit'."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total

    def done(self, prompts: int) -> None:
        """So many more prompts are done."""
        self._done += prompts
        report("audit", min(self._done, self._total), self._total)


def _notices(teacher: PartyAnswers, student: PartyAnswers) -> list[str]:
    notices = []
    own, other = teacher.party.known.calibration, student.party.known.calibration
    if not own and not other:
        notices.append(
            "neither model has learnt what confidence means: p, the probability of the whole answer, takes its place"
        )
    elif not other:
        notices.append(
            "the student's confidence is judged with the teacher's calibration: it has none of its own"
        )
    elif not own:
        notices.append(
            "the teacher's confidence is judged with the student's calibration: it has none of its own"
        )
    for side, answers in (("teacher", teacher), ("student", student)):
        for subject, why in list(answers.unasked.items())[:_NAMED]:
            notices.append(f"{subject[:40]!r} was not asked of the {side}: {why}")
        if (more := len(answers.unasked) - _NAMED) > 0:
            notices.append(f"{more} more were not asked of the {side} for such reasons")
    return notices
