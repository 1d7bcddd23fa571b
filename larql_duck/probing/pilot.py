"""Which prompts are worth their cost in this model: a few subjects asked in every way, the worse ways dropped in rounds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from larql_duck.probing.combine import Worth, combine, is_right
from larql_duck.probing.outcomes import Reply
from larql_duck.probing.priors import Priors
from larql_duck.probing.prompts import Question
from larql_duck.probing.replies import Ask, Asker
from larql_duck.probing.splits import TEST, order_of, split_of
from larql_duck.probing.words import normal

# The share of a run's prompts that the pilot may take, and the most it asks of one relation.
SHARE = 0.3
# At least this share of the pilot's prompts asks in the variant that is chosen.
KEPT = 0.15
MOST = 120
# The share of the pilot's prompts that each round may have taken at its end; behind each but the last the better half
# of the variants goes on.
ROUNDS = (0.3, 0.5, 0.7, 1.0)
# A reply is graded with its tokens divided by the prior to this power: without examples a prompt is worth as much.
CONTRAST = 0.5
# What a variant's score is pulled to its relation's mean by, in subjects.
PULL = 3.0


@dataclass
class Piloted:
    """A relation's question with what the pilot found.

    scores maps a variant's index to its score in [0, 1], best first; asked and right count the subjects that it was
    tried on, and those it answered right (None without references). replies are all that were given, priors theirs;
    worth is what an answer counts.
    """

    question: Question
    worth: Worth = lambda subject, text: 1.0
    scores: dict[int, float] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    right: dict[int, float | None] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)
    priors: Priors = field(default_factory=Priors)

    def add(self, replies: Sequence[Reply | None]) -> None:
        """Keep these replies."""
        given = [r for r in replies if r is not None]
        self.replies += given
        self.priors.add(given)


def pilot(asker: Asker, piloted: Sequence[Piloted], prompts: int) -> None:
    """Try the variants of all relations with at most so many prompts; fills in `piloted`.

    Subjects with references are asked where there are enough, but none of the test split; else any. All relations ask
    in the same batches.
    """
    trying = [p for p in piloted if len(p.question.variants) > 1]
    budget = min(MOST, prompts // len(trying)) if trying else 0
    runs = [_Run(p, budget) for p in trying]
    for _ in ROUNDS:
        asked = [(run, run.next_items()) for run in runs]
        items = [item for _, own in asked for item in own]
        if not items:
            break
        priors = {run.piloted.question.relation.name: run.piloted.priors for run in runs}
        replied = iter(asker.ask(items, priors))
        for run, own in asked:
            run.piloted.add([next(replied) for _ in own])
        effects = _shots_effects(runs)
        for run in runs:
            run.judge(effects)


class _Run:
    """The pilot of one relation: who is asked, which variants are still in, how they did."""

    def __init__(self, piloted: Piloted, budget: int) -> None:
        self.piloted = piloted
        self.budget = budget
        self.alive = [v.index for v in piloted.question.variants]
        relation = piloted.question.relation
        shown = {s for v in piloted.question.variants for s, _ in v.examples}
        judged = [s for s in relation.entities if s in relation.references and split_of(s) != TEST]
        self.judged = len(judged) >= len(ROUNDS)
        pool = judged if self.judged else list(relation.entities)
        # Examples come last: their own prompts show another one.
        self.pool = sorted(pool, key=lambda s: (s in shown, order_of(s)))
        self.round = 0
        self.spent = 0
        self.taken = 0

    def next_items(self) -> list[Ask]:
        """What the next round asks: the same new subjects in every variant that is left."""
        until = int(self.budget * ROUNDS[self.round])
        self.round += 1
        n = (until - self.spent) // len(self.alive)
        if n < 1 and self.budget - self.spent >= len(self.alive):
            n = 1
        subjects = self.pool[self.taken : self.taken + max(n, 0)]
        if not subjects:
            return []
        self.taken += len(subjects)
        question = self.piloted.question
        self.spent += len(subjects) * len(self.alive)
        return [Ask(question.relation, question.variants[v], s) for v in self.alive for s in subjects]

    def grades(self) -> dict[int, list[float]]:
        """Per variant how well each subject was answered, from 0 to 1."""
        return _graded(self.piloted, judged=self.judged)

    def judge(self, effects: dict[int, float]) -> None:
        """Score the variants, and keep the better half."""
        grades = self.grades()
        if not grades:
            return
        question = self.piloted.question
        mean = float(np.mean([g for own in grades.values() for g in own]))
        scores = {}
        for v, own in grades.items():
            expected = min(1.0, max(0.0, mean + effects.get(question.variants[v].shots, 0.0)))
            scores[v] = (sum(own) + PULL * expected) / (len(own) + PULL)
        ordered = sorted(scores, key=lambda v: (-scores[v], v))
        self.alive = sorted([v for v in ordered if v in self.alive][: max(2, -(-len(self.alive) // 2))])
        # Those that went on were asked more: they stand first.
        last = set(self.alive)
        self.piloted.scores = {
            v: scores[v] for v in sorted(ordered, key=lambda v: (v not in last, -scores[v], v))
        }
        self.piloted.asked = {v: len(own) for v, own in grades.items()}
        self.piloted.right = {v: _share_right(self.piloted, v) if self.judged else None for v in grades}


def _shots_effects(runs: Sequence[_Run]) -> dict[int, float]:
    """Number of examples -> how much better than their relation's mean such variants do in this model, pulled to 0."""
    gains: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        grades = run.grades()
        if not grades:
            continue
        variants = run.piloted.question.variants
        # Subjects of the first round alone: every variant was asked about them.
        n = min(len(own) for own in grades.values())
        mean = float(np.mean([np.mean(own[:n]) for own in grades.values()]))
        for v, own in grades.items():
            gains[variants[v].shots].append(float(np.mean(own[:n])) - mean)
    return {shots: sum(values) / (len(values) + 8) for shots, values in gains.items()}


