"""From questions to judged answers: the pilot, everybody asked in the best variants, answers ranked, confidence learnt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import groupby, islice

import numpy as np

from larql_duck.inference.engine import Engine
from larql_duck.knowledge.keys import normal
from larql_duck.knowledge.relations import Relation
from larql_duck.knowledge.types import TypeIndex, echo_allowed, is_echo, is_own_words
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing import pilot
from larql_duck.probing.choosing import (
    MOST_VARIANTS,
    Answered,
    Chosen,
    Knowledge,
    allotted,
    choose_contrasts,
    missing,
    stored_choice,
    weights_of,
)
from larql_duck.probing.combine import Answer, Worth, combine, is_right
from larql_duck.probing.confidence import Calibration, Graded, fit
from larql_duck.probing.entity_types import NamesTold, told_of_names
from larql_duck.probing.evidence import Known, evidence
from larql_duck.probing.outcomes import Reply
from larql_duck.probing.packs import known_relations
from larql_duck.probing.pilot import Piloted
from larql_duck.probing.prompts import Question
from larql_duck.probing.replies import Ask, Asker
from larql_duck.probing.splits import TEST, split_of
from larql_duck.probing.words import answer_key

# An answer of another kind than the relation expects stands behind one that fits where it is less than so many times
# more probable.
OTHER_TYPE = 0.25
# The share of different answers from which a relation counts as one where everybody has another.
ONE_TO_ONE = 0.9
# So often a name to which no answer is right counts among those that teach confidence: what people ask about is less
# known than what packs list.
NOBODY_COUNTS = 3
_POSSESSIVE = re.compile(r"['’]s?\b")
# Subjects of a variant that are asked before the others, so that these are asked with a prior.
_FIRST = 16


def ask_all(
    asker: Asker,
    asking: Sequence[Question],
    known: Knowledge,
    max_prompts: int | None,
    *,
    try_out: bool = True,
    told: Callable[[int], None] = lambda n: None,
) -> list[Answered]:
    """Every question asked about all of its subjects; try_out=False goes without a pilot.

    `told` is called with the number of prompts once it is known.
    """
    asking = [_that_fit(asker, q) for q in asking]
    index = type_index([q.relation for q in asking])
    piloted = [Piloted(q, worth_of(q, index), priors=known.priors_of(q)) for q in asking]
    stored = [stored_choice(known, q) for q in asking]
    new = [p for p, choice in zip(piloted, stored, strict=True) if choice is None]
    entities = sum(len(p.question.relation.entities) for p in piloted)
    if try_out:
        total = entities * MOST_VARIANTS if max_prompts is None else max_prompts
        # What the best variant answered in the pilot is not asked again: at least that share of it.
        spare = int(max(0, total - entities) / (1 - pilot.KEPT))
        pilot.pilot(asker, new, min(int(pilot.SHARE * total), spare))
    variants = allotted(piloted, max_prompts, stored)
    choices = [
        Chosen(weights_of(p, own))
        if choice is None
        else Chosen({v: choice.weights[v] for v in own}, choice.contrast)
        for p, own, choice in zip(piloted, variants, stored, strict=True)
    ]
    told(
        sum(len(p.replies) for p in piloted)
        + sum(missing(p, v) for p, own in zip(piloted, variants, strict=True) for v in own)
    )
    for first in (True, False):
        tried = set(asker.unasked)
        items: list[Ask] = []
        owners: list[Piloted] = []
        for p, own in zip(piloted, variants, strict=True):
            for v in own:
                asked = {r.subject for r in p.replies if r.variant == v}
                rest = [
                    s for s in p.question.relation.entities if s not in asked and (first or s not in tried)
                ]
                if first:
                    rest = rest[: max(0, _FIRST - len(asked))]
                items += [Ask(p.question.relation, p.question.variants[v], s) for s in rest]
                owners += [p] * len(rest)
        priors = {p.question.relation.name: p.priors for p in piloted}
        for p, reply in zip(owners, asker.ask(items, priors), strict=True):
            p.add([reply])
    return [
        Answered(p, c, tried=choice is None) for p, c, choice in zip(piloted, choices, stored, strict=True)
    ]


def _that_fit(asker: Asker, question: Question) -> Question:
    """The question without the variants whose examples leave no room for a subject of usual length."""
    relation = question.relation
    sample = sorted(relation.entities, key=len)[len(relation.entities) // 2]
    kept = [v for v in question.variants if not v.shots or asker.fits(Ask(relation, v, sample))]
    return Question(relation, tuple(replace(v, index=i) for i, v in enumerate(kept)))


def asked_before(question: Question, known: Knowledge) -> Answered:
    """An Answered without replies yet, to be asked and ranked as `known` says."""
    choice = stored_choice(known, question) or Chosen({v.index: 1.0 for v in question.variants})
    worth = worth_of(question, type_index([question.relation]))
    return Answered(Piloted(question, worth, priors=known.priors_of(question)), choice)


def rank(replied: Sequence[Answered], *, top_n: int = 3) -> None:
    """Fill in the ranked answers; what a pilot of this run tried first gets its contrast."""
    tried = [a for a in replied if a.tried]
    found = choose_contrasts(
        [a.piloted for a in tried], [a.choice.weights for a in tried], [a.piloted.worth for a in tried]
    )
    for a, contrast in zip(tried, found, strict=True):
        a.choice = replace(a.choice, contrast=contrast)
    for a in replied:
        a.answers = combine(
            _in_order(a),
            top_n=top_n,
            weights=a.choice.weights,
            contrast=a.choice.contrast,
            priors=a.piloted.priors,
            worth=a.piloted.worth,
        )


def ask_nobody(
    asker: Asker, ranked: Sequence[Answered], names: Mapping[str, Sequence[str]]
) -> list[Answered]:
    """The answers about names to which none is right (by relation), asked and ranked as the relations' own subjects were."""
    asked: list[Answered] = []
    items: list[Ask] = []
    for a in ranked:
        question = a.question
        others = [n for n in names.get(question.relation.name, ()) if n not in question.relation.references]
        if not others:
            continue
        over = Question(replace(question.relation, entities=tuple(others)), question.variants)
        asked.append(Answered(Piloted(over, a.piloted.worth, priors=a.piloted.priors), a.choice))
        items += [Ask(over.relation, over.variants[v], n) for v in a.choice.weights for n in others]
    owners = iter(asker.ask(items, {a.question.relation.name: a.piloted.priors for a in asked}))
    for a in asked:
        count = len(a.choice.weights) * len(a.question.relation.entities)
        a.piloted.replies += [r for r in islice(owners, count) if r is not None]
    rank(asked)
    return asked


