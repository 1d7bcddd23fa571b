"""The public tables of a probing run, built from its replies, facts and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from larql_duck.catalog import as_table, rows_as_table
from larql_duck.knowledge.keys import name_key
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing.choosing import Answered
from larql_duck.probing.combine import Answer
from larql_duck.probing.confidence import Calibrated
from larql_duck.probing.measure import FactFeatures
from larql_duck.probing.outcomes import NO_ARTICLE
from larql_duck.probing.priors import LEAST_STORED
from larql_duck.probing.specific import SpecificEffects
from larql_duck.probing.splits import TEST, split_of
from larql_duck.vindex.derive import derive_triples, feature_relations, probed_relations


@dataclass(frozen=True)
class ProbedFact:
    """An answer with its confidence and what that was learnt from; reference are the accepted answers, correct says
    whether it is one of them (None without any). features and specific are None where no features were measured.
    """

    answer: Answer
    confidence: float | None
    calibrated: Calibrated
    reference: tuple[str, ...] | None = None
    correct: bool | None = None
    features: FactFeatures | None = None
    specific: SpecificEffects | None = None


def tables_of(
    tokenizer: Tokenizer, answered: Sequence[Answered], facts: Sequence[Sequence[ProbedFact]]
) -> dict[str, pa.Table]:
    """The tables facts, probes, prompts, priors, edges, relations and feature_relations, with the public schemas.

    Rows stand in the relations' order, then by subject and rank (facts), by contribution (edges), by template
    (probes, prompts, priors).
    """
    by_name = {a.question.relation.name: own for a, own in zip(answered, facts, strict=True)}
    rows = {
        "facts": [_fact_row(tokenizer, name, f) for name, own in by_name.items() for f in own],
        "edges": [row for name, own in by_name.items() for f in own for row in _edge_rows(name, f)],
        "probes": [row for a in answered for row in _probe_rows(a)],
        "prompts": [row for a in answered for row in _prompt_rows(a)],
        "priors": [row for a in answered for row in _prior_rows(tokenizer, a)],
    }
    tables = {name: rows_as_table(name, own) for name, own in rows.items()}
    described = {
        "relation": list(by_name),
        "description": [a.question.relation.description for a in answered],
        "templates": [list(a.templates_asked) for a in answered],
    }
    relations = probed_relations(tables["facts"], tables["edges"], as_table("relations", described))
    features = feature_relations(tables["facts"], tables["edges"])
    return {**tables, "relations": relations, "feature_relations": features}


def live_tables(
    tokenizer: Tokenizer, answered: Sequence[Answered], facts: Sequence[Sequence[ProbedFact]]
) -> dict[str, pa.Table]:
    """The tables facts, edges and triples of answers that nobody stores: their source is 'live'."""
    named = [(a.question.relation.name, f) for a, own in zip(answered, facts, strict=True) for f in own]
    live = {"source": "live"}
    rows = rows_as_table("facts", [_fact_row(tokenizer, name, f) | live for name, f in named])
    edges = rows_as_table("edges", [row | live for name, f in named for row in _edge_rows(name, f)])
    many = {a.question.relation.name for a in answered if a.question.relation.many}
    return {"facts": rows, "edges": edges, "triples": derive_triples(rows, edges, many)}


def _fact_row(tokenizer: Tokenizer, relation: str, fact: ProbedFact) -> dict[str, object]:
    a, features = fact.answer, fact.features
    names = ("subject", "object", "rank", "p", "p_string", "prior", "contrast", "n_templates")
    return {name: getattr(a, name) for name in names} | {
        "relation": relation,
        "subject_key": name_key(a.subject),
        "object_key": name_key(a.object),
        "confidence": fact.confidence,
        "calibrated": fact.calibrated,
        "reference": None if fact.reference is None else list(fact.reference),
        "correct": fact.correct,
        "held_out": split_of(a.subject) == TEST,
        "effect": features.effect if features else None,
        "specific": fact.specific.fact if fact.specific else None,
        "n_features": len(features.edges) if features else 0,
        "attention_share": features.attention_share if features else None,
        # The prompt at whose end the features are read: with the article that was looked past.
        "prompt": a.prompt + ("" if a.article == NO_ARTICLE else tokenizer.token(a.article)),
        "source": "probe",
    }


def _edge_rows(relation: str, fact: ProbedFact) -> list[dict[str, object]]:
    edges = fact.features.edges if fact.features else ()
    specific = fact.specific.edges if fact.specific else [None] * len(edges)
    shared = {"subject": fact.answer.subject, "relation": relation, "object": fact.answer.object}
    return [
        {**shared, **vars(edge), "specific": beyond, "source": "probe"}
        for edge, beyond in zip(edges, specific, strict=True)
    ]


def _probe_rows(answered: Answered) -> list[dict[str, object]]:
    relation = answered.question.relation
    templates = {v.index: v.template(relation) for v in answered.question.variants}
    return [
        {
            "prompt": r.prompt,
            "subject": r.subject,
            "relation": relation.name,
            "template": templates[r.variant],
            "predicted": r.outcome.predicted,
            "p": r.outcome.p,
            "entropy": r.outcome.entropy,
        }
        for r in answered.replies
    ]


def _prompt_rows(answered: Answered) -> list[dict[str, object]]:
    """The variants that were asked at all, chosen ones first."""
    relation, weights, piloted = answered.question.relation, answered.choice.weights, answered.piloted
    asked = {r.variant for r in answered.replies}
    order = [*weights, *(v for v in piloted.scores if v not in weights)]
    variants = {v.index: v for v in answered.question.variants}
    return [
        {
            "relation": relation.name,
            "template": variants[v].template(relation),
            "bare": variants[v].base,
            "examples": variants[v].shots,
            "pilot_asked": piloted.asked.get(v, 0),
            "pilot_right": piloted.right.get(v),
            "pilot_score": piloted.scores.get(v),
            "weight": weights.get(v),
            "contrast": answered.choice.contrast if v in weights else None,
        }
        for v in dict.fromkeys(order)
        if v in asked
    ]


def _prior_rows(tokenizer: Tokenizer, answered: Answered) -> list[dict[str, object]]:
    """The priors of the chosen variants, most probable token first."""
    relation = answered.question.relation
    variants = {v.index: v for v in answered.question.variants}
    rows: list[dict[str, object]] = []
    for v in answered.choice.weights:
        prior = answered.piloted.priors.of(v)
        means = sorted(prior.means().items(), key=lambda item: (-item[1], item[0]))
        rows += [
            {
                "relation": relation.name,
                "template": variants[v].template(relation),
                "token_id": token,
                "token": tokenizer.token(token),
                "p": p,
                "n_subjects": prior.n,
            }
            for token, p in means
            if p >= LEAST_STORED
        ]
    return rows
