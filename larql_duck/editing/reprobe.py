"""Facts asked again under an overlay: those of the vindex with the prompts that are stored, inserted ones with their own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from larql_duck.aliases import Pair
from larql_duck.editing.relation_prompts import StatedFact, known_relation
from larql_duck.inference.attribution import parts_problem
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import score_targets
from larql_duck.knowledge.relations import Relation
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.choosing import Answered, Knowledge
from larql_duck.probing.facts import MANY_P
from larql_duck.probing.judging import asked_before, judge, rank
from larql_duck.probing.measure import measure
from larql_duck.probing.prompts import Question, Variant
from larql_duck.probing.replies import Ask, Asker
from larql_duck.probing.tables import ProbedFact, tables_of
from larql_duck.probing.words import normal


@dataclass(frozen=True)
class StoredVariant(Variant):
    """A template with the prompts that were asked with it, by subject."""

    prompts: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, relation: Relation, subject: str) -> str:
        """The prompt that was asked about the subject."""
        return self.prompts[subject]

    def template(self, relation: Relation) -> str:
        """The template as it is stored."""
        return self.base


@dataclass(frozen=True)
class FactScore:
    """How far a fact holds: mean probabilities of its target's first token and of the whole target.

    prompt is the one with the highest p; there, effect is the drop of log p (nats) of the first token, and score that of
    its centred logit, when the feature that carries the fact is zeroed at every position; None without one.
    """

    p: float
    p_string: float
    n_templates: int
    effect: float | None
    score: float | None
    prompt: str


# -- facts of the vindex --------------------------------------------------------------------------------------


def reprobe_pairs(
    engine: Engine,
    probes: pa.Table,
    before: Mapping[Pair, Mapping[str, float | None]],
    known: Knowledge,
    stated: Mapping[str, Counter[str]],
    many: set[str],
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, pa.Table]:
    """The tables facts, edges and probes of the (subject, relation) pairs in `probes`, as the engine answers now.

    probes are rows of that table: their prompts are asked. before gives each pair's earlier objects (normalised) with
    their priors, which stay. known is what the vindex knows of asking and judging; stated counts, by relation, the best
    answers of all its subjects.
    """
    by_relation: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    columns = probes.select(["relation", "template", "subject", "prompt"]).to_pydict()
    for relation, template, subject, prompt in zip(*columns.values(), strict=True):
        if template in known.weights.get(relation, {template: 1.0}):
            by_relation[relation][template][subject] = prompt
    answered: list[Answered] = []
    probed: list[list[ProbedFact]] = []
    asker = Asker(engine)
    for name, templates in by_relation.items():
        relation = known_relation(name, tuple(templates), name in many)
        variants = [StoredVariant(i, t, prompts=prompts) for i, (t, prompts) in enumerate(templates.items())]
        subjects = tuple(dict.fromkeys(s for v in variants for s in v.prompts))
        question = Question(relation.over(subjects), tuple(variants))
        own = asked_before(question, known)
        items = [Ask(question.relation, v, s) for v in variants for s in v.prompts]
        own.piloted.add(asker.ask(items, {name: own.piloted.priors}))
        rank([own])
        judge(engine, [own], known, stated=stated, learn=False)
        own.answers = [
            replace(f, prior=before.get((f.subject, name), {}).get(normal(f.object))) for f in own.answers
        ]
        chosen = [i for i, f in enumerate(own.answers) if f.rank == 1 or (name in many and f.p >= MANY_P)]
        features = {}
        if parts_problem(engine) is None:
            measured = measure(engine, [own.answers[i] for i in chosen], checkpoint=Checkpoint(None))
            features = dict(zip(chosen, measured, strict=True))
        answered.append(own)
        probed.append(
            [
                ProbedFact(
                    f, *own.confidence[i], relation.references.get(f.subject), own.correct[i], features.get(i)
                )
                for i, f in enumerate(own.answers)
            ]
        )
        progress(len(subjects))
    tables = tables_of(engine.tokenizer, answered, probed)
    return {name: tables[name] for name in ("facts", "edges", "probes")}


# -- facts that are to be true --------------------------------------------------------------------------------


def score_facts(
    engine: Engine, facts: Sequence[StatedFact], progress: Callable[[int], None] = lambda n: None
) -> list[FactScore | None]:
    """How far each fact holds now; None for one without prompts or whose target has no token.

    progress is called with the number of facts that are done since the last call.
    """
    asked: list[tuple[int, str]] = []
    rows: list[tuple[list[int], list[int]]] = []
    for i, fact in enumerate(facts):
        target = engine.tokenizer.entity_ids(fact.target)
        for prompt, ids in zip(fact.prompts, engine.tokenizer.encode_batch(list(fact.prompts)), strict=True):
            fits = engine.context is None or len(ids) + len(target) <= engine.context
            if ids and target and fits:
                asked.append((i, prompt))
                rows.append((ids, target))
    now = score_targets(engine, rows)
    by_fact: dict[int, list[int]] = defaultdict(list)
    for k, (i, _) in enumerate(asked):
        by_fact[i].append(k)
    best = {i: max(own, key=lambda k: (now[k].log_first, -k)) for i, own in by_fact.items()}
    # What carries a fact is taken away at the prompt that states it best.
    carried = [i for i in best if facts[i].slot is not None]
    less = score_targets(engine, [rows[best[i]] for i in carried], [facts[i].slot for i in carried])
    without = dict(zip(carried, less, strict=True))
    progress(len(facts))
    scores: list[FactScore | None] = [None] * len(facts)
    for i, k in best.items():
        every, gone = [now[j] for j in by_fact[i]], without.get(i)
        scores[i] = FactScore(
            p=sum(s.first for s in every) / len(every),
            p_string=sum(s.p for s in every) / len(every),
            n_templates=len(every),
            effect=None if gone is None else now[k].log_first - gone.log_first,
            score=None if gone is None else now[k].centred - gone.centred,
            prompt=asked[k][1],
        )
    return scores
