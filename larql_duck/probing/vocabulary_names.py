"""The names that a tokenizer itself holds: words that are one token, the most usual first, and what the model says of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa

from larql_duck.knowledge.entities import IS_A
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.choosing import Answered
from larql_duck.probing.entity_types import types_table
from larql_duck.probing.facts import stated
from larql_duck.probing.open_world import OpenWorld
from larql_duck.probing.tables import ProbedFact, tables_of
from larql_duck.probing.words import is_function_word

# Types of words that name nothing.
_NO_NAMES = ("adjective", "verb")
# A word counts as one of these from this probability on.
_SURELY = 0.3
# A token is a piece of longer words where the model expects more letters with this probability.
_UNFINISHED = 0.3
# One name in so many gets its whole page.
_PAGES = 20
# Words that are read, and names that are asked about, together.
_READ, _ASKED = 512, 256
_ASKED_NODES = 8192
# Fewer letters are more often a piece of words than one.
_LETTERS = 3


@dataclass(frozen=True)
class NamesAsked:
    """What was asked of the vocabulary: the names, and the tables of a probing run with their facts, and entity_types."""

    names: list[str]
    tables: dict[str, pa.Table]
    many: set[str]


def vocabulary_words(tokenizer: Tokenizer) -> list[str]:
    """The words that may be names, in the order of the vocabulary (merge rank, or unigram score).

    A word is a token that begins with a blank and consists of three letters or more. Left out are function words, words in
    capitals that exist in small letters too (they begin sentences), and plurals of words that are there.
    """
    words = [
        text
        for _, token, text, is_word in tokenizer.vocabulary()
        if is_word and token[:1] == " " and len(text) >= _LETTERS and text.isalpha()
    ]
    known = set(words)
    return [
        word
        for word in dict.fromkeys(words)
        if not is_function_word(word.lower())
        and not (word != word.lower() and word.lower() in known)
        and not (word.endswith("s") and word[:-1] in known)
    ]


def vocabulary_names(world: OpenWorld, known: Collection[str] = ()) -> Iterator[tuple[str, dict[str, float]]]:
    """The names among the tokenizer's words with their types, the most usual first, but for those that are known.

    The model tells them from pieces of words (it expects more letters) and from adjectives and verbs.
    """
    words = [word for word in vocabulary_words(world.engine.tokenizer) if word not in known]
    for start in range(0, len(words), _READ):
        part = words[start : start + _READ]
        read, types = world.read(part, unfinished=_UNFINISHED)
        unfinished = dict(zip(read.fits, read.unfinished, strict=True))
        for i, (word, own) in enumerate(zip(part, types, strict=True)):
            other = sum(own.get(t, 0.0) for t in _NO_NAMES)
            if unfinished.get(i, 1.0) < _UNFINISHED and other < _SURELY:
                yield word, own


def ask_vocabulary(
    world: OpenWorld,
    n: int,
    known: Collection[str] = (),
    *,
    checkpoint: Checkpoint | None = None,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> NamesAsked:
    """The facts about the first n names of the vocabulary that are not known: what each one is, and of one in twenty the
    relations of its type too.

    An answer that is not more probable than it is of any name says nothing of this one, and is left out.
    """
    found = list(islice(vocabulary_names(world, known), n))
    names, types = [name for name, _ in found], [own for _, own in found]
    answered: list[Answered] = []
    # Nodes are to have several batches each.
    step = _ASKED if checkpoint is None or checkpoint.nodes is None else _ASKED_NODES
    for start in range(0, len(names), step):
        part = names[start : start + step]
        answered += world.ask({IS_A: part}, checkpoint=checkpoint)
        done(start + len(part), len(names))
    pages = dict(islice(zip(names, types, strict=True), len(names) // _PAGES))
    further = {
        relation: [n for n, own in pages.items() if relation in world.asked_about(own)]
        for relation in dict.fromkeys(r for own in pages.values() for r in world.asked_about(own))
    }
    answered += world.ask({r: own for r, own in further.items() if r != IS_A}, checkpoint=checkpoint)
    tables = tables_of(world.engine.tokenizer, *_joined([_told_apart(a) for a in answered]))
    tables["entity_types"] = types_table(names, types, {})
    return NamesAsked(names, tables, {a.question.relation.name for a in answered if a.question.relation.many})


def _told_apart(answered: Answered) -> Answered:
    """The answers that are more probable than they are of any name."""
    kept = [i for i, a in enumerate(answered.answers) if a.contrast is None or a.contrast > 0]
    return replace(
        answered,
        answers=[answered.answers[i] for i in kept],
        confidence=[answered.confidence[i] for i in kept],
        correct=[answered.correct[i] for i in kept],
    )


def _joined(answered: Sequence[Answered]) -> tuple[list[Answered], list[list[ProbedFact]]]:
    """One Answered a relation, and the facts of each."""
    by_relation: dict[str, Answered] = {}
    for a in answered:
        first = by_relation.setdefault(a.question.relation.name, a)
        if first is not a:
            first.answers += a.answers
            first.confidence += a.confidence
            first.correct += a.correct
            first.piloted.replies += a.replies
    joined = list(by_relation.values())
    return joined, [stated(a) for a in joined]
