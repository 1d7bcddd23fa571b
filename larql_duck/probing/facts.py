"""Probing: a model asked about a pack's subjects, and its answers made into facts, edges and relations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from larql_duck.errors import LarqlError
from larql_duck.knowledge.relations import Pack, Relation
from larql_duck.probing.calibrate import Calibration, RelationReplies, calibrate
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.combine import Answer, combine
from larql_duck.probing.measure import measure
from larql_duck.probing.prompts import Question, questions
from larql_duck.probing.replies import Reply, replies
from larql_duck.probing.specific import SpecificEffects, specifics
from larql_duck.probing.tables import MeasuredFacts, tables_of
from larql_duck.progress import Ticker

if TYPE_CHECKING:
    import torch

    from larql_duck.inference.engine import Engine

# A further answer of a relation with many answers becomes a triple, and so has features, from this p on.
MANY_P = 0.1


@dataclass(frozen=True)
class Probed:
    """What probing found: tables (facts, probes, edges, relations, feature_relations), calibration, notices.

    report holds figures of the calibration: see `calibrate`.
    """

    tables: dict[str, pa.Table]
    calibration: Calibration
    report: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def probe_facts(
    engine: Engine,
    asked: Pack | Iterable[Relation] | str | Path,
    *,
    relations: Iterable[str] | None = None,
    limit: int | None = None,
    progress: Ticker | None = None,
    checkpoint: Path | None = None,
    top_n: int = 3,
    **options: Any,
) -> dict[str, pa.Table]:
    """The tables facts, probes, edges, relations and feature_relations of a probing run; see `probe` for options."""
    return probe(
        engine,
        asked,
        relations=relations,
        limit=limit,
        progress=progress,
        checkpoint=checkpoint,
        top_n=top_n,
        **options,
    ).tables


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
    progress is called with (done, total) steps; checkpoint is a directory in which finished batches are kept and
    found again. Deterministic. LarqlError when nothing is left to ask.
    """
    if ablation not in ("zero", "mean"):
        raise LarqlError(f"ablation {ablation!r} is not known; use 'zero' or 'mean'")
    if top_n < 1 or (limit is not None and limit < 1):
        raise LarqlError("top_n and limit must be at least 1")
    asked_questions = questions(
        asked, relations=relations, limit=limit, max_prompts=max_prompts, few_shot=few_shot
    )
    if not asked_questions:
        raise LarqlError("nothing to ask: the pack has no relation with subjects")
    store = Checkpoint(checkpoint, [engine.fingerprint, str(engine.model.dtype)])
    tick = _Ticker(asked_questions, progress)
    notices: list[str] = []
    said = [_ask(engine, q, store, tick, notices) for q in asked_questions]
    judged = calibrate(
        [RelationReplies(q.relation, tuple(own)) for q, own in zip(asked_questions, said, strict=True)],
        top_n=top_n,
        known=calibration,
    )
    found: list[MeasuredFacts] = []
    for question, facts, confidence in zip(asked_questions, judged.facts, judged.confidence, strict=True):
        found.append(_carry(engine, question, facts, confidence, ablation, specific, checkpoint, tick))
    tables = tables_of(engine.tokenizer, asked_questions, said, found)
    return Probed(tables, judged.calibration, judged.report, notices)


def ask_subjects(
    engine: Engine,
    relation: Relation,
    subjects: Iterable[str] | None = None,
    *,
    top_n: int = 1,
    few_shot: bool = True,
) -> list[Answer]:
    """What the model answers about the subjects (default: the relation's own), ranked: no features, no confidence.

    Subjects without an answer are missing. One batched pass per template; for the questions of a query.
    """
    own = relation if subjects is None else relation.over(subjects)
    said: list[Reply] = []
    for question in questions([own], few_shot=few_shot):
        for variant in question.variants:
            said += replies(engine, question, variant, checkpoint=Checkpoint(None))[0]
    return combine(said, top_n=top_n)


class _Ticker:
    """Counts steps: one a prompt, then one a subject whose facts are measured."""

    def __init__(self, asked: Sequence[Question], progress: Ticker | None) -> None:
        self._progress = progress
        self.done = 0
        self._total = sum(q.n_prompts + len(q.relation.entities) for q in asked)

    def __call__(self, n: int) -> None:
        self.reach(self.done + n)

    def reach(self, done: int) -> None:
        """`done` steps are done; fewer than before change nothing."""
        if done > self.done:
            self.done = min(done, self._total)
            if self._progress is not None:
                self._progress(self.done, self._total)

    def within(self, steps: int, n: int) -> Callable[[int], None]:
        """A counter of n smaller steps that together make up the next `steps`."""
        start, count = self.done, 0

        def done(more: int) -> None:
            nonlocal count
            count += more
            self.reach(start + steps * min(count, n) // max(n, 1))

        return done


def _ask(
    engine: Engine, question: Question, store: Checkpoint, tick: _Ticker, notices: list[str]
) -> list[Reply]:
    out: list[Reply] = []
    for variant in question.variants:
        own, skipped = replies(engine, question, variant, checkpoint=store, done=tick)
        out += own
        if skipped and variant.index == 0:
            notices.append(
                f"{question.relation.name}: {len(skipped)} subjects are too long for the model's context, "
                f"the first is {skipped[0][:40]!r}"
            )
    return out


def _carry(
    engine: Engine,
    question: Question,
    facts: list[Answer],
    confidence: list[tuple[float, bool]],
    ablation: str,
    specific: bool,
    checkpoint: Path | None,
    tick: _Ticker,
) -> MeasuredFacts:
    """The facts with the features that carry them, for those that become triples."""
    relation = question.relation
    chosen = [i for i, f in enumerate(facts) if f.rank == 1 or (relation.many and f.p >= MANY_P)]
    own = [facts[i] for i in chosen]
    replacement = None
    context: list[object] = [engine.fingerprint, str(engine.model.dtype), ablation]
    if ablation == "mean" and own:
        replacement, prompts = _means(engine, question)
        context.append(prompts)
    store = Checkpoint(checkpoint, context)
    steps = len(relation.entities)
    target = tick.done + steps
    counted = tick.within(steps, len(own))
    measured = measure(engine, own, checkpoint=store, replacement=replacement, done=counted)
    beyond: Sequence[SpecificEffects | None] = [None] * len(own)
    if specific:
        beyond = specifics(engine, own, measured, checkpoint=store, replacement=replacement)
    tick.reach(target)
    place = {i: k for k, i in enumerate(chosen)}
    return MeasuredFacts(
        facts,
        confidence,
        [measured[place[i]] if i in place else None for i in range(len(facts))],
        [beyond[place[i]] if i in place else None for i in range(len(facts))],
    )


# Prompts over which mean activations are taken.
_MEAN_PROMPTS = 64


def _means(engine: Engine, question: Question) -> tuple[torch.Tensor, list[str]]:
    """Mean activations [layers, features] at the last position of the relation's bare prompts, and those prompts."""
    variant = question.variants[0]
    prompts = [variant.prompt(question.relation, s) for s in question.relation.entities[:_MEAN_PROMPTS]]
    encoded = engine.tokenizer.encode_batch(prompts)
    fits = [
        p
        for p, ids in zip(prompts, encoded, strict=True)
        if engine.context is None or len(ids) <= engine.context
    ]
    activation = engine.capture(fits, {"activation"}).need("activation")
    return activation.float().mean(1), fits