def _graded(piloted: Piloted, *, judged: bool) -> dict[int, list[float]]:
    """Per variant the grades of its subjects in the order asked.

    With references half of a grade is the share that the accepted answers have of all that the reply states, half
    whether its best answer is one. Without, whether the answer is that of most variants, times how far it stands
    out from the prior.
    """
    by_variant: dict[int, list[Reply]] = defaultdict(list)
    for reply in piloted.replies:
        by_variant[reply.variant].append(reply)
    grades: dict[int, list[float]] = {}
    if judged:
        for v, replies in by_variant.items():
            grades[v] = [_grade(piloted, reply) for reply in replies]
        return grades
    said: dict[str, Counter[str]] = defaultdict(Counter)
    best: dict[tuple[int, str], tuple[str, float]] = {}
    for v, replies in by_variant.items():
        for answer in combine(
            replies, top_n=1, contrast=CONTRAST, priors=piloted.priors, worth=piloted.worth
        ):
            key = normal(answer.object)
            said[answer.subject][key] += 1
            best[v, answer.subject] = key, max(0.0, 1.0 - (answer.prior or 0.0))
    for v, replies in by_variant.items():
        own = []
        for reply in replies:
            key, apart = best.get((v, reply.subject), ("", 0.0))
            votes = said[reply.subject]
            others = sum(votes.values()) - 1
            own.append(apart * (votes[key] - 1) / others if key and others > 0 else 0.0)
        grades[v] = own
    return grades


def _grade(piloted: Piloted, reply: Reply) -> float:
    relation = piloted.question.relation
    answers = combine([reply], contrast=CONTRAST, priors=piloted.priors, worth=piloted.worth)
    total = sum(a.score for a in answers)
    right = [a for a in answers if is_right(relation, a)]
    return 0.5 * sum(a.score for a in right) / total + 0.5 * (right[0].rank == 1) if right and total else 0.0


def _share_right(piloted: Piloted, variant: int) -> float:
    """The share of the variant's subjects whose best answer is accepted."""
    own = [r for r in piloted.replies if r.variant == variant]
    relation = piloted.question.relation
    answers = combine(own, top_n=1, contrast=CONTRAST, priors=piloted.priors, worth=piloted.worth)
    right = sum(bool(is_right(relation, a)) for a in answers)
    return right / len({r.subject for r in own}) if own else 0.0
