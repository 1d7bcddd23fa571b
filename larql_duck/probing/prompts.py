"""What is asked: every relation's templates, each bare and behind examples, over its subjects."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from larql_duck.errors import PackError
from larql_duck.knowledge.relations import SLOT, Pack, Relation
from larql_duck.probing.packs import load_pack
from larql_duck.probing.splits import TRAIN, split_of
from larql_duck.probing.words import normal

# How many examples stand before a template, in the variants of each.
SHOTS = (0, 3, 6)
# An example: its subject and the answer that is shown.
Example: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Variant:
    """One way to ask a relation: a template behind the same examples for every subject.

    A subject that is an example itself is asked with `reserve` in its place. index counts a relation's variants from 0.
    """

    index: int
    base: str
    examples: tuple[Example, ...] = ()
    reserve: Example | None = None

    @property
    def shots(self) -> int:
        """How many examples it shows."""
        return len(self.examples)

    def shown(self, subject: str) -> tuple[Example, ...]:
        """The examples that stand before the subject."""
        if all(other != subject for other, _ in self.examples):
            return self.examples
        kept = tuple(e for e in self.examples if e[0] != subject)
        return kept if self.reserve is None else (*kept, self.reserve)

    def head(self, relation: Relation, subject: str) -> str:
        """The text of the examples that stand before the subject, its line ended; '' without any."""
        return relation.stated(self.base, self.shown(subject))

    def prompt(self, relation: Relation, subject: str) -> str:
        """The prompt for a subject; the examples never include the subject's own."""
        return relation.prompt(subject, self.base, shown=self.shown(subject))

    def template(self, relation: Relation) -> str:
        """The template as the tables show it, {} for the subject, examples written out."""
        marker = "\0"
        return relation.prompt(marker, self.base, shown=self.examples).replace(marker, SLOT)


@dataclass(frozen=True)
class Question:
    """A relation and the variants in which it can be asked: bare templates first, then those with examples."""

    relation: Relation
    variants: tuple[Variant, ...]

    @cached_property
    def answers_shown(self) -> frozenset[str]:
        """The answers of all examples that may stand before a subject, normalised."""
        shown = (e for v in self.variants for e in (*v.examples, *([v.reserve] if v.reserve else [])))
        return frozenset(normal(answer) for _, answer in shown)


def questions(
    asked: Pack | Iterable[Relation] | str | Path,
    *,
    relations: Iterable[str] | None = None,
    limit: int | None = None,
    max_prompts: int | None = None,
    few_shot: bool = True,
) -> list[Question]:
    """The relations to ask with all of their variants.

    relations picks some by name, limit keeps each relation's first subjects. max_prompts drops subjects where one
    prompt each exceeds it, where lists are longest.
    """
    chosen = _relations(asked, relations, limit)
    if max_prompts is not None:
        chosen = _fitting(chosen, max_prompts)
    return [Question(r, _variants(r, few_shot)) for r in chosen if r.entities]


def examples_of(relation: Relation, n: int) -> tuple[Example, ...]:
    """Up to n examples: subjects of the train split with their references, best known first, then the pack's own.

    Answers that were not shown yet go first, and such as are no part of their subject's name.
    """
    pairs = [
        (subject, answer) for subject, answer in relation.known_answers.items() if split_of(subject) == TRAIN
    ]
    pairs += [e for e in relation.examples if e[0] not in {subject for subject, _ in pairs}]
    first: list[Example] = []
    later: list[Example] = []
    seen: set[str] = set()
    for subject, answer in pairs:
        echo = normal(answer) in normal(subject) or normal(subject) in normal(answer)
        (later if echo or normal(answer) in seen else first).append((subject, answer))
        seen.add(normal(answer))
    return tuple((first + later)[:n])


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
    """Every template with every number of examples that the relation has, one more being left for the reserve."""
    found = examples_of(relation, max(SHOTS) + 1) if few_shot else ()
    reserve = found[-1] if len(found) > 1 else None
    shots = sorted({min(n, max(len(found) - 1, 0)) for n in SHOTS})
    ways = [(template, n) for n in shots for template in relation.templates]
    return tuple(
        Variant(i, template, found[:n], reserve if n else None) for i, (template, n) in enumerate(ways)
    )


def _fitting(chosen: Sequence[Relation], max_prompts: int) -> list[Relation]:
    """The relations with so many subjects that one prompt each stays within the limit, cut where they are longest."""
    lengths = [len(r.entities) for r in chosen]
    if sum(lengths) <= max_prompts:
        return list(chosen)
    longest = range(max(lengths) + 1)
    most = bisect_right(longest, max_prompts, key=lambda m: sum(min(n, m) for n in lengths)) - 1
    return [r.limited(most) if len(r.entities) > most else r for r in chosen]
