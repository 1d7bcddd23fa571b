"""Names that no list knows: what kind of thing each one is, which questions that makes worth asking, and all of them
asked in shared batches.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Heads
from larql_duck.knowledge.entities import IS_A, entity_types, members
from larql_duck.knowledge.relations import Relation
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.choosing import USUAL_CONTRAST, Answered, Chosen, Knowledge
from larql_duck.probing.combine import Worth
from larql_duck.probing.entity_types import NamesTold, with_listed, without_unknown
from larql_duck.probing.judging import judge, rank, type_index, worth_of
from larql_duck.probing.learning import usual_of
from larql_duck.probing.names import NamesRead, how_familiar
from larql_duck.probing.packs import known_members, known_relations
from larql_duck.probing.pilot import Piloted
from larql_duck.probing.prompts import Question, Variant, questions
from larql_duck.probing.replies import Ask, Asker

# Questions asked about one name, and how probable the types must be, together, that make a question worth asking.
MOST_QUESTIONS = 12
WORTH_ASKING = 0.12


@dataclass
class OpenWorld:
    """An engine that answers about any name, as `known` says that its relations are asked best.

    Where that tells no types, only those are known that the packs list. stated counts, by relation, the
    answers (normalised) that other subjects got. relations are those that may be asked, told is what names were read as before.
    """

    engine: Engine
    known: Knowledge = field(default_factory=Knowledge)
    stated: Mapping[str, Counter[str]] = field(default_factory=dict)
    relations: Mapping[str, Relation] = field(default_factory=known_relations)
    told: NamesTold = field(default_factory=NamesTold)

    def __post_init__(self) -> None:
        self._heads = Heads(self.engine)
        self._members = {**known_members(), **members(self.relations.values())}
        self._best: dict[str, tuple[Question, Chosen, Worth]] = {}
        self._familiarity = dict(self.told.familiarity)
        self._kinds = dict(self.told.kinds)

    def types(self, names: Sequence[str]) -> list[dict[str, float]]:
        """Type -> probability of each name: what the packs list it as, and what the model takes it for."""
        if unread := [name for name in dict.fromkeys(names) if name not in self._kinds]:
            self.read(unread)
        return [self._typed(name, self._kinds[name]) for name in names]

    def read(
        self, names: Sequence[str], *, unfinished: float = math.inf
    ) -> tuple[NamesRead, list[dict[str, float]]]:
        """The names as the model reads them, and their types; unfinished: see `TypeProbe.read`."""
        told: list[dict[str, float]] = [{}] * len(names)
        if self.known.types is None:
            read = how_familiar(self.engine, names, self._heads)
        else:
            read, told = self.known.types.read(self.engine, names, self._heads, unfinished=unfinished)
            told = [dict(self.told.kinds.get(name, own)) for name, own in zip(names, told, strict=True)]
        self._familiarity |= {names[i]: float(f) for i, f in zip(read.fits, read.familiarity, strict=True)}
        pieces = {names[i] for i, p in zip(read.fits, read.unfinished, strict=True) if p >= unfinished}
        self._kinds |= {n: own for n, own in zip(names, told, strict=True) if n not in pieces}
        return read, [self._typed(name, own) for name, own in zip(names, told, strict=True)]

    def _typed(self, name: str, told: Mapping[str, float]) -> dict[str, float]:
        return with_listed(without_unknown(told), self._members.get(name, ()))

    def asked_about(self, types: Mapping[str, float], name: str = "") -> list[str]:
        """The relations worth asking about a name of these types, most worth first; those whose lists have the name too.

        Where no type is known, every type counts the same.
        """
        if not types:
            types = dict.fromkeys(entity_types(), 1 / len(entity_types()))
        worth: dict[str, float] = defaultdict(float)
        place: dict[str, int] = {}
        for kind, p in types.items():
            for i, relation in enumerate(entity_types()[kind].asked if kind in entity_types() else ()):
                worth[relation] += p
                place[relation] = min(i, place.get(relation, i))
        order = sorted(worth, key=lambda r: (-round(worth[r], 2), place[r]))
        chosen = [r for r in order if worth[r] >= WORTH_ASKING]
        listed = [r.name for r in self.relations.values() if name in r.references]
        first = [IS_A] if IS_A in self.relations else []
        return [r for r in dict.fromkeys([*first, *chosen[:MOST_QUESTIONS], *listed]) if r in self.relations][
            :MOST_QUESTIONS
        ]

    def about(
        self, names: Sequence[str], *, told: Callable[[str, str], None] = lambda name, why: None
    ) -> tuple[list[dict[str, float]], list[Answered]]:
        """The types of each name, and the answers to the relations that this makes worth asking. `told`: see `ask`."""
        types = self.types(names)
        asked: dict[str, list[str]] = defaultdict(list)
        for name, own in zip(names, types, strict=True):
            for relation in self.asked_about(own, name):
                asked[relation].append(name)
        return types, self.ask(asked, told=told)

    def ask(
        self,
        asked: Mapping[str, Sequence[str]],
        *,
        top_n: int = 3,
        checkpoint: Checkpoint | None = None,
        done: Callable[[int], None] = lambda n: None,
        told: Callable[[str, str], None] = lambda name, why: None,
    ) -> list[Answered]:
        """Relation -> names, all asked in shared batches and judged by what the vindex learnt: one Answered a relation.

        `told` is called with names that the model cannot be asked about, and why; finished batches are kept in `checkpoint`.
        """
        asker = Asker(self.engine, checkpoint, done, heads=self._heads, once=None)
        replied = [self._to_ask(relation, names) for relation, names in asked.items() if names]
        items = [
            Ask(a.question.relation, variant, name)
            for a in replied
            for name in a.question.relation.entities
            for variant in a.question.variants
        ]
        owners = [a for a in replied for _ in a.question.relation.entities for _ in a.question.variants]
        priors = {a.question.relation.name: a.piloted.priors for a in replied}
        for a, reply in zip(owners, asker.ask(items, priors), strict=True):
            # What one name says must not depend on which others are asked beside it.
            if reply is not None:
                a.piloted.replies.append(reply)
        for name, why in asker.unasked.items():
            told(name, why)
        rank(replied, top_n=top_n)
        subjects = list(dict.fromkeys(name for names in asked.values() for name in names))
        self.types(subjects)
        named = NamesTold(self._familiarity, self._kinds)
        judge(self.engine, replied, self.known, stated=self.stated, learn=False, named=named, apart=True)
        return replied

    def _to_ask(self, relation: str, names: Iterable[str]) -> Answered:
        if relation not in self._best:
            question, choice = self._chosen(self.relations[relation])
            self._best[relation] = question, choice, worth_of(question, type_index([question.relation]))
        question, choice, worth = self._best[relation]
        # References of other subjects stay: they say what answers look like.
        over = replace(question.relation, entities=tuple(dict.fromkeys(names)))
        return Answered(
            Piloted(Question(over, question.variants), worth, priors=self.known.priors_of(question)), choice
        )

    def _chosen(self, relation: Relation) -> tuple[Question, Chosen]:
        """The relation in the one variant that was found best; where nothing was, the first template behind examples."""
        (question,) = questions([relation])
        weights = self.known.weights.get(relation.name, {})
        known = [v for v in question.variants if v.template(relation) in weights]
        best: Variant
        if known:
            best = max(known, key=lambda v: (weights[v.template(relation)], -v.index))
        else:
            best = usual_of(question.variants)
        contrast = self.known.contrasts.get(relation.name, USUAL_CONTRAST) if known else USUAL_CONTRAST
        return Question(relation, (replace(best, index=0),)), Chosen({0: 1.0}, contrast)
