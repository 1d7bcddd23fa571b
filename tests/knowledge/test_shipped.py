"""The packs that ship with larql_duck: they load, keep what the README promises, and state what is true."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from larql_duck.knowledge import packfile
from larql_duck.probing.packs import (
    Pack,
    Relation,
    inverse_of,
    known_relations,
    list_packs,
    load_pack,
    stated_relations,
)

KNOWLEDGE = Path(packfile.__file__).parent
THEMES = {
    *("geography", "language", "people", "nature", "chemistry", "words", "culture", "technology", "code"),
    "things",
}
CORE = [
    *("capital", "language", "currency", "continent", "opposite", "plural", "past tense", "comparative"),
    *("chemical symbol", "landmark city", "animal young", "country of city"),
]
WORLD = load_pack("world")


def each(pack: Pack) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("relation", pack.relations, ids=lambda r: r.name)


def test_list_packs_names_every_file_and_the_readme_counts_them() -> None:
    packs = list_packs()
    assert [p.name for p in packs[:2]] == ["core", "world"]
    assert (
        {p.name for p in packs}
        == {path.stem for path in KNOWLEDGE.glob("*.yaml")} - {"types"}
        == THEMES | {"core", "world"}
    )
    rows = re.findall(
        r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", (KNOWLEDGE / "README.md").read_text(), re.M
    )
    counted = {name: tuple(int(n.replace(",", "")) for n in numbers) for name, *numbers in rows}
    assert counted == {p.name: (len(p.relations), p.n_entries, p.n_references) for p in packs}
    assert all(p.description and p.path.name == f"{p.name}.yaml" for p in packs)


def test_core_is_small_and_the_beginning_of_world() -> None:
    core = load_pack("core")
    assert [r.name for r in core.relations] == CORE
    assert 1200 <= core.n_entries <= 1800
    assert core.n_references == core.n_entries
    for relation in core.relations:
        whole = WORLD.relation(relation.name)
        assert relation.templates == whole.templates
        assert relation.entities == whole.entities[: len(relation.entities)]


def test_world_is_as_large_as_promised() -> None:
    assert len(WORLD.relations) >= 40
    assert WORLD.n_entries >= 4000
    assert WORLD.n_references >= 3600
    assert {r.name for r in WORLD.relations} == {r.name for t in THEMES for r in load_pack(t).relations}
    assert len({packfile.relation_key(r.name) for r in WORLD.relations}) == len(WORLD.relations)
    assert set(known_relations()) == {r.name for r in WORLD.relations}


@each(WORLD)
def test_templates_ask_in_several_ways(relation: Relation) -> None:
    assert len(set(relation.templates)) == len(relation.templates) >= 3
    for template in relation.templates:
        assert packfile.template_problem(template) is None
    assert relation.description.endswith(".")


def test_inverses_are_stated_and_lead_back() -> None:
    stated = stated_relations()
    with_one = [r for r in WORLD.relations if r.inverse]
    assert len(with_one) >= 40
    for relation in with_one:
        inverse = inverse_of(relation.name)
        assert inverse is not None and inverse.name == relation.inverse, relation.name
        back = inverse_of(inverse.name)
        assert back is not None and back.name == relation.name, relation.name
        # Either a pack asks about the inverse or its prompts stand here, not both.
        assert bool(relation.inverse_templates) != (WORLD.find(inverse.name) is not None), relation.name
        for template in inverse.templates:
            assert packfile.template_problem(template) is None
        assert inverse.entities
    assert len(stated) == len(WORLD.relations) + sum(bool(r.inverse_templates) for r in with_one)
    assert inverse_of("Capital").references["Paris"] == ("France",)
    assert inverse_of("continent") is None and inverse_of("nonsense") is None


@each(WORLD)
def test_subjects_and_answers_are_clean(relation: Relation) -> None:
    assert len(relation.entities) >= 20
    assert set(relation.references) == set(relation.entities)
    assert not {subject for subject, _ in relation.examples} & set(relation.entities)
    for subject in relation.entities:
        texts = [subject, relation.text(subject), *relation.references[subject]]
        assert all(t == " ".join(t.split()) == unicodedata.normalize("NFC", t) for t in texts), texts
        assert relation.text(subject).endswith(subject)


@each(WORLD)
def test_few_answers_only_repeat_their_subject(relation: Relation) -> None:
    same = [e for e in relation.entities if {a.casefold() for a in relation.references[e]} == {e.casefold()}]
    assert len(same) <= len(relation.entities) / 8, same


def test_every_row_names_a_source_that_the_licence_notes_explain() -> None:
    notes = (KNOWLEDGE / "LICENSES.md").read_text(encoding="utf-8")
    files = sorted(KNOWLEDGE.glob("*/*.csv"))
    assert len(files) == len(WORLD.relations) + 1  # names.csv
    sources = set()
    for file in files:
        with file.open(encoding="utf-8", newline="") as handle:
            found = {row["source"] for row in csv.DictReader(handle)}
        assert "" not in found, file
        sources |= found
    assert all(source in notes for source in sources), sources
    assert all(relation.source and relation.licence for relation in WORLD.relations)


PROMPTS = [
    ("capital", "France", "The capital of France is", "Paris"),
    ("capital", "Netherlands", "The capital of the Netherlands is", "Amsterdam"),
    ("capital", "United States", "The capital of the United States is", "Washington"),
    ("capital", "Kazakhstan", "The capital of Kazakhstan is", "Astana"),
    ("currency", "Japan", "The currency of Japan is the", "yen"),
    ("currency", "Croatia", "The currency of Croatia is the", "euro"),
    ("opposite", "hot", "The opposite of hot is", "cold"),
    ("language", "Mexico", "People in Mexico speak", "Spanish"),
    ("language", "Switzerland", "People in Switzerland speak", "Italian"),
    ("landmark city", "Eiffel Tower", "The Eiffel Tower is in the city of", "Paris"),
    ("landmark city", "Big Ben", "Big Ben is in the city of", "London"),
    ("chemical symbol", "gold", "The chemical symbol for gold is", "Au"),
    ("plural", "mouse", "One hill, two hills. One mouse, two", "mice"),
    ("past tense", "go", "Today I bake, yesterday I baked. Today I go, yesterday I", "went"),
    ("comparative", "good", "This one is good, but that one is even", "better"),
    ("animal young", "horse", "The young of the horse is called a", "foal"),
    ("country of city", "Milan", "The city of Milan is in the country of", "Italy"),
    ("continent", "Turkey", "The country of Turkey is located on the continent of", "Europe"),
]


@pytest.mark.parametrize(("relation", "subject", "prompt", "answer"), PROMPTS)
def test_the_bare_prompts(relation: str, subject: str, prompt: str, answer: str) -> None:
    found = load_pack("core").relation(relation)
    assert found.prompt(subject) == prompt
    assert answer in found.references[subject]


def test_the_best_known_come_first() -> None:
    core = load_pack("core")
    first = {"France", "Germany", "Japan", "Italy", "Spain", "China"}
    for name in ("capital", "language", "currency", "continent"):
        assert set(core.relation(name).entities[:6]) == first
    assert core.relation("chemical symbol").entities[:2] == ("gold", "silver")


def test_many_marks_the_relations_with_several_answers() -> None:
    many = {r.name for r in WORLD.relations if r.many}
    assert {"language", "borders", "synonym", "occupation"} <= many
    assert not many & {"capital", "plural", "chemical symbol", "country of city"}


def test_importing_packs_is_light() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'pandas', 'sklearn'}"
    code = (
        f"import sys, larql_duck.probing.packs as p; p.load_pack('core'); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
