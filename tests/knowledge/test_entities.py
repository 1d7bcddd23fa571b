"""Types of names: every relation that is asked exists, members are those that packs list, CSV files say types."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.errors import PackError
from larql_duck.knowledge.entities import IS_A, entity_types, listed_names, members
from larql_duck.knowledge.keys import normal
from larql_duck.knowledge.relations import Relation
from larql_duck.probing.packs import known_members, known_relations, load_pack

# What a page is to be worth reading for.
FULL = (
    *(
        "person",
        "city",
        "country",
        "company",
        "film",
        "book",
        "musical work",
        "food",
        "animal",
        "plant",
        "element",
    ),
    *(
        "material",
        "software",
        "programming language",
        "team",
        "deity",
        "organization",
        "event",
        "object",
        "concept",
    ),
)


def test_every_type_asks_relations_that_exist() -> None:
    known = known_relations()
    for kind in entity_types().values():
        assert IS_A in kind.asked
        assert set(kind.asked) <= known.keys(), kind.name
        assert len(kind.asked) == len(set(kind.asked)) <= 12


@pytest.mark.parametrize("name", FULL)
def test_a_page_has_eight_relations_at_least(name: str) -> None:
    assert len(entity_types()[name].asked) >= 8


def test_every_type_has_members_to_learn_from() -> None:
    known = members(known_relations().values())
    for kind in entity_types():
        assert sum(kind in types for types in known.values()) >= 30, kind
    assert known["Paris"] == ("city",) and set(known["Mercury"]) > {"element"}


def test_a_stated_type_goes_before_the_relations_kind() -> None:
    relation = Relation(
        "r", "", ("{} is",), subjects="person", entities=("A", "B"), types={"B": ("deity", "no type")}
    )
    assert members([relation]) == {"A": ("person",), "B": ("deity",)}


def test_csv_files_say_types(tmp_path: Path) -> None:
    head = "pack: p\nrelations:\n  - {relation: r, description: d, templates: ['{} is'], entities: e.csv}\n"
    (tmp_path / "p.yaml").write_text(head)
    (tmp_path / "e.csv").write_text("subject,type,object\nA,deity; city,x\nB,,y\n")
    (relation,) = load_pack(tmp_path / "p.yaml").relations
    assert relation.types == {"A": ("deity", "city")}
    (tmp_path / "e.csv").write_text("subject,type,object\nA,deity; deity,x\n")
    with pytest.raises(PackError, match="csv:2: type: the same"):
        load_pack(tmp_path / "p.yaml")


def test_listed_names_are_new_and_of_types_that_exist() -> None:
    by_relations = members(known_relations().values())
    keys = [normal(name) for name in listed_names()]
    assert len(keys) > 1000 and len(set(keys)) == len(keys)
    for name, types in listed_names().items():
        assert set(types) <= entity_types().keys() and name not in by_relations, name
    assert known_members() == {**listed_names(), **by_relations}
