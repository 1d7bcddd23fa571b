"""Packs from the user's lists, tables and files."""

from __future__ import annotations

import datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from larql_duck.errors import PackError
from larql_duck.knowledge.entity_files import read_entities
from larql_duck.probing.packs import known_relations, load_pack, pack_from_frames

NAMES = ["France", "Atlantis"]


def entity_sources() -> dict[str, object]:
    con = duckdb.connect()
    return {
        "list": NAMES,
        "tuple": tuple(NAMES),
        "generator": (n for n in NAMES),
        "numpy": np.array(NAMES),
        "series": pd.Series(NAMES),
        "pandas": pd.DataFrame({"name": NAMES}),
        "polars": pl.DataFrame({"Entity": NAMES, "size": [1, 2]}),
        "polars series": pl.Series(NAMES),
        "lazy": pl.DataFrame({"name": NAMES}).lazy(),
        "objects": np.array([*NAMES, None], dtype=object),
        "types in one column": pd.DataFrame({"size": [1, "x"], "name": NAMES}),
        "arrow": pa.table({"subject": NAMES}),
        "batch": pa.RecordBatch.from_pydict({"subject": NAMES}),
        "array": pa.array(NAMES),
        "categories": pa.table({"subject": pa.array(NAMES).dictionary_encode()}),
        "dict": {"anything": NAMES},
        "duckdb": con.sql("SELECT unnest(['France', 'Atlantis']) AS country"),
    }


@pytest.mark.parametrize("kind", list(entity_sources()))
def test_every_kind_of_table(kind: str) -> None:
    pack = pack_from_frames(entity_sources()[kind], ["capital"], name="mine")
    (capital,) = pack.relations
    assert (pack.name, capital.entities) == ("mine", ("France", "Atlantis"))
    assert capital.references == {"France": ("Paris",)}
    assert capital.templates == known_relations()["capital"].templates


def test_text_and_object_columns_go_before_what_is_known() -> None:
    table = pa.table(
        {
            "subject": ["Netherlands", "Congo", "France", "Chad"],
            "text": [None, "the Congo", "", "Chad"],
            "object": [["Amsterdam"], ["Kinshasa", "Brazzaville"], ["Lutetia"], []],
        }
    )
    (capital,) = pack_from_frames(table, "capital").relations
    assert [capital.text(s) for s in capital.entities] == ["the Netherlands", "the Congo", "France", "Chad"]
    assert capital.references == {
        "Netherlands": ("Amsterdam",),
        "Congo": ("Kinshasa", "Brazzaville"),
        "France": ("Lutetia",),
        "Chad": ("N'Djamena",),
    }


def test_empty_and_repeated_names_are_dropped_and_order_is_kept() -> None:
    (capital,) = pack_from_frames(["b", None, "a", " ", "b", float("nan"), 1984], ["capital"]).relations
    assert capital.entities == ("b", "a", "1984")


MIXED = ["France", None, pd.NA, float("nan"), pd.NaT, "", " ", "<NA>", "NA", "Null"]
PLAIN = ["France", None, "NA", "Null"]


@pytest.mark.parametrize(
    "names",
    [
        MIXED,
        np.array(MIXED, dtype=object),
        pd.Series(MIXED, dtype=object),
        pd.DataFrame({"name": pd.Series(MIXED, dtype=object)}),
        pd.Series(PLAIN, dtype="str"),
        pd.Series(PLAIN, dtype="string"),
        pd.DataFrame({"name": pd.Series(PLAIN, dtype=pd.ArrowDtype(pa.string()))}),
        pd.Series(PLAIN, dtype=object).astype("string").fillna("<NA>").astype(object),
        pl.Series(PLAIN),
        pl.DataFrame({"name": PLAIN}).lazy(),
        pa.array(PLAIN),
    ],
    ids=[
        "list",
        "numpy",
        "object",
        "object frame",
        "str",
        "string",
        "Arrow-backed",
        "printed",
        "polars",
        "lazy",
        "Arrow",
    ],
)
def test_what_is_missing_is_no_entity_and_what_is_called_so_is(names: object) -> None:
    (capital,) = pack_from_frames(names, ["capital"]).relations
    assert capital.entities == ("France", "NA", "Null")


