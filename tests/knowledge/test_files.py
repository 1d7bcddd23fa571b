"""Pack files of users: what the format allows, and errors that name file, line and field."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from larql_duck.errors import PackError
from larql_duck.knowledge import marked
from larql_duck.probing.packs import Pack, load_pack

GOOD = """\
pack: mine
description: My pack.
source: my notes
licence: CC0-1.0
relations:
  - relation: moon
    description: A moon of a planet.
    answer: name
    many: true
    subjects: planet
    templates:
      - "A moon of {} is called"
      - 'The planet {} has a moon called "'
    examples: [[Pluto, Charon], [Earth, Moon]]
    entities:
      - {subject: Mars, object: [Phobos, Deimos]}
      - {subject: NO, text: the NO, object: 1984}
      - Neptune
"""
RELATION = """\
pack: mine
relations:
  - relation: moon
    description: A moon.
    templates: ["A moon of {} is"]
"""


def write(tmp_path: Path, text: str | bytes, name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(tmp_path: Path, text: str | bytes, csv: str | bytes | None = None) -> Pack:
    if csv is not None:
        write(tmp_path, csv, "moons.csv")
    return load_pack(write(tmp_path, text))


def test_a_whole_pack(tmp_path: Path) -> None:
    pack = load(tmp_path, GOOD)
    (moon,) = pack.relations
    assert (pack.name, pack.description, pack.path) == ("mine", "My pack.", tmp_path / "mine.yaml")
    assert (moon.name, moon.answer, moon.many, moon.subjects) == ("moon", "name", True, "planet")
    assert moon.templates == ("A moon of {} is called", 'The planet {} has a moon called "')
    assert moon.examples == (("Pluto", "Charon"), ("Earth", "Moon"))
    # Scalars stay text: no boolean, no number.
    assert moon.entities == ("Mars", "NO", "Neptune")
    assert moon.references == {"Mars": ("Phobos", "Deimos"), "NO": ("1984",)}
    assert moon.texts == {"NO": "the NO"}
    assert (moon.source, moon.licence) == ("my notes", "CC0-1.0")


def test_an_inverse(tmp_path: Path) -> None:
    text = GOOD.replace(
        "answer: name", 'answer: name\n    inverse: moon of\n    inverse_templates: ["{} is a moon of"]'
    )
    (moon,) = load(tmp_path, text).relations
    assert (moon.inverse, moon.inverse_templates) == ("moon of", ("{} is a moon of",))
    inverse = moon.inverted()
    assert (inverse.name, inverse.templates, inverse.inverse) == ("moon of", ("{} is a moon of",), "moon")
    assert inverse.entities == ("Phobos", "Deimos", "1984") and not inverse.many
    assert inverse.references == {"Phobos": ("Mars",), "Deimos": ("Mars",), "1984": ("the NO",)}
    for wrong, said in [
        ("inverse: [a]", "inverse: expected a text"),
        ('inverse_templates: ["{} is a moon of"]', "inverse_templates: needs an 'inverse' beside it"),
        ('inverse: moon of\n    inverse_templates: ["a moon"]', "inverse_templates: 'a moon' has 0 slots"),
    ]:
        with pytest.raises(PackError, match=said):
            load(tmp_path, GOOD.replace("answer: name", f"answer: name\n    {wrong}"))


def test_a_family_of_earlier_versions_is_ignored(tmp_path: Path) -> None:
    whole = load(tmp_path, GOOD)
    assert load(tmp_path, GOOD.replace("answer: name", "answer: name\n    family: solar")) == whole


def test_entities_from_csv(tmp_path: Path) -> None:
    text = (
        "\ufeffsubject,text,object,source\r\n"
        'Mars,,Phobos; Deimos,"notes, CC0"\r\n'
        "\r\n"
        '"Pluto, a ""dwarf""",the Pluto,Charon,book\r\n'
        "None,, a\\;b ,book\r\n"
        '"two\nlines",,,\r\n'
    )
    (moon,) = load(tmp_path, RELATION + "    entities: moons.csv\n", text).relations
    assert moon.entities == ("Mars", 'Pluto, a "dwarf"', "None", "two\nlines")
    assert moon.references == {
        "Mars": ("Phobos", "Deimos"),
        'Pluto, a "dwarf"': ("Charon",),
        "None": ("a;b",),
    }
    assert moon.texts == {'Pluto, a "dwarf"': "the Pluto"}
    assert moon.source == "notes, CC0; book"


