"""Probing: a model asked about a pack's subjects, and its answers made into facts, edges and relations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.attribution import parts_problem
from larql_duck.inference.engine import Engine
from larql_duck.knowledge.relations import Pack, Relation
from larql_duck.probing.calibrate import Calibration, RelationReplies, calibrate
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.combine import Answer, combine
from larql_duck.probing.measure import FactFeatures, measure
from larql_duck.probing.prompts import Question, questions
from larql_duck.probing.replies import Reply, replies
from larql_duck.probing.specific import specifics
from larql_duck.probing.tables import ProbedFact, tables_of
from larql_duck.progress import Ticker, ticker

# A further answer of a relation with many answers becomes a triple, and so has features, from this p on.
MANY_P = 0.1
# Subjects that could not be asked about, named one by one.
_NAMED = 10
# Prompts over which mean activations are taken.
_MEAN_PROMPTS = 64


@dataclass(frozen=True)
class Probed:
    """The result of a probing run: tables (facts, probes, edges, relations, feature_relations), calibration, notices.

    report holds figures of the calibration: see `calibrate`.
    """

    tables: dict[str, pa.Table]
    calibration: Calibration
    report: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def probe(
    engine: Engine,
    asked: Pack | Iterable[Relation] | str | Path,
    *,
    relations: Iterable[str] | None = None,
    limit: int | None = None,
    max_prompts: int | None = None,
    top_n: int = 3,
    few_shot: bool = True,
    specific: bool = False,
    ablation: Literal["zero", "mean"] = "zero",
    calibration: Calibration | None = None,
    progress: Ticker | None = None,
    checkpoint: Path | None = None,
) -> Probed:
    """The facts that the model states about the subjects of a pack (or its name or file, or Relation objects).

    Every subject is asked with each of a relation's templates (and once after examples, where the pack has some:
    few_shot). The object of a fact is the model's own answer; top_n answers a subject are kept. Answers of rank 1,
    and those with p >= MANY_P where the pack says many, get features: the largest direct contributions, with the
    effect of taking each of the first 8, and all of them, away (ablation: to zero, or to the mean over the
    relation's prompts). specific compares those effects with the ones on other facts of the relation.

    relations picks some by name, limit each relation's first subjects, max_prompts bounds the whole run. Confidence
    is calibrated where the pack brings references; an earlier run's calibration is used for families without.
    progress is called with (done, total) steps (None: whoever watches is told); checkpoint is a directory in which finished batches are kept and
    found again. Deterministic. LarqlError when nothing is left to ask.
    """
    if ablation not in ("zero", "mean"):
        raise LarqlError(f"ablation {ablation!r} is not known; use 'zero' or 'mean'")
    if top_n < 1 or (limit is not None and limit < 1):
        raise LarqlError("top_n and limit must be at least 1")
    asking = questions(asked, relations=relations, limit=limit, max_prompts=max_prompts, few_shot=few_shot)
    if not asking:
        raise LarqlError("nothing to ask: the pack has no relation with subjects")
    store = Checkpoint(checkpoint, [engine.fingerprint, str(engine.model.dtype)])
    # One step a prompt, then one a subject whose facts are measured.
    tick = _counter(sum(q.n_prompts + len(q.relation.entities) for q in asking), progress or ticker("facts"))
    unasked: dict[str, str] = {}
    replied = [_ask(engine, q, store, tick, unasked) for q in asking]
    about = [RelationReplies(q.relation, tuple(r)) for q, r in zip(asking, replied, strict=True)]
    calibrated = calibrate(about, top_n=top_n, known=calibration)
    answered = zip(asking, calibrated.answers, calibrated.confidence, strict=True)
    facts = [_measured(engine, *row, ablation, specific, checkpoint, tick) for row in answered]
    tables = tables_of(engine.tokenizer, asking, replied, facts)
    notices = [*engine.tokenizer.habits(), *_notices(unasked)]
    if problem := parts_problem(engine):
        notices.append(f"{problem}, so the features of facts and their effects are not measured")
    return Probed(tables, calibrated.calibration, calibrated.report, notices)


def ask_subjects(
    engine: Engine,
    relation: Relation,
    subjects: Iterable[str] | None = None,
    *,
    top_n: int = 1,
    few_shot: bool = True,
    unfit: Callable[[str, str], None] = lambda subject, why: None,
) -> list[Answer]:
    """What the model answers about the subjects (default: the relation's own), ranked: no features, no confidence.

    Subjects without an answer are missing; `unfit` is called with those that the model cannot be asked about, and why.
    One batched pass per template; for the questions of a query.
    """
    asked = relation if subjects is None else relation.over(subjects)
    unasked: dict[str, str] = {}
    replied = [
        reply
        for question in questions([asked], few_shot=few_shot)
        for reply in _ask(engine, question, Checkpoint(None), lambda n: None, unasked)
    ]
    for subject, why in unasked.items():
        unfit(subject, why)
    return combine(replied, top_n=top_n)


def _counter(total: int, progress: Ticker) -> Callable[[int | Fraction], None]:
    """A function that counts steps, also parts of one, and reports whole ones."""
    done = Fraction(0)

    def tick(steps: int | Fraction) -> None:
        nonlocal done
        before, done = done, done + steps
        if int(done) > int(before):
            progress(int(done), total)

    return tick


def _ask(
    engine: Engine,
    question: Question,
    store: Checkpoint,
    tick: Callable[[int], None],
    unasked: dict[str, str],
) -> list[Reply]:
    """The replies of all variants; subjects that not even the first can ask about go into `unasked`, with the reason."""
    out: list[Reply] = []
    for variant in question.variants:
        replied, skipped = replies(engine, question, variant, checkpoint=store, done=tick)
        out += replied
        if variant.index == 0:
            unasked |= skipped
    return out


def _notices(unasked: Mapping[str, str]) -> list[str]:
    shown = [f"{s[:40]!r} was not asked about: {reason}" for s, reason in list(unasked.items())[:_NAMED]]
    more = len(unasked) - _NAMED
    return [*shown, f"{more} more were not asked about for such reasons"] if more > 0 else shown


def _measured(
    engine: Engine,
    question: Question,
    answers: list[Answer],
    confidence: list[tuple[float, bool]],
    ablation: str,
    specific: bool,
    checkpoint: Path | None,
    tick: Callable[[int | Fraction], None],
) -> list[ProbedFact]:
    """The answers as facts; those that become triples with the features that carry them."""
    relation = question.relation
    chosen = [i for i, a in enumerate(answers) if a.rank == 1 or (relation.many and a.p >= MANY_P)]
    triples = [answers[i] for i in chosen]
    replacement = None
    context: list[object] = [engine.fingerprint, str(engine.model.dtype), ablation]
    if ablation == "mean" and triples:
        replacement, prompts = _means(engine, question)
        context.append(prompts)
    store = Checkpoint(checkpoint, context)
    steps = Fraction(len(relation.entities), len(triples) or 1)
    features: list[FactFeatures] = []
    if parts_problem(engine) is None:
        features = measure(
            engine, triples, checkpoint=store, replacement=replacement, done=lambda n: tick(n * steps)
        )
    if not features:
        tick(len(relation.entities))
    effects = {}
    if specific and features:
        compared = specifics(engine, triples, features, checkpoint=store, replacement=replacement)
        effects = dict(zip(chosen, compared, strict=True))
    by_answer = dict(zip(chosen, features, strict=bool(features)))
    return [ProbedFact(a, *confidence[i], by_answer.get(i), effects.get(i)) for i, a in enumerate(answers)]


def _means(engine: Engine, question: Question) -> tuple[torch.Tensor, list[str]]:
    """Mean activations [layers, features] at the last position of the relation's bare prompts, and those prompts."""
    variant = question.variants[0]
    prompts = [variant.prompt(question.relation, s) for s in question.relation.entities[:_MEAN_PROMPTS]]
    encoded = engine.tokenizer.encode_batch(prompts)
    fits = [p for p, ids in zip(prompts, encoded, strict=True) if engine.unfit(ids) is None]
    activation = engine.capture(fits, {"activation"}).need("activation")
    return activation.float().mean(1), fits
