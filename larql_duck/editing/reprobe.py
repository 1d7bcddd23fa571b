"""Facts asked again under an overlay: those of the vindex with the prompts that are stored, inserted ones with their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from larql_duck.aliases import Pair
from larql_duck.editing.relation_prompts import StatedFact, known_relation
from larql_duck.inference.attribution import parts_problem
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import score_targets
from larql_duck.knowledge.relations import Relation
from larql_duck.probing.calibrate import Calibration
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.combine import combine
from larql_duck.probing.facts import MANY_P
from larql_duck.probing.measure import measure
from larql_duck.probing.outcomes import Reply
from larql_duck.probing.prompts import Question, Variant
from larql_duck.probing.replies import replies
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
    section: Mapping[str, Any],
    many: set[str],
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, pa.Table]:
    """The tables facts, edges and probes of the (subject, relation) pairs in `probes`, as the engine answers now.

    probes are rows of that table: their prompts are asked. before gives each pair's earlier objects (normalised) with
    their priors, which stay; section is that of the vindex's manifest, whose calibration and weights of templates are used.
    """
    statistics = section.get("probe", {})
    calibration = Calibration.from_json(statistics.get("calibration") or {})
    by_relation: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    columns = probes.select(["relation", "template", "subject", "prompt"]).to_pydict()
    for relation, template, subject, prompt in zip(*columns.values(), strict=True):
        by_relation[relation][template][subject] = prompt
    asked: list[Question] = []
    replies_by_question: list[list[Reply]] = []
    probed: list[list[ProbedFact]] = []
    for name, templates in by_relation.items():
        relation = known_relation(name, tuple(templates), name in many)
        variants = [StoredVariant(i, t, 0, prompts) for i, (t, prompts) in enumerate(templates.items())]
        subjects = tuple(dict.fromkeys(s for v in variants for s in v.prompts))
        question = Question(relation.over(subjects), tuple(variants))
        own: list[Reply] = []
        for variant in variants:
            some = Question(relation.over(variant.prompts), (variant,))
            own += replies(engine, some, variant, checkpoint=Checkpoint(None))[0]
        weights = _weights(statistics, name, len(variants))
        facts = [
            replace(f, prior=before.get((f.subject, name), {}).get(normal(f.object)))
            for f in combine(own, weights=weights)
        ]
        chosen = [i for i, f in enumerate(facts) if f.rank == 1 or (name in many and f.p >= MANY_P)]
        features = {}
        if parts_problem(engine) is None:
            measured = measure(engine, [facts[i] for i in chosen], checkpoint=Checkpoint(None))
            features = dict(zip(chosen, measured, strict=True))
        asked.append(question)
        replies_by_question.append(own)
        probed.append(
            [
                ProbedFact(f, *calibration.judge(relation.family, f), features.get(i))
                for i, f in enumerate(facts)
            ]
        )
        progress(len(subjects))
    tables = tables_of(engine.tokenizer, asked, replies_by_question, probed)
    return {name: tables[name] for name in ("facts", "edges", "probes")}


def _weights(statistics: Mapping[str, Any], relation: str, n: int) -> dict[int, float] | None:
    """How much each template counts, as the run that asked them found; None where that is not known for all."""
    found = (statistics.get("relations") or {}).get(relation, {})
    if set(found.get("templates", ())) != {str(i) for i in range(n)}:
        return None
    return {int(i): float(w) for i, w in found.get("weights", {}).items()} or None


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