def read_subjects(engine: Engine, known: Knowledge, ranked: Sequence[Answered]) -> NamesTold:
    """What the model makes of the names that it answers about."""
    names = dict.fromkeys(x.subject for a in ranked for x in a.answers)
    return told_of_names(engine, known.types, list(names))


def judge(
    engine: Engine,
    ranked: Sequence[Answered],
    known: Knowledge,
    *,
    stated: Mapping[str, Counter[str]] | None = None,
    learn: bool = True,
    nobody: Sequence[Answered] = (),
    named: NamesTold | None = None,
    apart: bool = False,
) -> Calibration:
    """Fill in which ranked answers are correct, and their confidence; the calibration that judged them.

    stated counts, by relation, the best answers (normalised) of subjects beyond these; learn=False takes the known
    calibration as it is. nobody are answers about names to which none is right, which teach as well. named is what was read
    of the subjects' names already. apart: subjects say nothing about each other, having been asked together by chance.
    """
    if named is None:
        named = read_subjects(engine, known, [*ranked, *nobody])
    index = type_index([a.question.relation for a in ranked])
    compared = Known(words_of(engine.tokenizer), index, named.familiarity, named.kinds)
    wrong = {a.question.relation.name: a for a in nobody}
    evidences: list[np.ndarray] = []
    graded: list[Graded] = []
    for a in ranked:
        relation, shown = a.question.relation, a.question.answers_shown
        a.correct = [is_right(relation, x) for x in a.answers]
        further = (stated or {}).get(relation.name)
        groups = _by_subject(a.answers) if apart else [a.answers]
        rows = np.concatenate([evidence(relation, own, shown, compared, further) for own in groups])
        evidences.append(rows)
        use = [
            i
            for i, (x, right) in enumerate(zip(a.answers, a.correct, strict=True))
            if x.rank == 1 and right is not None and split_of(x.subject) != TEST
        ]
        if not use:
            continue
        subjects, right = [a.answers[i].subject for i in use], [bool(a.correct[i]) for i in use]
        taught = rows[use]
        if relation.name in wrong:
            best = [x for x in wrong[relation.name].answers if x.rank == 1] * NOBODY_COUNTS
            taught = np.concatenate([taught, evidence(relation, best, shown, compared, _stated_by(a))])
            subjects, right = [*subjects, *(x.subject for x in best)], [*right, *[False] * len(best)]
        graded.append(Graded(relation.name, taught, np.array(right), subjects))
    calibration = fit(graded, known.calibration) if learn else known.calibration
    for a, rows in zip(ranked, evidences, strict=True):
        a.confidence = calibration.judge(a.question.relation.name, rows)
    return calibration