def test_missing_texts_and_answers_are_none() -> None:
    table = pd.DataFrame(
        {"name": ["Chad", "Mars"], "text": [pd.NA, None], "object": [pd.NA, float("nan")]}, dtype=object
    )
    (capital,) = pack_from_frames(table, ["capital"]).relations
    assert [capital.text(s) for s in capital.entities] == ["Chad", "Mars"]
    assert capital.references == {"Chad": ("N'Djamena",)}


def test_numbers_beside_missing_ones_stay_whole() -> None:
    (capital,) = pack_from_frames(pd.Series([1984, None, 1.5]), ["capital"]).relations
    assert capital.entities == ("1984", "1.5")


def test_names_are_composed_before_they_are_compared() -> None:
    (capital,) = pack_from_frames(["Co\u0302te d'Ivoire", "C\xf4te d'Ivoire"], {"r": "About {} is"}).relations
    assert capital.entities == ("C\xf4te d'Ivoire",)


def test_own_templates() -> None:
    own = {"moon": "A moon of {} is", "ring": ["{} has a ring called", "A ring of {} is"]}
    moon, ring = pack_from_frames(["Saturn"], own).relations
    assert (moon.name, moon.templates, moon.references) == ("moon", ("A moon of {} is",), {})
    assert ring.templates == ("{} has a ring called", "A ring of {} is")
    assert ring.entities == ("Saturn",)


def test_own_templates_of_a_known_relation_keep_its_answers() -> None:
    (capital,) = pack_from_frames(None, {"capital": ["The main city of {} is"]}).relations
    known = known_relations()["capital"]
    assert capital.templates == ("The main city of {} is",)
    assert (capital.entities, capital.references) == (known.entities, known.references)


def test_names_templates_and_relations_may_be_mixed() -> None:
    opposite = load_pack("core").relation("opposite")
    pack = pack_from_frames(["hot"], ["plural", {"mood": ["{} makes me"]}, opposite])
    assert [r.name for r in pack.relations] == ["plural", "mood", "opposite"]
    assert all(r.entities == ("hot",) for r in pack.relations)


def test_without_relations_each_entity_is_asked_what_suits_it() -> None:
    pack = pack_from_frames(["France", "gold"])
    asked = {r.name: r.entities for r in pack.relations}
    assert asked["capital"] == asked["language"] == ("France",)
    assert asked["chemical symbol"] == ("gold",)
    assert "past tense" not in asked


def test_an_entity_that_no_pack_knows_is_asked_what_it_is_and_what_suits_it() -> None:
    name = "Zaphod Beeblebrox"
    assert [r.name for r in pack_from_frames([name]).relations] == ["is a"]
    suited = {name: ["occupation", "birthplace"], "France": ["color"]}
    asked = {r.name: r.entities for r in pack_from_frames([name, "France"], suited=suited).relations}
    assert {r for r, names in asked.items() if name in names} == {"occupation", "birthplace"}
    assert asked["color"] == asked["capital"] == ("France",)


def test_a_table_holds_entities_of_any_text() -> None:
    names = ["O'Brien; DROP TABLE t", 'a "quoted" {} name', "🐘", "x" * 10_000]
    (relation,) = pack_from_frames(names, {"r": "About {} we know"}).relations
    assert relation.entities == tuple(names)


