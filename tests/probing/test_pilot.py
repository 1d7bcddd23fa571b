"""The pilot: which ways of asking it tries, what it spends, and that it finds the good one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from larql_duck.knowledge.relations import Relation
from larql_duck.probing.choosing import Chosen, Knowledge, allotted, choose_contrasts, missing
from larql_duck.probing.judging import ask_all, stored_choice, type_index, worth_of
from larql_duck.probing.outcomes import NO_ARTICLE, Candidate, Outcome, Reply
from larql_duck.probing.pilot import SHARE, Piloted, pilot
from larql_duck.probing.priors import Priors
from larql_duck.probing.prompts import Question, examples_of, questions
from larql_duck.probing.replies import Ask, Asker
from larql_duck.probing.splits import TEST, TRAIN, drawn, split_of
from tests.probing.support import reply

NAMES = tuple(f"place {i}" for i in range(60))
REFERENCES = {name: (f"town {i}",) for i, name in enumerate(NAMES)}
PLACES = Relation(
    "chief town", "the chief town", ("The town of {} is", "In {} there is", "{} has"),
    entities=NAMES, references=REFERENCES,
)  # fmt: skip


class Told(Asker):
    """An Asker without a model: it answers as `says` does, and counts what it was asked."""

    def __init__(self, says: Mapping[tuple[str, int], float]) -> None:
        self.says = says
        self.asked: list[Ask] = []

    @property
    def unasked(self) -> dict[str, str]:
        return {}

    def fits(self, item: Ask) -> bool:
        return True

    def ask(self, items: Sequence[Ask], priors: Mapping[str, Priors] | None = None) -> list[Reply | None]:
        self.asked += items
        return [self._reply(item) for item in items]

    def _reply(self, item: Ask) -> Reply:
        right = self.says.get((item.variant.base, item.variant.shots), 0.0)
        number = NAMES.index(item.subject)
        # The right answer, or what is said of everybody.
        p = {f"town {number}": 0.6, "the sea": 0.3} if number / len(NAMES) < right else {"the sea": 0.6}
        tokens = {text: sum(text.encode()) for text in p}
        candidates = tuple(Candidate(text, tokens[text], NO_ARTICLE, q, q) for text, q in p.items())
        top = {tokens[text]: q for text, q in p.items()}
        best = max(p, key=lambda text: p[text])
        outcome = Outcome(tokens[best], f" {best}", p[best], 1.0, top, candidates)
        prompt = item.variant.prompt(item.relation, item.subject)
        return Reply(item.subject, item.variant.index, prompt, outcome)


def way(question: Question, base: str, shots: int) -> int:
    return next(v.index for v in question.variants if (v.base, v.shots) == (base, shots))


def test_examples_are_train_subjects_with_different_answers() -> None:
    relation = replace(PLACES, references=REFERENCES | {NAMES[1]: ("town 0",)})
    shown = examples_of(relation, 7)
    assert len(shown) == 7 == len({answer for _, answer in shown})
    assert all(split_of(subject) == TRAIN and REFERENCES[subject] == (answer,) for subject, answer in shown)
    # The same for every subject, whoever is asked about.
    assert examples_of(relation.over(["elsewhere"]), 7) == shown
    assert examples_of(relation.limited(2), 7) == shown


def test_a_subject_that_is_an_example_gets_the_reserve() -> None:
    (question,) = questions([PLACES])
    assert sorted({v.shots for v in question.variants}) == [0, 3, 6]
    variant = question.variants[way(question, PLACES.templates[0], 3)]
    subject, answer = variant.examples[1]
    head = variant.head(PLACES, subject)
    assert f"The town of {subject} is" not in head
    assert variant.reserve is not None and variant.reserve[0] in head and head.count("\n") == 3
    assert f"The town of {subject} is {answer}\n" in variant.head(PLACES, "place 999")
    assert (
        variant.prompt(PLACES, "place 999") == variant.head(PLACES, "place 999") + "The town of place 999 is"
    )


def test_without_references_there_are_no_examples() -> None:
    (question,) = questions([replace(PLACES, references={})])
    assert [(v.base, v.shots) for v in question.variants] == [(t, 0) for t in PLACES.templates]


@pytest.mark.parametrize(
    "best", [(PLACES.templates[2], 0), (PLACES.templates[0], 3), (PLACES.templates[1], 6)]
)
def test_the_pilot_finds_what_this_model_answers_best(best: tuple[str, int]) -> None:
    (question,) = questions([PLACES])
    said = {(v.base, v.shots): 0.2 for v in question.variants} | {best: 0.9}
    piloted, asker = Piloted(question), Told(said)
    pilot(asker, [piloted], 60)
    assert next(iter(piloted.scores)) == way(question, *best)
    assert len(asker.asked) <= 60
    assert all(split_of(item.subject) != TEST for item in asker.asked)
    assert piloted.right[way(question, *best)] > 0.6
    # Worse ways are asked about fewer subjects.
    counts = {v: piloted.asked[v] for v in piloted.scores}
    assert counts[way(question, *best)] == max(counts.values()) > min(counts.values())


def test_without_references_agreement_decides() -> None:
    (question,) = questions([replace(PLACES, references={})])
    said = {(PLACES.templates[0], 0): 0.9, (PLACES.templates[1], 0): 0.9, (PLACES.templates[2], 0): 0.0}
    piloted = Piloted(question)
    pilot(Told(said), [piloted], 60)
    assert list(piloted.scores)[-1] == 2
    assert set(piloted.right.values()) == {None}


@pytest.mark.parametrize("most", [70, 90, 200])
def test_the_pilot_counts_in_the_budget_and_its_answers_are_kept(most: int) -> None:
    asker = Told({(v, s): 0.5 for v in PLACES.templates for s in (0, 3, 6)})
    (answered,) = ask_all(asker, questions([PLACES]), Knowledge(), most)
    prompts = [(i.variant.index, i.subject) for i in asker.asked]
    assert len(prompts) == len(set(prompts)) <= most
    assert sum(answered.piloted.asked.values()) <= max(SHARE * most, 0) + 1
    for variant in answered.choice.weights:
        assert {r.subject for r in answered.replies if r.variant == variant} == set(NAMES)


def test_what_was_chosen_before_is_asked_again_without_a_pilot() -> None:
    (question,) = questions([PLACES])
    chosen = question.variants[way(question, PLACES.templates[1], 3)]
    known = Knowledge(weights={"chief town": {chosen.template(PLACES): 1.0}}, contrasts={"chief town": 1.0})
    assert stored_choice(known, question) == Chosen({chosen.index: 1.0}, 1.0)
    asker = Told({})
    (answered,) = ask_all(asker, [question], known, None)
    assert {i.variant.index for i in asker.asked} == {chosen.index} and len(asker.asked) == len(NAMES)
    assert not answered.tried
    # Templates of one's own are not those that were chosen.
    (own,) = questions([replace(PLACES, templates=("{} is where",))])
    assert stored_choice(known, own) is None


def test_further_variants_go_where_the_best_does_worst() -> None:
    (question,) = questions([replace(PLACES, entities=NAMES[:10])])
    other = Question(replace(question.relation, name="other"), question.variants)
    good, bad = Piloted(question, scores={0: 0.9, 1: 0.8}), Piloted(other, scores={3: 0.4, 4: 0.35})
    assert allotted([good, bad], 30, [None, None]) == [[0], [3, 4]]
    assert allotted([good, bad], None, [None, None]) == [[0, 1], [3, 4]]
    assert missing(good, 0) == 10


def test_contrast_is_chosen_by_subjects_that_are_not_held_out() -> None:
    (question,) = questions([PLACES])
    piloted = Piloted(question)
    piloted.add([reply(n, 0, **{"the sea": 0.5, f"town {i}": 0.3}) for i, n in enumerate(NAMES)])
    worth = worth_of(question, type_index([PLACES]))
    (contrast,) = choose_contrasts([piloted], [{0: 1.0}], [worth])
    assert contrast > 0
    # What the held-out third says changes nothing.
    turned = Piloted(question)
    turned.add(
        [
            reply(n, 0, **({"the sea": 0.5} if split_of(n) == TEST else {"the sea": 0.5, f"town {i}": 0.3}))
            for i, n in enumerate(NAMES)
        ]
    )
    assert choose_contrasts([turned], [{0: 1.0}], [worth]) == [contrast]


CAPITAL = Relation(
    "capital", "The capital city of a country.", ("The capital of {} is",), expects="city",
    entities=("Ruritania", "Monaco", "Mexico", "Freedonia"),
    references={"Monaco": ("Monaco",), "Ruritania": ("Strelsau",)}, echo="allowed",
)  # fmt: skip


@pytest.mark.parametrize(
    ("relation", "subject", "text", "worth"),
    [
        (CAPITAL, "Ruritania", "Strelsau", 1.0),
        (CAPITAL, "Freedonia", "capital", 0.0),
        (CAPITAL, "Freedonia", "capital city", 0.0),
        (CAPITAL, "Monaco", "Monaco", 1.0),
        (CAPITAL, "Mexico", "Mexico City", 1.0),
        (CAPITAL, "Freedonia", "Freedonia's official", 0.0),
        (CAPITAL, "Freedonia", "South America", 0.25),
        (replace(CAPITAL, echo="wrong", references={}), "Freedonia", "Freedonia", 0.0),
    ],
)
def test_what_is_no_answer_counts_nothing(relation: Relation, subject: str, text: str, worth: float) -> None:
    (question,) = questions([relation], few_shot=False)
    assert worth_of(question, type_index([relation]))(subject, text) == worth


def test_an_examples_answer_is_no_answer_where_everybody_has_another() -> None:
    (question,) = questions([PLACES])
    shown, answer = question.variants[-1].examples[0]
    worth = worth_of(question, type_index([PLACES]))
    other = next(n for n in NAMES if n not in {s for s, _ in question.variants[-1].examples})
    assert worth(other, answer) == 0.0
    assert worth(shown, answer) == 1.0
    # Where many share an answer, it may be right.
    shared = replace(PLACES, references={n: (f"town {i % 3}",) for i, n in enumerate(NAMES)})
    (question,) = questions([shared])
    assert worth_of(question, type_index([shared]))(other, question.variants[-1].examples[0][1]) > 0


def test_thirds_can_be_drawn_anew() -> None:
    before = [split_of(n) for n in NAMES]
    with drawn(1):
        assert [split_of(n) for n in NAMES] != before
    assert [split_of(n) for n in NAMES] == before