def test_relations_taken_from_other_packs(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "sub/other.yaml")
    write(tmp_path, "subject,object\nFrance,Paris\nAtlantis,Poseidonis\n", "own.csv")
    text = (
        "pack: mine\nrelations:\n"
        "  - {from: sub/other.yaml, limit: 2}\n"
        "  - {from: core, relation: past_tense, limit: 3}\n"
        "  - {from: world, relation: capital, entities: own.csv}\n"
    )
    moon, past, capital = load(tmp_path, text).relations
    assert moon.entities == ("Mars", "NO")
    assert len(past.entities) == 3
    assert capital.entities == ("France", "Atlantis")
    assert capital.references == {"France": ("Paris",), "Atlantis": ("Poseidonis",)}
    assert capital.templates[0] == "The capital of {} is"


BAD_YAML = [
    ("", 1, None, "empty"),
    ("# nothing\n", 1, None, "empty"),
    ("- a\n- b\n", 1, None, "must be a mapping, found a list"),
    ("pack: mine\nrelations: [\n", 3, None, "not valid YAML"),
    ("pack: mine\n\trelations: 1\n", 2, None, "not valid YAML"),
    ("pack: 'mine\n", None, None, "not valid YAML"),
    ("pack: mine\nbad: \x01\n", 2, None, "a character that YAML does not allow"),
    ("pack: mine\n---\npack: two\n", 3, None, "more than one YAML document"),
    ("relations: []\n", 1, "pack", "pack: missing"),
    ("pack: mine\n", 1, "relations", "relations: missing"),
    ("pack:\nrelations: []\n", 1, "pack", "expected a text, found nothing"),
    ("pack: [a]\nrelations: []\n", 1, "pack", "expected a text, found a list"),
    ("pack: ''\nrelations: []\n", 1, "pack", "found an empty text"),
    ("pack: mine\nrelations: []\n", 2, "relations", "the list is empty"),
    ("pack: mine\nrelations: {a: b}\n", 2, "relations", "expected a list, found a mapping"),
    ("pack: mine\nrelations: [x]\n", 2, None, "a relation must be a mapping, found a text"),
    ("pack: mine\nrelatoins: []\n", 2, "relatoins", "did you mean 'relations'"),
    ("pack: mine\npack: yours\n", 2, "pack", "given twice"),
    ("pack: &a mine\nrelations: [*a]\n", 1, None, "anchors and aliases"),
    ("pack: !!python/object:os.system mine\n", 1, None, "is not allowed"),
    ("pack: !!str mine\n", 1, None, "is not allowed"),
    ("pack: mine\n? [a, b]\n: c\n", 2, None, "a key must be a text"),
    ("pack: mine\nrelations: " + "[" * 50 + "]" * 50 + "\n", 2, None, "nested too deeply"),
    (f"pack: {'x' * 65}\nrelations: []\n", 1, "pack", "at most 64"),
]


@pytest.mark.parametrize(("text", "line", "field", "message"), BAD_YAML)
def test_bad_yaml_names_file_line_and_field(
    tmp_path: Path, text: str, line: int | None, field: str | None, message: str
) -> None:
    with pytest.raises(PackError) as caught:
        load(tmp_path, text)
    error = caught.value
    assert message in str(error)
    assert error.file == tmp_path / "mine.yaml"
    assert error.field == field
    assert line is None or error.line == line
    assert str(error).startswith(f"{error.file}:{error.line}: ")
    assert "\n" not in str(error)


BAD_RELATION = [
    # (line of GOOD, counted from 1, what it becomes, line of the error, field, message)
    (6, "  - limit: 9", 6, "relation", "relation: missing; a relation needs it"),
    (7, "    decription: A moon.", 7, "decription", "did you mean 'description'"),
    (7, "    colour: red", 7, "colour", "a relation has no key 'colour'"),
    (8, "    answer: verb", 8, "answer", "'verb' is no answer form"),
    (9, "    many: maybe", 9, "many", "expected true or false"),
    (9, "    many: 'true'", 9, "many", "expected true or false"),
    (9, "    limit: 0", 9, "limit", "whole number from 1"),
    (9, "    limit: two", 9, "limit", "whole number from 1"),
    (12, "      - A moon of Mars is", 12, "templates", "has 0 slots"),
    (12, '      - "{} and {} are"', 12, "templates", "has 2 slots"),
    (12, '      - "A moon of {} is "', 12, "templates", "begins or ends with white space"),
    (12, '      - "{}"', 12, "templates", "asks nothing"),
    (12, f'      - "{"x" * 600} {{}} is"', 12, "templates", "a template may have 500"),
    (12, "      - ''", 12, "templates", "found an empty text"),
    (12, "      - [a]", 12, "templates", "expected a text, found a list"),
    (12, "      - 'The planet {} has a moon called \"'", 13, "templates", "the same template twice"),
    (14, "    examples: [[Pluto]]", 14, "examples", "a pair [subject, answer]"),
    (14, "    examples: [[Pluto, Charon], [Pluto, Nix]]", 14, "examples", "'Pluto' is given twice"),
    (14, "    examples: []", 14, "examples", "the list is empty"),
    (16, "      - {subject: Mars, object: []}", 16, "object", "one answer or a list of different answers"),
    (16, "      - {subject: Mars, object: [a, a]}", 16, "object", "different answers"),
    (16, "      - {subject: Mars, moon: a}", 16, "moon", "an entity has no key 'moon'"),
    (16, "      - {object: Phobos}", 16, "subject", "subject: missing"),
    (16, "      - Neptune", 18, "entities", "'Neptune' is given twice"),
    (16, "      -", 16, "entities", "expected a text, found nothing"),
]