BAD = [
    ("France", ["capital"], "entities", "give a list of names"),
    ([], ["capital"], "entities", "no entities"),
    ([" ", None], ["capital"], "entities", "no entities"),
    ([["France"]], ["capital"], "entities", "entity 1 is a list"),
    ([datetime.date(2025, 1, 1)], ["capital"], "entities", "entity 1 is a date"),
    (42, ["capital"], "entities", "entities is a int"),
    (
        pa.table({"a": ["x"], "b": ["y"]}),
        ["capital"],
        "entities",
        "no column subject, entity or name among a, b",
    ),
    (pa.table({"name": [["x"]]}), ["capital"], "entities", "column 'name' holds list"),
    (
        pa.table([["x"], ["y"]], names=["name", "Name"]),
        ["capital"],
        "entities",
        "2 columns are called 'name'",
    ),
    (["\ud800"], ["capital"], "entities", "no valid text"),
    (["x"], ["capitol"], "relation", "did you mean 'capital'"),
    (["x"], {"r": []}, "templates", "give a template"),
    (["x"], {"r": [1]}, "templates", "give a template"),
    (["x"], {"r": "no slot"}, "templates", "has 0 slots"),
    (["x"], {"r": "{} and {}"}, "templates", "has 2 slots"),
    (["x"], {"r": "ends with a blank {} "}, "templates", "white space"),
    (["x"], {"": "about {} is"}, "relations", "a name is a text"),
    (["x"], [3], "relations", "not a int"),
    (["x"], 3, "relations", "relations are names"),
    (["x"], ["capital", "Capital"], "relations", "'capital' is given twice"),
    (None, None, "relations", "give at least one"),
    (None, {"r": "about {} is"}, "entities", "relation 'r' has no entities of its own"),
]


@pytest.mark.parametrize(("entities", "relations", "field", "message"), BAD)
def test_bad_input_names_what_is_wrong(entities: object, relations: object, field: str, message: str) -> None:
    with pytest.raises(PackError) as caught:
        pack_from_frames(entities, relations)
    assert message in str(caught.value)
    assert caught.value.field == field


def test_entities_from_files(tmp_path: Path) -> None:
    csv = tmp_path / "countries.csv"
    csv.write_text("id,name,object\n1,Namibia,Windhoek\n2,NA,a; b\n3,1984,\n", encoding="utf-8")
    (capital,) = pack_from_frames(read_entities(csv).table, ["capital"]).relations
    # NA is a name, not a missing value.
    assert capital.entities == ("Namibia", "NA", "1984")
    assert capital.references["NA"] == ("a", "b")
    parquet = tmp_path / "countries.parquet"
    pyarrow.parquet.write_table(pa.table({"entity": ["Chad"]}), parquet)
    assert pack_from_frames(read_entities(parquet).table, ["capital"]).relations[0].entities == ("Chad",)


