"""Probing: a model asked about a pack's subjects, and its answers made into facts, edges and relations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pyarrow as pa
import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.attribution import parts_problem
from larql_duck.inference.engine import Engine
from larql_duck.inference.engine_nodes import EngineNodes
from larql_duck.inference.loading import return_memory
from larql_duck.knowledge.relations import Pack, Relation
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.choosing import MOST_VARIANTS, Answered, Knowledge
from larql_duck.probing.combine import Answer
from larql_duck.probing.confidence import Calibration
from larql_duck.probing.entity_types import NamesTold
from larql_duck.probing.judging import ask_all, ask_nobody, judge, rank, read_subjects
from larql_duck.probing.measure import FactFeatures, measure
from larql_duck.probing.prompts import Question, questions
from larql_duck.probing.remarks import remarks
from larql_duck.probing.replies import Asker
from larql_duck.probing.specific import SpecificEffects, specifics
from larql_duck.probing.tables import ProbedFact, tables_of
from larql_duck.progress import Ticker, doing, ticker

# A further answer of a relation with many answers becomes a triple, and so has features, from this p on.
MANY_P = 0.1
# Subjects that could not be asked about, named one by one.
_NAMED = 10
# Prompts over which mean activations are taken.
_MEAN_PROMPTS = 64


@dataclass(frozen=True)
class Probed:
    """The result of a probing run: its tables (see `tables_of`), the calibration, what the subjects were read as, and notices."""

    tables: dict[str, pa.Table]
    calibration: Calibration
    told: NamesTold
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
    known: Knowledge | None = None,
    unmeasured: Collection[str] = (),
    nobody: Mapping[str, Sequence[str]] | None = None,
    progress: Ticker | None = None,
    checkpoint: Path | None = None,
    nodes: EngineNodes | None = None,
) -> Probed:
    """The facts that the model states about the subjects of a pack (or its name or file, or Relation objects).

    A pilot tries each relation's templates, bare and behind examples (few_shot), on a few subjects; every subject is
    then asked in the best ones. The object of a fact is the model's own answer; top_n answers a subject are kept.
    Answers of rank 1, and those with p >= MANY_P where the pack says many, get features: the largest direct
    contributions, with the effect of taking each of the first 8, and all of them, away (ablation: to zero, or to the
    mean over the relation's prompts); not those of the relations named in `unmeasured`, of which one answer a subject is
    kept, unless they have many. nobody gives, by
    relation, names to which no answer is right: they teach what confidence means and get no facts. specific compares those effects with the ones on other facts of the relation.

    relations picks some by name, limit each relation's first subjects, max_prompts bounds all prompts of the run, the
    pilot's too. Confidence is learnt where the pack brings references; `known` is what earlier runs chose and learnt:
    relations that were tried before are asked as they were then. progress is called with (done, total) steps (None:
    whoever watches is told); checkpoint is a directory in which finished batches are kept and found again; with
    `nodes` batches of prompts, and of facts whose features are measured, are made there.
    Deterministic. LarqlError when nothing is left to ask.
    """
    if ablation not in ("zero", "mean"):
        raise LarqlError(f"ablation {ablation!r} is not known; use 'zero' or 'mean'")
    for name, value in (("top_n", top_n), ("limit", limit), ("max_prompts", max_prompts)):
        if value is not None and value < 1:
            raise LarqlError(f"{name} is {value}; it must be at least 1")
    asking = questions(asked, relations=relations, limit=limit, max_prompts=max_prompts, few_shot=few_shot)
    if not asking:
        raise LarqlError("nothing to ask: the pack has no relation with subjects")
    known = known or Knowledge()
    store = Checkpoint(checkpoint, [engine.fingerprint, str(engine.model.dtype)], nodes)
    steps = _Steps(sum(len(q.relation.entities) for q in asking), max_prompts, progress or ticker("facts"))
    asker = Asker(engine, store, steps.done, once=unmeasured)
    answered = ask_all(asker, asking, known, max_prompts, told=steps.planned)
    rank(answered, top_n=top_n)
    wrong = ask_nobody(asker, answered, nobody or {})
    return_memory()
    with doing("reading names"):
        told = read_subjects(engine, known, [*answered, *wrong])
    return_memory()
    calibration = judge(engine, answered, known, nobody=wrong, named=told)
    facts = []
    for a in answered:
        if a.question.relation.name in unmeasured:
            facts.append(stated(a))
            steps.done(len(a.question.relation.entities))
        else:
            facts.append(measured(engine, a, ablation, specific, checkpoint, steps.done, nodes))
    tables = tables_of(engine.tokenizer, answered, facts)
    notices = [*engine.tokenizer.habits(), *_notices(asker.unasked)]
    if problem := parts_problem(engine):
        notices.append(f"{problem}, so the features of facts and their effects are not measured")
    return Probed(tables, calibration, told, [*notices, *remarks(answered)])


def ask_subjects(
    engine: Engine,
    relation: Relation,
    subjects: Iterable[str] | None = None,
    *,
    top_n: int = 1,
    few_shot: bool = True,
    known: Knowledge | None = None,
    unfit: Callable[[str, str], None] = lambda subject, why: None,
) -> list[Answer]:
    """What the model answers about the subjects (default: the relation's own), ranked: no features, no confidence.

    Subjects without an answer are missing; `unfit` is called with those that the model cannot be asked about, and why.
    For the questions of a query: the relation is asked as it was when the vindex was probed.
    """
    asked = relation if subjects is None else relation.over(subjects)
    asker = Asker(engine)
    known = known or Knowledge()
    (answered,) = ask_all(asker, questions([asked], few_shot=few_shot), known, None, try_out=False)
    for subject, why in asker.unasked.items():
        unfit(subject, why)
    rank([answered], top_n=top_n)
    return answered.answers


class _Steps:
    """Counts steps and reports whole ones: one a prompt, then one a subject whose facts are measured."""

    def __init__(self, subjects: int, max_prompts: int | None, progress: Ticker) -> None:
        self._subjects = subjects
        self._total = subjects + (subjects * MOST_VARIANTS if max_prompts is None else max_prompts)
        self._progress = progress
        self._done = Fraction(0)

    def planned(self, prompts: int) -> None:
        """So many prompts will have been asked."""
        self._total = self._subjects + prompts

    def done(self, steps: int | Fraction) -> None:
        """So many more steps are done."""
        before, self._done = self._done, self._done + steps
        if int(self._done) > int(before):
            self._progress(min(int(self._done), self._total), self._total)


def _notices(unasked: Mapping[str, str]) -> list[str]:
    shown = [f"{s[:40]!r} was not asked about: {reason}" for s, reason in list(unasked.items())[:_NAMED]]
    more = len(unasked) - _NAMED
    return [*shown, f"{more} more were not asked about for such reasons"] if more > 0 else shown


def measured(
    engine: Engine,
    answered: Answered,
    ablation: str = "zero",
    specific: bool = False,
    checkpoint: Path | None = None,
    tick: Callable[[int | Fraction], None] = lambda steps: None,
    nodes: EngineNodes | None = None,
) -> list[ProbedFact]:
    """The answers as facts; those that become triples with the features that carry them. Options are those of `probe`."""
    question, answers = answered.question, answered.answers
    relation = question.relation
    chosen = [i for i, a in enumerate(answers) if a.rank == 1 or (relation.many and a.p >= MANY_P)]
    triples = [answers[i] for i in chosen]
    replacement = None
    context: list[object] = [engine.fingerprint, str(engine.model.dtype), ablation]
    if ablation == "mean" and triples:
        replacement, prompts = _means(engine, question)
        context.append(prompts)
    store = Checkpoint(checkpoint, context, nodes)
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
    return stated(answered, dict(zip(chosen, features, strict=bool(features))), effects)


def stated(
    answered: Answered,
    features: Mapping[int, FactFeatures] | None = None,
    effects: Mapping[int, SpecificEffects] | None = None,
) -> list[ProbedFact]:
    """The answers as facts, with the features and specific effects of those (by number) that were measured."""
    references = answered.question.relation.references
    return [
        ProbedFact(
            a,
            *answered.confidence[i],
            references.get(a.subject),
            answered.correct[i],
            (features or {}).get(i),
            (effects or {}).get(i),
        )
        for i, a in enumerate(answered.answers)
    ]


def _means(engine: Engine, question: Question) -> tuple[torch.Tensor, list[str]]:
    """Mean activations [layers, features] at the last position of the relation's bare prompts, and those prompts."""
    variant = question.variants[0]
    prompts = [variant.prompt(question.relation, s) for s in question.relation.entities[:_MEAN_PROMPTS]]
    encoded = engine.tokenizer.encode_batch(prompts)
    fits = [p for p, ids in zip(prompts, encoded, strict=True) if engine.unfit(ids) is None]
    activation = engine.capture(fits, {"activation"}).need("activation")
    return activation.float().mean(1), fits