@pytest.mark.parametrize(("number", "becomes", "line", "field", "message"), BAD_RELATION)
def test_bad_relations_name_file_line_and_field(
    tmp_path: Path, number: int, becomes: str, line: int, field: str, message: str
) -> None:
    lines = GOOD.splitlines()
    lines[number - 1] = becomes
    with pytest.raises(PackError) as caught:
        load(tmp_path, "\n".join(lines) + "\n")
    error = caught.value
    assert message in str(error)
    assert (error.file, error.line, error.field) == (tmp_path / "mine.yaml", line, field)


@pytest.mark.parametrize("missing", ["description", "templates", "entities"])
def test_required_keys(tmp_path: Path, missing: str) -> None:
    text = RELATION + "    entities: [Mars]\n"
    lines = [line for line in text.splitlines() if not line.strip().startswith(f"{missing}:")]
    with pytest.raises(PackError, match=f"{missing}: missing; a relation needs it") as caught:
        load(tmp_path, "\n".join(lines))
    assert (caught.value.line, caught.value.field) == (3, missing)


def test_relation_names_are_unique_whatever_joins_their_words(tmp_path: Path) -> None:
    text = GOOD.replace("relation: moon", "relation: past tense") + "  - {from: core, relation: past tense}\n"
    with pytest.raises(PackError, match="'past tense' is defined twice") as caught:
        load(tmp_path, text)
    assert (caught.value.line, caught.value.field) == (19, "relation")


BAD_USE = [
    ("{from: cor}", "from", "there is no file 'cor' beside the pack"),
    ("{from: core, relation: capitol}", "relation", "did you mean 'capital'"),
    ("{from: core, entities: [a]}", "entities", "needs a 'relation' beside it"),
    ("{from: core, templates: [a]}", "templates", "has no key 'templates'"),
    ("{from: mine.yaml}", "from", "leads back to this pack"),
    ("{from: ../mine.yaml}", "from", "must be a plain path"),
    ("{from: core, relation: capital, limit: -1}", "limit", "whole number from 1"),
]


@pytest.mark.parametrize(("item", "field", "message"), BAD_USE)
def test_bad_references_to_other_packs(tmp_path: Path, item: str, field: str, message: str) -> None:
    with pytest.raises(PackError) as caught:
        load(tmp_path, f"pack: mine\nrelations:\n  - {item}\n")
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.field) == (3, field)


def test_packs_that_take_from_each_other_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "pack: b\nrelations: [{from: mine.yaml}]\n", "b.yaml")
    with pytest.raises(PackError, match="leads back to this pack") as caught:
        load(tmp_path, "pack: a\nrelations: [{from: b.yaml}]\n")
    assert caught.value.file == tmp_path / "b.yaml"


BAD_CSV: list[tuple[str | bytes, int, str | None, str]] = [
    ("", 1, "subject", "no column 'subject'"),
    ("subject,object\n", 1, "subject", "no rows below the header"),
    ("name,object\nMars,a\n", 1, "subject", "no column 'subject'"),
    ("subject;object\nMars;a\n", 1, "subject", "separate columns by commas"),
    ("subject,colour\nMars,a\n", 1, "colour", "unknown column 'colour'"),
    ("subject,object,object\nMars,a,b\n", 1, "object", "given twice"),
    ("subject,object\nMars,a\nPluto\n", 3, None, "1 cells where the header has 2"),
    ("subject,object\nMars,a,b\n", 2, None, "3 cells where the header has 2"),
    ('subject,object\n"two\nlines",a\nMars\n', 4, None, "1 cells where the header has 2"),
    ("subject,object\nMars,a\n ,b\n", 3, "subject", "subject: empty"),
    ("subject,object\nMars,a\nPluto,b\nMars,c\n", 4, "subject", "'Mars' stands already in line 2"),
    ("subject,object\nMars,a;;b\n", 2, "object", "an empty answer between semicolons"),
    ("subject,object\nMars,a; a\n", 2, "object", "the same answer twice"),
    ('subject,object\nMars,"a\n', 2, None, "not valid CSV"),
    ('subject,object\nMars,"a"b\n', 2, None, "not valid CSV"),
    ("subject,object\nMars,a\nPl\0uto,b\n", 3, None, "a NUL byte"),
    ("subject,object\nMars,a\nM\xe4rs,b\n".encode("latin-1"), 3, None, "not UTF-8"),
    ("subject,object\nMars,a\n".encode("utf-16"), 1, None, "not UTF-8"),
    (f"subject,object\n{'x' * 200_000},a\n", 2, None, "not valid CSV"),
]