@pytest.mark.parametrize(
    ("content", "names", "said"),
    [
        ("name;iso\nFrance;FR\nJapan;JP\n", ["France", "Japan"], "columns name, iso separated by ';'; 2 rows"),
        ("iso\tName\nFR\tFrance\n", ["France"], "columns iso, Name separated by tab"),
        ("France\nJapan\nNA\nNull\n", ["France", "Japan", "NA", "Null"], "one column, no header; 4 rows, 4 names: France,"),
        ("France;FR\nJapan;JP\n", ["France", "Japan"], "columns subject, 2 separated by ';', no header"),
        ("1,France\n2,Japan\n", ["France", "Japan"], "columns 1, subject separated by ',', no header"),
        ("pop,name\n1,France\n,\n", ["France"], "2 rows, 1 names"),
        # Commas and semicolons in names, an unclosed quotation mark, a byte order mark, a short line.
        ('name\n"Washington, D.C."\nParis, Texas\nSt-Denis; La R.\n', ["Washington, D.C.", "Paris, Texas", "St-Denis; La R."], "one column;"),
        ('name\n5" disk\nO"Brien\n', ['5" disk', 'O"Brien'], "one column;"),
        ("\ufeffname;text\nChad\nCongo;the Congo\n", ["Chad", "Congo"], "columns name, text"),
    ],
)  # fmt: skip
def test_a_csv_of_any_dialect(content: str, names: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a[1]*.csv"
    path.write_text(content, encoding="utf-8", newline="")
    file = read_entities(path)
    assert list(pack_from_frames(file.table, ["capital"]).relations[0].entities) == names
    assert said in file.understood and file.understood.startswith(str(path))


@pytest.mark.parametrize(
    ("content", "names", "said"),
    [
        ("country\nFrance\nvan Gogh Land\n" + "Peru\n" * 9, ["France", "van Gogh Land", "Peru"], "one column, header country; 11 rows, 3 names: France, van Gogh Land, Peru; if country is a name too: --no-header"),
        ("Country\nFrance\nJapan\n", ["France", "Japan"], "header Country; 2 rows, 2 names: France, Japan; if Country is a name too: --no-header"),
        ("country\nfrance\njapan\n", ["france", "japan"], "header country; 2 rows, 2 names: france, japan; if country is a name too: --no-header"),
        ("\"CITIES\"\nParis\n", ["Paris"], "header CITIES; 1 rows, 1 names: Paris; if CITIES is a name too: --no-header"),
        # Nouns that may all be asked about, one name alone, and a word that is more than a heading.
        ("city\nvillage\ntown\nriver\n", ["city", "village", "town", "river"], "if city is a heading: --header"),
        ("Person\n", ["Person"], "if Person is a heading: --header"),
        ("Countryside\nSea\n", ["Countryside", "Sea"], "if Countryside is a heading: --header"),
        ("water\nfire\nEarth\n", ["water", "fire", "Earth"], "if water is a heading: --header"),
        ("国\n法国\n", ["国", "法国"], "if 国 is a heading: --header"),
        ("FR;Country\nx;France\n", ["FR", "x"], "if FR is a heading: --header"),
        ("name\nFrance\n", ["France"], ": one column; 1 rows, 1 names: France"),
    ],
)  # fmt: skip
def test_a_heading_that_is_no_known_word(content: str, names: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "countries.csv"
    path.write_text(content, encoding="utf-8")
    file = read_entities(path)
    assert list(pack_from_frames(file.table, ["capital"]).relations[0].entities) == names
    assert file.understood.endswith(said)


def test_whether_there_is_a_header_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    for header, content, names in (
        (True, "Country\nFrance\n", ["France"]),
        (False, "country\nFrance\n", ["country", "France"]),
        (False, "name\nFrance\n", ["name", "France"]),
        (True, "name\nFrance\n", ["France"]),
        (False, "country,capital\nFrance,Paris\n", ["country", "France"]),
    ):
        path.write_text(content, encoding="utf-8")
        file = read_entities(path, header=header)
        assert list(pack_from_frames(file.table, ["capital"]).relations[0].entities) == names
        # Nothing is in doubt.
        assert "header:" not in file.understood and file.understood.endswith(names[-1])
    path.write_text("country,capital\nFrance,Paris\n", encoding="utf-8")
    with pytest.raises(PackError, match="no column subject, entity or name among country, capital"):
        read_entities(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(PackError, match="no entities"):
        read_entities(path, header=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "cannot be read"),
        ("broken.parquet", b"not parquet", "cannot be read"),
        ("latin.csv", "name\nM\xe4rs\n".encode("latin-1"), "cannot be read.*not utf-8"),
        ("ragged.csv", b"name,b\n1,2\n3,4,5\n", "cannot be read.*Line: 3"),
        (
            "numbers.csv",
            b"id,country\n1,France\n2,Japan\n",
            "no column subject, entity or name among id, country",
        ),
        ("header.csv", b"name\n", "no entities"),
        ("twice.csv", b"name,Name\nFrance,x\n", "2 columns are called 'name'; rename or leave out"),
        ("empty.csv", b"", "no entities"),
        ("names.txt", b"Mars\n", r"a .csv or a .parquet file"),
    ],
)
def test_entity_files_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PackError, match=message) as caught:
        read_entities(path)
    assert caught.value.file == path
    assert "\n" not in str(caught.value)
