"""What is asked: every relation's templates, with and without examples, over its subjects."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from larql_duck.errors import PackError
from larql_duck.knowledge.relations import SLOT, Pack, Relation
from larql_duck.probing.packs import load_pack

# Examples shown before a few-shot prompt, and subjects below which examples would be most of what is asked.
SHOTS = 3


@dataclass(frozen=True)
class Variant:
    """One way to ask a relation: a template, bare or after `shots` examples. index counts a relation's from 0."""

    index: int
    base: str
    shots: int = 0

    def prompt(self, relation: Relation, subject: str) -> str:
        """The prompt for a subject; the examples never include the subject's own."""
        return relation.prompt(subject, self.base, shots=self.shots)

    def template(self, relation: Relation) -> str:
        """The template as the tables show it, {} for the subject, examples written out."""
        if not self.shots:
            return self.base
        marker = "\0"
        return relation.prompt(marker, self.base, shots=self.shots).replace(marker, SLOT)


@dataclass(frozen=True)
class Question:
    """A relation with the variants that are run over its subjects."""

    relation: Relation
    variants: tuple[Variant, ...]

    @property
    def n_prompts(self) -> int:
        """Prompts that this question runs."""
        return len(self.variants) * len(self.relation.entities)


def questions(
    asked: Pack | Iterable[Relation] | str | Path,
    *,
    relations: Iterable[str] | None = None,
    limit: int | None = None,
    max_prompts: int | None = None,
    few_shot: bool = True,
) -> list[Question]:
    """The questions to run: each relation's bare template, the same after examples, then its other templates.

    relations picks some by name, limit keeps each relation's first subjects. max_prompts drops further templates
    (every relation's n-th before anybody's n+1-th), and subjects only when the bare templates alone exceed it.
    """
    chosen = _relations(asked, relations, limit)
    if max_prompts is not None:
        chosen = _fitting(chosen, max_prompts)
    ways = {r.name: _variants(r, few_shot) for r in chosen}
    n_variants = {r.name: 1 for r in chosen}
    total = sum(len(r.entities) for r in chosen)
    for depth in range(1, max((len(w) for w in ways.values()), default=0)):
        for relation in chosen:
            more = len(relation.entities)
            if depth < len(ways[relation.name]) and (max_prompts is None or total + more <= max_prompts):
                n_variants[relation.name] = depth + 1
                total += more
    return [Question(r, ways[r.name][: n_variants[r.name]]) for r in chosen if r.entities]


def _relations(
    asked: Pack | Iterable[Relation] | str | Path, names: Iterable[str] | None, limit: int | None
) -> list[Relation]:
    if isinstance(asked, str | Path):
        asked = load_pack(asked)
    pack = asked if isinstance(asked, Pack) else Pack("custom", tuple(asked))
    chosen = list(pack.select(names, limit).relations)
    for name, n in Counter(relation.name for relation in chosen).items():
        if n > 1:
            raise PackError(f"relation {name!r} is given twice", file=pack.path, field="relation")
    return chosen


def _variants(relation: Relation, few_shot: bool) -> tuple[Variant, ...]:
    """The bare template, then the one with examples, then the other templates: most worth asking first."""
    ways = [(template, 0) for template in relation.templates]
    if few_shot and relation.examples:
        ways.insert(1, (relation.templates[0], min(SHOTS, len(relation.examples))))
    return tuple(Variant(i, template, shots) for i, (template, shots) in enumerate(ways))


def _fitting(chosen: Sequence[Relation], max_prompts: int) -> list[Relation]:
    """The relations with so many subjects that one prompt each stays within the limit, cut where they are longest."""
    lengths = [len(r.entities) for r in chosen]
    if sum(lengths) <= max_prompts:
        return list(chosen)
    longest = range(max(lengths) + 1)
    most = bisect_right(longest, max_prompts, key=lambda m: sum(min(n, m) for n in lengths)) - 1
    return [r.limited(most) if len(r.entities) > most else r for r in chosen]
