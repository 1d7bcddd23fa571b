"""What an extraction asks so that any name can be asked later: a little of every relation that is asked about a type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.knowledge.entities import IS_A, entity_types
from larql_duck.knowledge.relations import Pack, Relation
from larql_duck.probing.choosing import USUAL_CONTRAST, Knowledge
from larql_duck.probing.nobody import nobodies
from larql_duck.probing.packs import known_members, known_relations
from larql_duck.probing.prompts import Variant, questions
from larql_duck.probing.splits import TEST, split_of

# Subjects of a relation that teach how its answers look, and of `is a`, which is asked about every name.
TAUGHT, TAUGHT_IS_A = 12, 160
# Examples before the first template, where no pilot finds out better.
_SHOTS = 3


@dataclass(frozen=True)
class Lessons:
    """What to ask: the pack, how its relations are asked where no pilot tells, and names to which no answer is right."""

    pack: Pack
    usual: Knowledge
    nobody: Mapping[str, Sequence[str]]


def with_open_world(pack: Pack) -> Lessons:
    """The pack with some subjects of every other relation that is asked about names.

    A pilot is left to the pack's own relations and `is a`; the others are asked in their usual variant.
    """
    own = {r.name for r in pack.relations}
    asked = dict.fromkeys(r for t in entity_types().values() for r in t.asked)
    known = known_relations()
    further = [
        _spread(known[name], TAUGHT_IS_A if name == IS_A else TAUGHT)
        for name in asked
        if name in known and name not in own
    ]
    usual = {r.name: {usual_variant(r).template(r): 1.0} for r in further if r.name != IS_A}
    contrasts = dict.fromkeys(usual, USUAL_CONTRAST)
    whole = Pack(pack.name, (*pack.relations, *further), pack.path, pack.description)
    nobody = nobodies([r.name for r in whole.relations], known_members())
    return Lessons(whole, Knowledge(usual, contrasts), nobody)


def without_taught(tables: Mapping[str, pa.Table], taught: Collection[str]) -> dict[str, pa.Table]:
    """The tables of a run without the facts of relations that were asked to learn from: a name of which one stray fact is
    stored would get no page. What they are asked like, and `is a`, stays.
    """
    gone = pa.array([name for name in taught if name != IS_A], pa.string())
    return {
        name: table
        if name in ("prompts", "priors")
        else table.filter(pc.invert(pc.is_in(table["relation"], gone)))
        for name, table in tables.items()
    }


def usual_variant(relation: Relation) -> Variant:
    """How a relation is asked where nothing is known about it: its first template behind a few examples."""
    (question,) = questions([relation])
    return usual_of(question.variants)


def usual_of(variants: Sequence[Variant]) -> Variant:
    """The usual one of a relation's variants."""
    return min(variants, key=lambda v: (abs(v.shots - _SHOTS), v.index))


def _spread(relation: Relation, n: int) -> Relation:
    """The relation over n of its subjects, from the best known to the least; not those that stand in its prompts, which
    would need prompts of their own, and those of the test third, which teach nothing.
    """
    (question,) = questions([relation])
    shown = {subject for v in question.variants for subject, _ in v.examples}
    every = [s for s in relation.entities if s not in shown and split_of(s) != TEST]
    return relation.over(_evenly(every, n) if every else relation.entities[:n])


def _evenly(items: Sequence[str], n: int) -> Iterable[str]:
    return items if len(items) <= n else [items[i * len(items) // n] for i in range(n)]
