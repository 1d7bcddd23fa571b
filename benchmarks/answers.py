"""Answers: how often they are right, and how honest their confidence is, relation by relation, on any model."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.cases import Case, Row, smollm2
from larql_duck.knowledge.keys import normal
from larql_duck.knowledge.relations import Relation
from larql_duck.knowledge.types import TypeIndex, is_echo, is_own_words
from larql_duck.probing.choosing import Answered, Knowledge
from larql_duck.probing.combine import Answer, combine
from larql_duck.probing.confidence import Graded, fit
from larql_duck.probing.evidence import Known, evidence
from larql_duck.probing.metrics import SURE, ece
from larql_duck.probing.packs import known_relations, load_pack
from larql_duck.probing.prompts import questions
from larql_duck.probing.splits import TEST, VALIDATION, drawn, split_of
from larql_duck.probing.words import matches

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.probing.replies import Asker

# Times that the subjects are split anew, and that a perfectly calibrated forecaster is drawn on each of them.
SPLITS, DRAWS = 20, 40
# A relation's mean confidence is judged from so many answers on, and may be this far from the share that is right.
JUDGED, GAP = 25, 0.12
# Facts above SURE from which a relation's share of right ones is judged.
SURE_FACTS = 10
# The wrong answers that are looked at: above this confidence. An answer that its prompt's examples show counts as copied
# where it is right for no more than this share of the subjects.
STATED, COMMON = 0.5, 0.1
_NAMED = 6


@dataclass(frozen=True)
class Judged:
    """A best answer with a reference: its confidence, and whether it is right."""

    relation: str
    answer: Answer
    confidence: float
    right: bool


def answers(
    work: Path, model: str | Path = "", pack: str = "core", max_prompts: int | None = 2000
) -> Iterator[Row]:
    """A pack asked of a model (default: SmolLM2), judged by its references: accuracy on all and on the held-out third,
    beside the best single template's; confidence over many splits, and with every relation left out.
    """
    from larql_duck.inference.engine import Engine
    from larql_duck.models.opening import open_model
    from larql_duck.probing.checkpoint import Checkpoint
    from larql_duck.probing.judging import ask_all, judge, rank
    from larql_duck.probing.replies import Asker

    engine = Engine.load(open_model(model or smollm2()))
    directory = work / "answers" / engine.fingerprint[:16]
    new = not directory.exists()
    asker = Asker(engine, Checkpoint(directory, [engine.fingerprint, str(engine.model.dtype)]))
    began = time.perf_counter()
    replied = ask_all(asker, questions(pack, max_prompts=max_prompts), Knowledge(), max_prompts)
    seconds = time.perf_counter() - began
    prompts = sum(len(a.replies) for a in replied)
    yield Row("prompts", prompts, None, "", "" if max_prompts is None else f"{max_prompts}")
    # Prompts that were found in the checkpoint would count as fast ones.
    if new:
        yield Row("prompts per second", prompts / seconds, None, "/s", "reported", "pilot and answers")
    rank(replied)
    judge(engine, replied, Knowledge())
    whole = {r.name: r for r in load_pack(pack).relations}
    yield from _accuracy(asker, replied, whole)
    best = _best(replied)
    if not best:
        return
    yield from _faults("", engine, replied, best)
    left_out = list(_left_out(engine, replied))
    yield from _calibration("left out: ", [left_out])
    for name, own in _by_relation(left_out).items():
        yield Row("left out: confidence", _confidence(own), _right(own), "", "", f"{len(own)} facts", of=name)
    yield from _faults("left out: ", engine, replied, left_out)
    yield from _over_splits(engine, replied)


def _accuracy(asker: Asker, replied: Sequence[Answered], whole: Mapping[str, Relation]) -> Iterator[Row]:
    """Right answers among all references, unasked and refused subjects being wrong; beside the best single template."""
    single = _single_templates(asker, replied, whole)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for a in replied:
        relation = whole[a.question.relation.name]
        right = {
            x.subject
            for x, ok in zip(a.answers, a.correct, strict=True)
            if x.rank == 1 and ok is not None and ok
        }
        test = {s for s in relation.references if split_of(s) == TEST}
        answered = {x.subject for x in a.answers}
        template, n_single = single[relation.name]
        counts = {
            "right": (len(right), len(relation.references), 0),
            "right, held out": (len(right & test), len(test), n_single),
            "answered, held out": (len(answered & test), len(test), 0),
        }
        for name, (n, of, peer) in counts.items():
            sums[name] = [x + y for x, y in zip(sums[name], (n, of, peer), strict=True)]
            beside = peer / max(of, 1) if name == "right, held out" else None
            note = f"{of} subjects" + (f"; {template!r}" if beside is not None else "")
            limit = f"at least {beside - max(0.02, 2 / max(of, 1)):.3f}" if beside is not None else ""
            yield Row(name, n / max(of, 1), beside, "", limit, note, of=relation.name)
    for name, (all_right, subjects, others) in sums.items():
        beside = others / subjects if name == "right, held out" else None
        yield Row(name, all_right / subjects, beside, "", "reported", f"{subjects:.0f} subjects")


def _single_templates(
    asker: Asker, replied: Sequence[Answered], whole: Mapping[str, Relation]
) -> dict[str, tuple[str, int]]:
    """Per relation what a user would take without all this: the template without examples whose most probable answer is
    right most often on the validation third, and how many subjects of the held-out third it gets right.
    """
    from larql_duck.probing.replies import Ask

    known = {(a.question.relation.name, r.variant, r.subject): r for a in replied for r in a.replies}

    def right(wanted: Mapping[str, Iterable[int]], split: str) -> dict[tuple[str, int], int]:
        items = [
            Ask(whole[a.question.relation.name], a.question.variants[v], s)
            for a in replied
            for v in wanted[a.question.relation.name]
            for s in whole[a.question.relation.name].references
            if split_of(s) == split
        ]
        missing = [i for i in items if (i.relation.name, i.variant.index, i.subject) not in known]
        for item, reply in zip(missing, asker.ask(missing), strict=True):
            if reply is not None:
                known[item.relation.name, item.variant.index, item.subject] = reply
        counts: dict[tuple[str, int], int] = {}
        for name, variants in wanted.items():
            for v in variants:
                own = [r for (n, i, s), r in known.items() if n == name and i == v and split_of(s) == split]
                references = whole[name].references
                counts[name, v] = sum(
                    matches(x.object, references[x.subject])
                    for x in combine(own, top_n=1)
                    if x.subject in references
                )
        return counts

    bare = {a.question.relation.name: [v.index for v in a.question.variants if not v.shots] for a in replied}
    tried = right(bare, VALIDATION)
    best = {name: max(own, key=lambda v: (tried[name, v], -v)) for name, own in bare.items()}
    judged = right({name: [v] for name, v in best.items()}, TEST)
    return {
        a.question.relation.name: (a.question.variants[v].base, judged[a.question.relation.name, v])
        for a in replied
        for v in [best[a.question.relation.name]]
    }


def _best(replied: Sequence[Answered]) -> list[Judged]:
    """The best answers with references and a confidence."""
    return [
        Judged(a.question.relation.name, x, c, right)
        for a in replied
        for x, (c, _), right in zip(a.answers, a.confidence, a.correct, strict=True)
        if x.rank == 1 and right is not None and c is not None
    ]


def _over_splits(engine: Engine, replied: Sequence[Answered]) -> Iterator[Row]:
    """The confidence of held-out answers, with the thirds as they are and drawn anew. The prompts stay those that were
    chosen on the thirds as they are.
    """
    from larql_duck.probing.judging import judge, rank

    def held_out() -> list[Judged]:
        return [j for j in _best(replied) if split_of(j.answer.subject) == TEST]

    splits = [held_out()]
    yield from _calibration("held out: ", splits)
    for a in replied:
        a.tried = False
    for seed in range(SPLITS):
        with drawn(seed):
            rank(replied)
            judge(engine, replied, Knowledge())
            splits.append(held_out())
    splits = splits[1:]
    yield from _calibration(f"{SPLITS} splits: ", splits)
    for title, several in (("one token", False), ("several tokens", True)):
        parts = [[j for j in own if (j.answer.n_tokens > 1) == several] for own in splits]
        yield from _calibration(f"{SPLITS} splits, {title}: ", parts, only_error=True)
    by_relation: dict[str, list[list[Judged]]] = defaultdict(list)
    for own in splits:
        for name, part in _by_relation(own).items():
            by_relation[name].append(part)
    for name, parts in by_relation.items():
        pooled = [j for part in parts for j in part]
        note = f"{len(pooled) / len(parts):.0f} facts a split"
        yield Row("confidence", _confidence(pooled), _right(pooled), "", "", note, of=name)
        off = np.mean([_is_off(part) for part in parts])
        yield Row("splits that are off", float(off), None, "", "0", note, of=name)
        sure = [j for j in pooled if j.confidence >= SURE]
        if len(sure) >= SURE_FACTS * len(parts):
            note = f"{len(sure) / len(parts):.0f} facts a split"
            yield Row(f"right at {SURE} and above", _right(sure), None, "", "at least 0.80", note, of=name)


def _calibration(title: str, splits: Sequence[list[Judged]], *, only_error: bool = False) -> Iterator[Row]:
    """Calibration error beside that of a perfectly calibrated forecaster with the same confidences, AUROC, and how many
    are right where confidence is high: means over the splits.
    """
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    errors, ideals, areas, sure = [], [], [], []
    for own in filter(None, splits):
        confidence = np.array([j.confidence for j in own])
        right = np.array([j.right for j in own])
        errors.append(ece(list(zip(confidence, right, strict=True))))
        draws = [rng.random(len(own)) < confidence for _ in range(DRAWS)]
        ideals.append(np.mean([ece(list(zip(confidence, guesses, strict=True))) for guesses in draws]))
        if 0 < right.sum() < len(right):
            areas.append(roc_auc_score(right, confidence))
        if (confidence >= SURE).any():
            sure.append((right[confidence >= SURE].mean(), (confidence >= SURE).mean()))
    if not errors:
        return
    note = f"{np.mean([len(own) for own in splits]):.0f} facts; peer: a perfectly calibrated forecaster"
    allowed = 0.05 if title.startswith("left out") else 0.02
    limit = f"{np.mean(ideals) + allowed:.3f}"
    yield Row(f"{title}calibration error", float(np.mean(errors)), float(np.mean(ideals)), "", limit, note)
    if only_error:
        return
    if areas:
        yield Row(f"{title}AUROC", float(np.mean(areas)), None, "", "at least 0.90")
    if sure:
        right_share, share = np.mean(sure, axis=0)
        yield Row(
            f"{title}right at {SURE} and above", float(right_share), None, "", "at least 0.93",
            f"{share:.0%} of the answers",
        )  # fmt: skip


def _is_off(own: Sequence[Judged]) -> bool:
    """Whether the mean confidence is far from the share that is right, and outside its 95 % interval."""
    from scipy.stats import binomtest

    stated, right = _confidence(own), sum(j.right for j in own)
    if len(own) < JUDGED or abs(stated - right / len(own)) <= GAP:
        return False
    interval = binomtest(right, len(own)).proportion_ci(method="wilson")
    return not interval.low <= stated <= interval.high


def _left_out(engine: Engine, replied: Sequence[Answered]) -> Iterator[Judged]:
    """Every relation judged as one of a user's own without references: its answers' evidence taken without them and
    without what packs know of the relation, its confidence learnt from the others' train and validation thirds.

    The prompts, and which answer is the best, stay as they were chosen with references.
    """
    from larql_duck.probing.entity_types import told_of_names
    from larql_duck.probing.judging import type_index, words_of

    words = words_of(engine.tokenizer)
    subjects = list(dict.fromkeys(x.subject for a in replied for x in a.answers))
    familiar = told_of_names(engine, None, subjects).familiarity
    known = Known(words, type_index([a.question.relation for a in replied]), familiar)
    graded = [_graded(a, a.question.relation, known, lambda s: split_of(s) != TEST) for a in replied]
    for i, a in enumerate(replied):
        relation = a.question.relation
        others = [r for name, r in known_relations().items() if name != relation.name]
        mine = _graded(
            a, replace(relation, references={}), Known(words, TypeIndex(others), familiar), lambda s: True
        )
        judge = fit([g for k, g in enumerate(graded) if k != i and len(g.right)]).judge("", mine.evidence)
        best = [x for x, right in zip(a.answers, a.correct, strict=True) if x.rank == 1 and right is not None]
        for x, (confidence, _), right in zip(best, judge, mine.right, strict=True):
            if confidence is not None:
                yield Judged(relation.name, x, confidence, bool(right))


def _graded(a: Answered, relation: Relation, known: Known, counts: Callable[[str], bool]) -> Graded:
    rows = evidence(relation, a.answers, a.question.answers_shown, known)
    use = [
        i
        for i, (x, right) in enumerate(zip(a.answers, a.correct, strict=True))
        if x.rank == 1 and right is not None and counts(x.subject)
    ]
    right = np.array([bool(a.correct[i]) for i in use], bool)
    return Graded(relation.name, rows[use], right, [a.answers[i].subject for i in use])


def _faults(title: str, engine: Engine, replied: Sequence[Answered], best: Sequence[Judged]) -> Iterator[Row]:
    """How many wrong answers above STATED are no answers at all, by what they are instead; one may be several."""
    from larql_duck.probing.judging import type_index, words_of

    index = type_index([a.question.relation for a in replied])
    words = words_of(engine.tokenizer) | _names(
        [*known_relations().values(), *(a.question.relation for a in replied)]
    )
    asked = {a.question.relation.name: a for a in replied}
    wrong = [j for j in best if not j.right and j.confidence > STATED]
    classes: dict[str, list[Judged]] = {
        name: [] for name in ("echoes", "copied examples", "own words", "other types", "half words")
    }
    for j in wrong:
        for name in faults_of(j, asked[j.relation], index, words):
            classes[name].append(j)
    yield Row(f"{title}wrong above {STATED}", len(wrong), None, "", "reported", f"of {len(best)} answers")
    for name, own in classes.items():
        told = [f"{j.answer.subject} -> {j.answer.object} {j.confidence:.2f}" for j in own]
        yield Row(f"{title}wrong above {STATED}: {name}", len(own), None, "", "0", ", ".join(told[:_NAMED]))


def faults_of(j: Judged, a: Answered, index: TypeIndex, words: frozenset[str]) -> Iterator[str]:
    relation, subject, text = a.question.relation, j.answer.subject, j.answer.object
    key = normal(text)
    if is_echo(text, subject, relation.text(subject)):
        yield "echoes"
    expected = np.mean([key in map(normal, own) for own in relation.references.values()])
    shown = {normal(other) for _, other in a.question.variants[j.answer.variant].shown(subject)}
    if key in shown and expected <= COMMON:
        yield "copied examples"
    if is_own_words(text, relation, subject=subject):
        yield "own words"
    if index.fit(text, relation, subject) == "other":
        yield "other types"
    last = [w for w in key.split() if any(c.isalpha() for c in w)][-1:]
    if not j.answer.closed or (last and last[0] not in words):
        yield "half words"


def _names(relations: Iterable[Relation]) -> frozenset[str]:
    """The words of all subjects and accepted answers, normalised."""
    texts = (t for r in relations for s, own in r.references.items() for t in (s, r.text(s), *own))
    return frozenset(word for text in texts for word in normal(text).split())


def _by_relation(judged: Iterable[Judged]) -> dict[str, list[Judged]]:
    out: dict[str, list[Judged]] = defaultdict(list)
    for j in judged:
        out[j.relation].append(j)
    return out


def _confidence(judged: Sequence[Judged]) -> float:
    return float(np.mean([j.confidence for j in judged]))


def _right(judged: Sequence[Judged]) -> float:
    return float(np.mean([j.right for j in judged]))


CASES: dict[str, Case] = {"answers": answers}
