"""What teacher and student are asked: the same prompts, each relation in the one that is known to work best."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc

from larql_duck.distillation.parties import Party
from larql_duck.errors import PackError
from larql_duck.knowledge.entities import members
from larql_duck.knowledge.frames import entities_of
from larql_duck.knowledge.relations import SLOT, Relation, relation_key, unknown
from larql_duck.probing.choosing import USUAL_CONTRAST
from larql_duck.probing.learning import usual_of
from larql_duck.probing.open_world import OpenWorld
from larql_duck.probing.packs import chosen_pack, known_members, known_relations
from larql_duck.probing.prompts import Question, questions


@dataclass(frozen=True)
class AuditQuestion:
    """A relation over the subjects that are asked, in one variant (index 0), and the contrast of its ranking."""

    question: Question
    contrast: float

    @property
    def relation(self) -> Relation:
        """The relation, over the subjects that are asked."""
        return self.question.relation


def audit_questions(
    parties: Sequence[Party],
    *,
    pack: Any = None,
    entities: Any = None,
    relations: Collection[str] | None = None,
    limit: int | None = None,
) -> list[AuditQuestion]:
    """The questions: those of a pack, about entities, or the facts that any of the parties is known for; else pack 'core'.

    relations picks some by name, limit each relation's first subjects. The prompt of a relation is the best one that the
    first party knows, else the next one's. PackError where nothing is left to ask.
    """
    if limit is not None and limit < 1:
        raise PackError(f"limit is {limit}; it must be at least 1", field="limit")
    if pack is None and entities is None:
        chosen = _of_facts(parties, relations) or list(chosen_pack(None, relations, "core").relations)
    else:
        suited = None if pack is not None or relations else _suited(parties[0], entities)
        chosen = list(chosen_pack(entities, relations, pack, suited).relations)
    asked = [_asked(parties, relation.limited(limit)) for relation in chosen if relation.entities]
    if not asked:
        raise PackError("nothing to ask: no relation has subjects; name a pack or entities", field="relation")
    return asked


def _of_facts(parties: Sequence[Party], names: Collection[str] | None) -> list[Relation]:
    """The relations of the parties' facts over their subjects, a relation's first party's subjects first."""
    subjects: dict[str, dict[str, tuple[str, ...] | None]] = {}
    for party in parties:
        facts = party.table("facts")
        best = facts.filter(pc.equal(facts["rank"], 1)).select(["relation", "subject", "reference"])
        for relation, subject, reference in zip(*best.to_pydict().values(), strict=True):
            subjects.setdefault(relation, {}).setdefault(subject, reference and tuple(reference))
    if names is not None and subjects:
        named = {relation_key(name): name for name in subjects}
        for name in names:
            if relation_key(name) not in named:
                unknown(f"no fact has the relation {name!r}", name, subjects, path=None, field="relation")
        subjects = {own: subjects[own] for own in (named[relation_key(name)] for name in names)}
    return [_relation(parties, name, own) for name, own in subjects.items()]


def _relation(parties: Sequence[Party], name: str, subjects: Mapping[str, Sequence[str] | None]) -> Relation:
    """The relation of that name over these subjects: a shipped one, else as the parties' tables have it."""
    shipped = known_relations().get(name)
    if shipped is not None:
        return shipped.over(subjects)
    templates = tuple(dict.fromkeys(t for party in parties for t in _templates(party, name)))
    references = {s: tuple(own) for s, own in subjects.items() if own}
    made = Relation(name, "", templates or (f"The {relation_key(name)} of {SLOT} is",), answer="phrase")
    return replace(made, entities=tuple(subjects), references=references)


def _templates(party: Party, name: str) -> list[str]:
    rows = party.table("relations")
    own = rows.filter(pc.equal(rows["relation"], name))["templates"].to_pylist()
    return [t for templates in own for t in templates or () if t.count(SLOT) == 1 and "\n" not in t]


def _suited(party: Party, entities: Any) -> dict[str, list[str]]:
    """Name -> the relations that suit it, by what this party's model takes it for."""
    rows = entities_of(entities)
    names = [row.subject for row in rows or ()]
    world = OpenWorld(party.engine, party.known)
    return {name: world.asked_about(own, name) for name, own in zip(names, world.types(names), strict=True)}


def _asked(parties: Sequence[Party], relation: Relation) -> AuditQuestion:
    (question,) = questions([relation])
    for party in parties:
        weights = party.known.weights.get(relation.name, {})
        known = [v for v in question.variants if v.template(relation) in weights]
        if known:
            best = max(known, key=lambda v: (weights[v.template(relation)], -v.index))
            contrast = party.known.contrasts.get(relation.name, USUAL_CONTRAST)
            return AuditQuestion(Question(relation, (replace(best, index=0),)), contrast)
    usual = usual_of(question.variants)
    return AuditQuestion(Question(relation, (replace(usual, index=0),)), USUAL_CONTRAST)


def entity_type_of(asked: Sequence[AuditQuestion]) -> dict[tuple[str, str], str]:
    """(relation, subject) -> the subject's type: as packs list the name, else what the relation's subjects are."""
    listed = {**known_members(), **members(a.relation for a in asked)}
    return {
        (a.relation.name, subject): listed.get(subject, (a.relation.subjects,))[0]
        for a in asked
        for subject in a.relation.entities
    }
