"""The public tables of a probing run, built from its replies, facts and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from larql_duck.catalog import rows_as_table
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing.answers import NO_ARTICLE
from larql_duck.probing.combine import Answer
from larql_duck.probing.labels import feature_relations, relations_table
from larql_duck.probing.measure import FactFeatures
from larql_duck.probing.prompts import Question
from larql_duck.probing.replies import Reply
from larql_duck.probing.specific import SpecificEffects


@dataclass(frozen=True)
class MeasuredFacts:
    """One relation's facts with confidences; measured and specific are None for facts without features."""

    facts: list[Answer]
    confidence: list[tuple[float, bool]]
    measured: list[FactFeatures | None]
    specific: list[SpecificEffects | None]


def tables_of(
    tokenizer: Tokenizer,
    asked: Sequence[Question],
    said: Sequence[Sequence[Reply]],
    found: Sequence[MeasuredFacts],
) -> dict[str, pa.Table]:
    """The tables facts, probes, edges, relations and feature_relations, with the public schemas.

    Rows stand in the questions' order, then by subject and rank (facts), by contribution (edges), by template
    (probes).
    """
    facts = _facts_table(tokenizer, asked, found)
    edges = _edges_table(asked, found)
    names = [q.relation.name for q in asked]
    return {
        "facts": facts,
        "probes": _probes_table(asked, said),
        "edges": edges,
        "relations": relations_table(
            facts,
            edges,
            names,
            {q.relation.name: q.relation.description for q in asked},
            {q.relation.name: [v.shown(q.relation) for v in q.variants] for q in asked},
        ),
        "feature_relations": feature_relations(facts, edges),
    }


def _facts_table(tokenizer: Tokenizer, asked: Sequence[Question], found: Sequence[MeasuredFacts]) -> pa.Table:
    rows = [
        {
            "subject": f.subject,
            "relation": q.relation.name,
            "object": f.object,
            "rank": f.rank,
            "p": f.p,
            "p_string": f.p_string,
            "confidence": confidence,
            "calibrated": calibrated,
            "prior": f.prior,
            "n_templates": f.n_templates,
            "effect": m.effect if m else None,
            "specific": s.fact if s else None,
            "n_features": len(m.edges) if m else 0,
            "attention_share": m.attention_share if m else None,
            # The prompt at whose end the features are read: with the article that was looked past.
            "prompt": f.prompt + ("" if f.article == NO_ARTICLE else tokenizer.token(f.article)),
            "source": "probe",
        }
        for q, own in zip(asked, found, strict=True)
        for f, (confidence, calibrated), m, s in zip(
            own.facts, own.confidence, own.measured, own.specific, strict=True
        )
    ]
    return rows_as_table("facts", rows)


def _edges_table(asked: Sequence[Question], found: Sequence[MeasuredFacts]) -> pa.Table:
    rows = [
        {
            "subject": f.subject,
            "relation": q.relation.name,
            "object": f.object,
            "layer": e.layer,
            "feature": e.feature,
            "score": e.score,
            "effect": e.effect,
            "specific": s.edges[i] if s else None,
            "source": "probe",
        }
        for q, own in zip(asked, found, strict=True)
        for f, m, s in zip(own.facts, own.measured, own.specific, strict=True)
        if m is not None
        for i, e in enumerate(m.edges)
    ]
    return rows_as_table("edges", rows)


def _probes_table(asked: Sequence[Question], said: Sequence[Sequence[Reply]]) -> pa.Table:
    rows = []
    for q, own in zip(asked, said, strict=True):
        templates = {v.index: v.shown(q.relation) for v in q.variants}
        rows += [
            {
                "prompt": r.prompt,
                "subject": r.subject,
                "relation": q.relation.name,
                "template": templates[r.variant],
                "predicted": r.outcome.predicted,
                "p": r.outcome.p,
                "entropy": r.outcome.entropy,
            }
            for r in own
        ]
    return rows_as_table("probes", rows)
