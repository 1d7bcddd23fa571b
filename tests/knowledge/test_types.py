"""What kind of thing an answer is, and whether it only repeats the question."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from larql_duck.errors import PackError
from larql_duck.knowledge.relations import Relation
from larql_duck.knowledge.types import TypeIndex, answer_types, echo_allowed, is_echo, is_own_words
from larql_duck.probing.packs import load_pack

WORLD = load_pack("world")
INDEX = TypeIndex(WORLD.relations)


@pytest.mark.parametrize(
    ("relation", "answer", "subject", "fit"),
    [
        ("capital", "Paris", "Spain", "fits"),
        ("capital", "france", "Spain", "other"),
        ("capital", "Gondolin", "Spain", "unknown"),
        ("continent", "North America", "Peru", "fits"),
        ("continent", "Atlantis", "Peru", "other"),  # closed
        ("chemical symbol", "Xq", "gold", "fits"),  # by its pattern
        ("chemical symbol", "gold", "gold", "other"),
        ("atomic number", "1,234", "gold", "fits"),
        ("atomic number", "seventy-nine", "gold", "fits"),
        ("atomic number", "very high", "gold", "other"),
        ("opposite", "cold", "hot", "fits"),
        ("opposite", "kalt", "hot", "fits"),
        ("opposite", "Paris", "hot", "other"),
        ("plural", "mouse", "mouse", "other"),
        ("plural", "mice", "foot", "fits"),
        ("past tense", "walked", "go", "fits"),
        ("comparative", "more wise", "wise", "fits"),
        ("performer", "William Shakespeare", "Thriller", "fits"),  # a type that includes another
        ("acronym", "anything", "USA", "unknown"),  # open
        ("author", "Zadie Smith", "White Teeth", "unknown"),
    ],
)
def test_answers_have_types(relation: str, answer: str, subject: str, fit: str) -> None:
    assert INDEX.fit(answer, WORLD.relation(relation), subject) == fit


def test_a_subjects_own_reference_says_nothing_about_its_answer() -> None:
    """Else every right answer would be of a known type, and a new one never."""
    capital = WORLD.relation("capital")
    assert INDEX.fit("Bamako", capital) == "fits"
    assert INDEX.fit("Bamako", capital, "Mali") == "unknown"
    assert INDEX.fit("Bamako", capital, "Peru") == "fits"
    more = TypeIndex(WORLD.relations, [("Bamako", "city")])
    assert more.fit("Bamako", capital, "Mali") == "fits"


def test_texts_have_every_type_that_they_can_have() -> None:
    assert {"country", "US state"} <= INDEX.types_of("Georgia")
    assert {"number", "year"} <= INDEX.types_of("1984")
    assert "country" in INDEX.types_of("The  netherlands")
    assert not INDEX.types_of("Zz zz zz")


def test_shipped_relations_fit_themselves() -> None:
    for relation in WORLD.relations:
        for subject, answers in relation.references.items():
            assert all(INDEX.fit(a, relation) == "fits" for a in answers), (relation.name, subject)
    wrong = [
        (relation.name, answer)
        for relation in WORLD.relations
        if (kind := answer_types()[relation.expects]).closed and kind.pattern
        for answers in relation.references.values()
        for answer in answers
        if not kind.pattern.fullmatch(answer)
    ]
    assert wrong == []
    assert {r.name for r in WORLD.relations if r.expects == "open"} == {
        *("acronym", "category", "deity domain", "http status", "known for", "purpose", "symbol"),
        *("used for", "found in", "part of", "cause", "is a"),
    }


def test_every_type_is_described_and_includes_known_ones() -> None:
    for kind in answer_types().values():
        assert kind.description.endswith(".")
        assert all(name in answer_types() for name in kind.includes)
    kinds = [k for kind in answer_types().values() for k in kind.subjects]
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) <= {r.subjects for r in WORLD.relations}


@pytest.mark.parametrize(
    ("relation", "answer", "subject", "own"),
    [
        ("capital", "capital", "Peru", True),
        ("capital", "the capital city", "Peru", True),
        ("capital", "seat of government", "Peru", True),  # a template's words
        ("capital", "Vatican City's official", "Vatican City", True),
        ("capital", "Vatican City", "Vatican City", False),
        ("capital", "Lima", "Peru", False),
        ("currency", "official currency", "Peru", True),
        ("synonym", "country", "nation", False),
        ("category", "animal", "dog", False),  # a reference of some subject
        ("language", "language", "Peru", True),
        ("language", "English language", "Peru", False),
    ],
)
def test_words_of_the_question_are_told(relation: str, answer: str, subject: str, own: bool) -> None:
    assert is_own_words(answer, WORLD.relation(relation), subject=subject) is own


def test_of_a_prompt_with_examples_only_the_question_counts() -> None:
    relation = Relation("moon", "A moon.", ("A moon of {} is",))
    shots = "A moon of Pluto is Charon\nA moon of {} is"
    assert not is_own_words("Charon", relation, shots)
    assert is_own_words("moon", relation, shots)


def test_echoes() -> None:
    assert is_echo("Carbon", "carbon") and is_echo("the Netherlands", "Netherlands")
    assert is_echo("Guatemala City", "Guatemala") and is_echo("York", "New York")
    assert not is_echo("Iranian", "Iran") and not is_echo("city", "Peru")
    assert not is_echo("Lima", "Peru")


def test_echoes_are_right_where_a_reference_is_one_or_the_pack_says_so() -> None:
    allowed = {r.name for r in WORLD.relations if echo_allowed(r)}
    assert {"capital", "plural", "past tense", "largest city", "landmark city", "shell command"} <= allowed
    assert not {"comparative", "chemical symbol", "animal young", "opposite", "synonym"} & allowed
    plural = WORLD.relation("plural")
    assert not echo_allowed(replace(plural, echo="wrong"))
    assert not echo_allowed(replace(plural, references={"dog": ("dogs",)}))
    assert echo_allowed(replace(plural, references={}, echo="allowed"))


PACK = """\
pack: mine
relations:
  - relation: moon
    description: A moon.
    templates: ["A moon of {} is"]
    EXTRA
    entities: [Mars]
"""


def test_a_pack_says_what_it_expects(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PACK.replace("EXTRA", "expects: person\n    echo: allowed"))
    (moon,) = load_pack(path).relations
    assert (moon.expects, moon.echo) == ("person", "allowed")
    path.write_text(PACK.replace("    EXTRA\n", ""))
    (moon,) = load_pack(path).relations
    assert (moon.expects, moon.echo) == ("open", "")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("expects: persn", r"mine\.yaml:6: .*no type 'persn'.*'person'"),
        ("expects: [person]", "expects: expected a text, found a list"),
        ("echo: maybe", r"echo: 'maybe' is not known \(allowed, wrong\)"),
    ],
)
def test_unknown_types_are_told_with_a_guess(tmp_path: Path, extra: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PACK.replace("EXTRA", extra))
    with pytest.raises(PackError) as caught:
        load_pack(path)
    assert re.search(message, str(caught.value)), str(caught.value)
