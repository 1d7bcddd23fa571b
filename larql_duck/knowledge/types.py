"""What kind of thing an answer is, and whether it is only words of the question or of its subject.

All of it is evidence about an answer; nothing here decides that an answer is wrong. `types.yaml` names the types, a
relation says which one it expects, and the members of a type are what the packs know.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from larql_duck.knowledge.keys import ARTICLES, normal
from larql_duck.knowledge.marked import Node, read_yaml
from larql_duck.knowledge.relations import SLOT, Relation

OPEN = "open"
Fit = Literal["fits", "other", "unknown"]

# Where a description's first noun ends: "The capital city | of a country."
_NOUN_END = re.compile(
    r"[,:;.(]| (?:of|in|on|from|for|to|that|which|who|where|with|as|by|between|what|is|are)\b"
)
# Words that say nothing alone.
_SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "of",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "to",
        "into",
        "with",
        "as",
        "and",
        "or",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "has",
        "have",
        "had",
        "it",
        "its",
        "he",
        "she",
        "his",
        "her",
        "they",
        "their",
        "you",
        "your",
        "i",
        "my",
        "we",
        "our",
        "what",
        "which",
        "who",
        "whose",
        "when",
        "where",
        "how",
        "if",
        "not",
    ]
)


@dataclass(frozen=True)
class AnswerType:
    """One type of answers, as types.yaml describes it; members are known by their normal form."""

    name: str
    description: str
    subjects: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    values: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None
    closed: bool = False


@dataclass(frozen=True)
class _Types:
    by_name: Mapping[str, AnswerType]
    generic: frozenset[str]


def answer_types() -> Mapping[str, AnswerType]:
    """Every type by name."""
    return _read().by_name


def type_sections(name: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """A section of types.yaml whose entries hold lists of texts."""
    section = _mapping(_top()[name])
    return {
        key: {field: _texts(value) for field, value in _mapping(node).items()}
        for key, node in section.items()
    }


@cache
def _top() -> dict[str, Node]:
    return _mapping(read_yaml(Path(__file__).with_name("types.yaml")))


@cache
def _read() -> _Types:
    top = _top()
    types = {name: _type(name, _mapping(node)) for name, node in _mapping(top["types"]).items()}
    return _Types(types, frozenset(_texts(top["generic"])))


def _type(name: str, fields: Mapping[str, Node]) -> AnswerType:
    return AnswerType(
        name,
        str(fields["description"].value),
        subjects=_texts(fields.get("subjects")),
        includes=_texts(fields.get("includes")),
        values=frozenset(map(normal, _texts(fields.get("values")))),
        pattern=re.compile(str(fields["pattern"].value)) if "pattern" in fields else None,
        closed="closed" in fields and fields["closed"].value == "true",
    )


def _mapping(node: Node) -> dict[str, Node]:
    assert isinstance(node.value, dict)
    return node.value


def _texts(node: Node | None) -> tuple[str, ...]:
    return () if node is None or not isinstance(node.value, list) else tuple(str(n.value) for n in node.value)


class TypeIndex:
    """Which types the names of packs are of: subjects by their kind, reference answers by what their relation expects.

    `further` are pairs (text, name of a type), for example facts that are known from elsewhere.
    """

    def __init__(self, relations: Iterable[Relation], further: Iterable[tuple[str, str]] = ()) -> None:
        # Normal form -> type -> the subjects by whose facts it is known as one; "" for what holds without any.
        self._known: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        # Relation -> normal form of an answer -> the subjects that it is listed for.
        self._listed: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        kinds = {kind: t.name for t in answer_types().values() for kind in t.subjects}
        for relation in relations:
            kind = kinds.get(relation.subjects)
            for subject in relation.entities if kind else ():
                for name in (subject, relation.text(subject)):
                    self._known[normal(name)][str(kind)].add("")
            for subject, answers in relation.references.items():
                about = normal(subject)
                for answer in map(normal, answers):
                    self._listed[relation.name][answer].add(about)
                    if relation.expects != OPEN:
                        self._known[answer][relation.expects].add(about)
        for text, name in further:
            self._known[normal(text)][name].add("")

    def fit(self, answer: str, relation: Relation, subject: str | None = None) -> Fit:
        """Whether the answer is of the type that the relation expects: 'fits', 'other' or 'unknown'.

        'other' is said of what is only known as something else, and of all that a closed type does not know. Facts
        about `subject` do not count: what is known of an answer is then known without its own reference.
        """
        key, about = normal(answer), None if subject is None else normal(subject)
        if _without(self._listed[relation.name].get(key, set()), about):
            return "fits"
        expected = answer_types().get(relation.expects, answer_types()[OPEN])
        if expected.name == OPEN:
            return "unknown"
        if any(self._is(key, answer.strip(), name, about) for name in _with_included(expected.name)):
            return "fits"
        if expected.closed:
            return "other"
        others = {name for name, found in self._known.get(key, {}).items() if _without(found, about)}
        return "other" if others else "unknown"

    def types_of(self, text: str) -> frozenset[str]:
        """Every type that the text is known to be of, patterns and included types counted."""
        key = normal(text)
        return frozenset(
            name
            for name in answer_types()
            if any(self._is(key, text.strip(), part, None) for part in _with_included(name))
        )

    def _is(self, key: str, text: str, name: str, about: str | None) -> bool:
        kind = answer_types()[name]
        if key in kind.values or (kind.pattern is not None and kind.pattern.fullmatch(text)):
            return True
        return _without(self._known.get(key, {}).get(name, set()), about)


def _without(subjects: set[str], about: str | None) -> bool:
    """Whether there is any subject other than the one that is asked about."""
    return bool(subjects - {about} if about is not None else subjects)


@cache
def _with_included(name: str) -> tuple[str, ...]:
    """The type and all that it includes, however deep."""
    included = [part for other in answer_types()[name].includes for part in _with_included(other)]
    return tuple(dict.fromkeys([name, *included]))


# -- words of the question ---------------------------------------------------------------------------------------


def is_own_words(answer: str, relation: Relation, template: str = "", subject: str = "") -> bool:
    """Whether the answer is made of the relation's own words: its name, what it describes, the template's words.

    "capital city" is no capital. `template` may stand behind examples, which do not count; without one all of the
    relation's count. Words of the subject may stand among them ("Vatican City's official"), and small and general
    words. What the references list for any subject is never own words.
    """
    words = _words(answer)
    if not words or normal(answer) in _references(relation):
        return False
    own = _own(relation, template.rsplit("\n", 1)[-1]) if template else _own(relation, *relation.templates)
    said = words - _SMALL
    if not said or not said <= own | _generic() | _about(relation, subject):
        return False
    # General words alone can be an answer; the subject's alone are an echo.
    return bool(said & own or (said & _generic() and said & _about(relation, subject)))


def is_echo(answer: str, subject: str, text: str = "") -> bool:
    """Whether the answer says no more than the subject: all of it, or words of it with general ones ("gold metal").

    `text` is the subject as it stands in a sentence, where that differs.
    """
    if normal(answer) in {normal(subject), normal(text or subject)}:
        return True
    said, about = _words(answer) - _SMALL, _words(subject) | _words(text)
    return bool(said & about) and said <= about | _generic()


def echo_allowed(relation: Relation) -> bool:
    """Whether an answer that echoes its subject can be right: what the pack says, else whether a reference does so."""
    return relation.echo == "allowed" or (relation.echo != "wrong" and _has_echo(relation))


def _has_echo(relation: Relation) -> bool:
    return any(
        is_echo(answer, subject, relation.text(subject))
        for subject, answers in relation.references.items()
        for answer in answers
    )


def relation_nouns(relation: Relation) -> frozenset[str]:
    """The words of the relation's name and of what its description says first, without small ones."""
    head = _NOUN_END.split(relation.description, maxsplit=1)[0]
    if head.startswith(("What ", "Who ", "How ", "Whether ")):
        head = ""
    return (_words(relation.name) | _words(head)) - _SMALL


def _own(relation: Relation, *templates: str) -> frozenset[str]:
    asked = frozenset(word for template in templates for word in _words(template.replace(SLOT, " ")))
    nouns = relation_nouns(relation)
    return (nouns | {f"{noun}s" for noun in nouns} | asked) - _SMALL


def _about(relation: Relation, subject: str) -> frozenset[str]:
    return _words(subject) | _words(relation.text(subject)) if subject else frozenset()


def _generic() -> frozenset[str]:
    return _read().generic


def _words(text: str) -> frozenset[str]:
    """The words of the text in their normal form, without possessive endings and articles."""
    plain = re.sub(r"['’]s?\b", " ", normal(text))
    return frozenset(re.findall(r"\w+", plain)) - ARTICLES


@lru_cache(maxsize=1024)
def _reference_keys(answers: tuple[tuple[str, ...], ...]) -> frozenset[str]:
    return frozenset(normal(answer) for several in answers for answer in several)


def _references(relation: Relation) -> frozenset[str]:
    return _reference_keys(tuple(relation.references.values()))