@pytest.mark.parametrize(("text", "line", "field", "message"), BAD_CSV)
def test_bad_csv_names_file_line_and_field(
    tmp_path: Path, text: str | bytes, line: int, field: str | None, message: str
) -> None:
    with pytest.raises(PackError) as caught:
        load(tmp_path, RELATION + "    entities: moons.csv\n", text)
    error = caught.value
    assert message in str(error)
    assert (error.file, error.line, error.field) == (tmp_path / "moons.csv", line, field)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "name",
    ["../moons.csv", "a/../../moons.csv", "/etc/passwd", "C:/moons.csv", "..\\moons.csv", "sub\\moons.csv"],
)
def test_files_outside_the_pack_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "subject\nMars\n", "moons.csv")
    path = write(tmp_path, RELATION + f"    entities: '{name}'\n", "inner/mine.yaml")
    with pytest.raises(PackError, match="must be a plain path below the pack's own directory") as caught:
        load_pack(path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (path, 6, "entities")


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "subject\nMars\n", "secret.csv")
    path = write(tmp_path, RELATION + "    entities: moons.csv\n", "inner/mine.yaml")
    os.symlink(tmp_path / "secret.csv", path.parent / "moons.csv")
    with pytest.raises(PackError, match="leads outside the pack's own directory"):
        load_pack(path)


@pytest.mark.parametrize("name", ["missing.csv", ".", "x" * 5000])
def test_missing_entity_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackError, match="there is no file") as caught:
        load(tmp_path, RELATION + f"    entities: {name}\n")
    assert (caught.value.line, caught.value.field) == (6, "entities")


def test_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    with path.open("wb") as handle:
        handle.truncate(marked.MAX_YAML_BYTES + 1)
    with pytest.raises(PackError, match="at most 1,048,576"):
        load_pack(path)
    csv = write(tmp_path, "", "moons.csv")
    with csv.open("wb") as handle:
        handle.truncate(marked.MAX_CSV_BYTES + 1)
    with pytest.raises(PackError, match="at most 67,108,864") as caught:
        load(tmp_path, RELATION + "    entities: moons.csv\n")
    assert caught.value.file == csv


def test_yaml_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="not UTF-8") as caught:
        load(tmp_path, b"pack: mine\ndescription: M\xe4rs\n")
    assert caught.value.line == 2


def test_an_unknown_pack_names_the_shipped_ones() -> None:
    with pytest.raises(PackError, match="no pack 'cor'; did you mean 'core'"):
        load_pack("cor")
    with pytest.raises(PackError, match="no pack 'zzzz'; there are core, world"):
        load_pack("zzzz")


@pytest.mark.parametrize("name", ["missing.yaml", "nul\0.yaml", "y" * 5000 + ".yaml", "~nobody_here/x.yml"])
def test_pack_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackError, match="cannot be read"):
        load_pack(tmp_path / name if "~" not in name else name)


def test_other_kinds_of_files_say_where_they_belong(tmp_path: Path) -> None:
    path = write(tmp_path, "subject\nMars\n", "entities.csv")
    with pytest.raises(PackError, match=r"a pack is a \.yaml file; entities"):
        load_pack(path)
    (tmp_path / "directory.yaml").mkdir()
    with pytest.raises(PackError, match="not a regular file"):
        load_pack(tmp_path / "directory.yaml")
    with pytest.raises(PackError, match=r"a pack is a \.yaml file"):
        load_pack(tmp_path)


def test_the_example_of_the_readme_loads(tmp_path: Path) -> None:
    readme = (Path(marked.__file__).parent / "README.md").read_text(encoding="utf-8")
    example = readme.split("```yaml\n")[1].split("```")[0]
    write(tmp_path, "subject,object\nMars,4\n", "planets/position.csv")
    pack = load_pack(write(tmp_path, example, "planets.yaml"))
    assert [(r.name, len(r.entities)) for r in pack.relations] == [
        ("moon", 3),
        ("position", 1),
        ("capital", 50),
    ]
    assert pack.relation("moon").references["Mars"] == ("Phobos", "Deimos")