def _by_subject(answers: Sequence[Answer]) -> list[list[Answer]]:
    """The answers about each subject, in order; one empty list without any."""
    return [list(own) for _, own in groupby(answers, key=lambda a: a.subject)] or [[]]


def _stated_by(a: Answered) -> Counter[str]:
    """How often each best answer is given, by its key."""
    return Counter(answer_key(x.object, a.question.relation.answer) for x in a.answers if x.rank == 1)


def _in_order(a: Answered) -> list[Reply]:
    """The replies by the subjects' order in the relation, then by variant."""
    place = {s: i for i, s in enumerate(a.question.relation.entities)}
    return sorted(a.replies, key=lambda r: (place[r.subject], r.variant))


def type_index(relations: Sequence[Relation]) -> TypeIndex:
    """What kind of thing names are, as the shipped packs and these relations know it."""
    shipped = known_relations()
    own = [
        r
        for r in relations
        if r.name not in shipped or r.references.items() - shipped[r.name].references.items()
    ]
    return TypeIndex([*shipped.values(), *own]) if own else _shipped_types()


@cache
def _shipped_types() -> TypeIndex:
    return TypeIndex(known_relations().values())


def worth_of(question: Question, index: TypeIndex) -> Worth:
    """What an answer to this question counts: nothing when it is words of the question, an echo where none can be
    right, or another subject's answer copied from an example; less when it is known as another kind of thing.
    """
    # Rules are drawn from what may be looked at.
    relation = question.relation
    seen = replace(relation, references={s: r for s, r in relation.references.items() if split_of(s) != TEST})
    echoes = echo_allowed(seen)
    preferred = [normal(r[0]) for r in seen.references.values()]
    distinct = len(preferred) >= 10 and len(set(preferred)) >= ONE_TO_ONE * len(preferred)
    copies = question.answers_shown if distinct else frozenset()

    def worth(subject: str, text: str) -> float:
        key = normal(text)
        if key in map(normal, seen.references.get(subject, ())):
            return 1.0
        if key == normal(subject):
            return float(echoes)
        own = is_own_words(text, seen, subject=subject)
        if is_echo(text, subject, relation.text(subject)):
            # "Mexico City" is one, "Vatican City's official" goes on.
            return float(echoes and not (own and _POSSESSIVE.search(text)))
        if own or key in copies:
            return 0.0
        return OTHER_TYPE if index.fit(text, relation, subject) == "other" else 1.0

    return worth


@lru_cache(maxsize=1)
def words_of(tokenizer: Tokenizer) -> frozenset[str]:
    """The words that stand alone in the vocabulary, normalised."""
    return frozenset(
        normal(text) for _, token, text, is_word in tokenizer.vocabulary() if is_word and token[:1] == " "
    )
