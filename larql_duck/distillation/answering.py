"""What one party says to the questions of an audit: ranked answers with confidences, and how probable others' answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from larql_duck.distillation.parties import Party
from larql_duck.distillation.questions import AuditQuestion
from larql_duck.inference.scoring import answer_ids
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.choosing import Answered, Chosen
from larql_duck.probing.combine import Answer
from larql_duck.probing.confidence import Calibrated, Calibration
from larql_duck.probing.entity_types import NamesTold, told_of_names
from larql_duck.probing.judging import judge, rank, type_index, worth_of
from larql_duck.probing.outcomes import Reply, ScoredAnswer
from larql_duck.probing.pilot import Piloted
from larql_duck.probing.replies import Ask, Asker

# A question: its relation and subject.
QuestionKey: TypeAlias = tuple[str, str]
# PartyAnswers that are kept of each model to a question.
TOP = 3
# Subjects of a relation that are asked before the others, so that these are asked with a prior.
_FIRST = 16


@dataclass(frozen=True)
class Judged:
    """An answer with its confidence, what that was learnt from, and whether it is right (None without a reference)."""

    answer: Answer
    confidence: float | None
    calibrated: Calibrated
    correct: bool | None


@dataclass(frozen=True)
class PartyAnswers:
    """What a party says: for each question its ranked answers (none where it has none), its reply, and what it says of the
    answers that were given with the question. unasked are the subjects that it cannot be asked about, with the reason.
    """

    party: Party
    answered: Sequence[Answered]
    replies: Mapping[QuestionKey, Reply]
    unasked: Mapping[str, str]

    def judged(self, calibration: Calibration, told: NamesTold) -> dict[QuestionKey, list[Judged]]:
        """The ranked answers of each question with an answer, judged by this calibration."""
        known = replace(self.party.known, calibration=calibration)
        judge(self.party.engine, self.answered, known, learn=False, named=told)
        out: dict[QuestionKey, list[Judged]] = {}
        for a in self.answered:
            for answer, (confidence, by), correct in zip(a.answers, a.confidence, a.correct, strict=True):
                key = a.question.relation.name, answer.subject
                out.setdefault(key, []).append(Judged(answer, confidence, by, correct))
        return out

    def stated(self) -> dict[QuestionKey, list[str]]:
        """The ranked answers of each question as texts."""
        out: dict[QuestionKey, list[str]] = {}
        for a in self.answered:
            for answer in a.answers:
                out.setdefault((a.question.relation.name, answer.subject), []).append(answer.object)
        return out

    def read_names(self) -> NamesTold:
        """What the party makes of the subjects' names."""
        names = dict.fromkeys(s for a in self.answered for s in a.question.relation.entities)
        return told_of_names(self.party.engine, self.party.known.types, list(names))


def ask_party(
    party: Party,
    asked: Sequence[AuditQuestion],
    scored: Mapping[QuestionKey, Sequence[str]] | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> PartyAnswers:
    """What the party says to the questions, all in shared batches; `done` is called with the prompts of each batch.

    scored are answers to score along with a question. Priors are those of these replies alone, so that two models with the
    same weights say the same, whatever their vindexes hold.
    """
    asker = Asker(party.engine, checkpoint, done, once=None)
    index = type_index([a.relation for a in asked])
    answered = [
        Answered(Piloted(a.question, worth_of(a.question, index)), Chosen({0: 1.0}, a.contrast))
        for a in asked
    ]
    replies: dict[QuestionKey, Reply] = {}
    given = scored or {}
    for part in (slice(None, _FIRST), slice(_FIRST, None)):
        items, owners = [], []
        for a in answered:
            relation = a.question.relation
            for subject in relation.entities[part]:
                wanted = tuple(given.get((relation.name, subject), ()))
                items.append(Ask(relation, a.question.variants[0], subject, wanted))
                owners.append(a)
        priors = {a.question.relation.name: a.piloted.priors for a in answered}
        for a, item, reply in zip(owners, items, asker.ask(items, priors), strict=True):
            a.piloted.add([reply])
            if reply is not None:
                replies[item.relation.name, item.subject] = reply
    rank(answered, top_n=TOP)
    return PartyAnswers(party, answered, replies, asker.unasked)


def score_answers(
    answers: PartyAnswers,
    given: Mapping[QuestionKey, Sequence[str]],
    *,
    checkpoint: Checkpoint | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> dict[tuple[QuestionKey, str], float]:
    """(question, answer) -> the probability that the party, which was asked before, gives to that whole answer.

    A beginning that is not among those that its reply lists is too rare to matter and counts as 0; an answer of one token
    is read off the reply. Only what is left is run, in shared batches.
    """
    engine = answers.party.engine
    asker = Asker(engine, checkpoint, done, once=None)
    out: dict[tuple[QuestionKey, str], float] = {}
    items: list[Ask] = []
    for a in answers.answered:
        relation, variant = a.question.relation, a.question.variants[0]
        for subject in relation.entities:
            key = relation.name, subject
            reply = answers.replies.get(key)
            if reply is None:
                continue
            left = []
            for text in given.get(key, ()):
                ids = answer_ids(engine.tokenizer, reply.prompt, text)
                first = reply.outcome.top.get(ids[0], 0.0) if ids else 0.0
                if first and len(ids) > 1:
                    left.append(text)
                else:
                    out[key, text] = first
            if left:
                items.append(Ask(relation, variant, subject, tuple(left), decoded=False))
    for item, reply in zip(items, asker.ask(items), strict=True):
        scored: Sequence[ScoredAnswer] = () if reply is None else reply.outcome.scored
        for text, one in zip(item.scored, scored, strict=bool(scored)):
            out[(item.relation.name, item.subject), text] = one.p_string
    return out
