"""The public tables of a probing run, built from its replies, facts and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from larql_duck.catalog import as_table, rows_as_table
from larql_duck.knowledge.keys import name_key
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing.combine import Answer
from larql_duck.probing.measure import FactFeatures
from larql_duck.probing.outcomes import NO_ARTICLE, Reply
from larql_duck.probing.prompts import Question
from larql_duck.probing.specific import SpecificEffects
from larql_duck.vindex.derive import feature_relations, probed_relations


@dataclass(frozen=True)
class ProbedFact:
    """An answer with its confidence; features and specific are None where no features were measured."""

    answer: Answer
    confidence: float
    calibrated: bool
    features: FactFeatures | None = None
    specific: SpecificEffects | None = None


def tables_of(
    tokenizer: Tokenizer,
    asked: Sequence[Question],
    replied: Sequence[Sequence[Reply]],
    facts: Sequence[Sequence[ProbedFact]],
) -> dict[str, pa.Table]:
    """The tables facts, probes, edges, relations and feature_relations, with the public schemas.

    Rows stand in the questions' order, then by subject and rank (facts), by contribution (edges), by template
    (probes).
    """
    by_name = {q.relation.name: own for q, own in zip(asked, facts, strict=True)}
    rows = {
        "facts": [_fact_row(tokenizer, name, f) for name, own in by_name.items() for f in own],
        "edges": [row for name, own in by_name.items() for f in own for row in _edge_rows(name, f)],
        "probes": [row for q, own in zip(asked, replied, strict=True) for row in _probe_rows(q, own)],
    }
    tables = {name: rows_as_table(name, own) for name, own in rows.items()}
    described = {
        "relation": list(by_name),
        "description": [q.relation.description for q in asked],
        "templates": [[v.template(q.relation) for v in q.variants] for q in asked],
    }
    relations = probed_relations(tables["facts"], tables["edges"], as_table("relations", described))
    features = feature_relations(tables["facts"], tables["edges"])
    return {**tables, "relations": relations, "feature_relations": features}


def _fact_row(tokenizer: Tokenizer, relation: str, fact: ProbedFact) -> dict[str, object]:
    a, features = fact.answer, fact.features
    names = ("subject", "object", "rank", "p", "p_string", "prior", "n_templates")
    return {name: getattr(a, name) for name in names} | {
        "relation": relation,
        "subject_key": name_key(a.subject),
        "object_key": name_key(a.object),
        "confidence": fact.confidence,
        "calibrated": fact.calibrated,
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


def _probe_rows(question: Question, replied: Sequence[Reply]) -> list[dict[str, object]]:
    templates = {v.index: v.template(question.relation) for v in question.variants}
    return [
        {
            "prompt": r.prompt,
            "subject": r.subject,
            "relation": question.relation.name,
            "template": templates[r.variant],
            "predicted": r.outcome.predicted,
            "p": r.outcome.p,
            "entropy": r.outcome.entropy,
        }
        for r in replied
    ]
