"""Keys: texts that name the same thing have the same one, in Python and in SQL."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import larql_duck as lq
from larql_duck.catalog import SCHEMAS, rows_as_table
from larql_duck.catalog.sql_files import sql_query
from larql_duck.cli import app as cli
from larql_duck.knowledge import keys
from larql_duck.knowledge.keys import aliases, name_key
from larql_duck.probing.packs import load_pack
from larql_duck.vindex.arrays import hash_file
from larql_duck.vindex.database import build_database
from larql_duck.vindex.derive import derive_entities, derive_triples, with_keys
from larql_duck.vindex.fields import read_json
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.publish import seal_manifest, write_table
from tests.world import write_vindex

WORLD = load_pack("world")
ALIKE = [
    ("euro", "Euro", "EUR", "the euro", "euros", " Euro. "),
    ("United States", "US", "U.S.", "USA", "The United States of America", "usa"),
    ("United Kingdom", "UK", "the U.K."),
    ("St. John's", "st John's"),
    ("Czech Republic", "Czechia"),
    ("São Tomé and Príncipe", "Sa\u0303o Tome\u0301 and Pri\u0301ncipe", "Sao Tome and Principe"),
    ("J. R. R. Tolkien", "J R  R Tolkien"),
    ("US dollar", "USD", "United States dollar", "U.S. Dollar"),
    ("Straße", "STRASSE"),
]
DIFFERENT = [
    *(("us", "US"), ("rub", "RUB"), ("PHP", "Philippine peso"), ("all", "Albanian lek"), ("3.5", "35")),
    *((".java", "Java"), ("Niger", "Nigeria"), ("a", "the"), ("Republic of the Congo", "DR Congo")),
]


@pytest.mark.parametrize("names", ALIKE, ids=lambda names: names[0])
def test_the_same_thing_has_one_key(names: tuple[str, ...]) -> None:
    assert len({name_key(name) for name in names}) == 1


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_things_have_others(one: str, other: str) -> None:
    assert name_key(one) != name_key(other)


def test_aliases_lead_to_keys_that_name_themselves() -> None:
    assert all(name_key(key) == key for key in aliases().values())
    assert all(name_key(name) == key for name, key in aliases().items())
    subjects = {name_key(s) for r in WORLD.relations for s in r.entities}
    answers = {name_key(a) for r in WORLD.relations for several in r.references.values() for a in several}
    known = {key for name, key in aliases().items() if not name.isupper() and key in subjects | answers}
    assert {"united states", "euro", "netherlands", "aluminum", "persian", "south korean won"} <= known


def test_no_alias_joins_two_subjects_of_a_relation() -> None:
    for relation in WORLD.relations:
        others = {e: name_key(e) for e in relation.entities if name_key(e) in aliases().values()}
        assert len(set(others.values())) == len(others), relation.name


def test_sources_of_aliases_are_explained() -> None:
    notes = (Path(keys.__file__).parent / "LICENSES.md").read_text(encoding="utf-8")
    sources = duckdb.sql(sql_query("name_aliases")).project("source").distinct().fetchall()
    assert sources and all(source in notes for (source,) in sources)


FACTS = [
    ("Germany", "currency", "euro", 0.9),
    ("France", "currency", "Euro", 0.8),
    ("Spain", "currency", "EUR", 0.7),
    ("United States", "currency", "dollar", 0.9),
    ("USA", "capital", "Washington", 0.8),
    ("Anna", "home country", "the U.S.", 0.5),
    ("Turkey", "capital", "Ankara", 0.9),
    ("turkey", "animal class", "bird", 0.9),
    ("The Raven", "author", "Poe", 0.9),
    ("raven", "animal class", "bird", 0.8),
]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    place = tmp_path_factory.mktemp("keys")
    rows = [
        {"subject": s, "relation": r, "object": o, "rank": 1, "p": p, "confidence": p, "source": "probe"}
        for s, r, o, p in FACTS
    ]
    facts = with_keys(rows_as_table("facts", rows))
    edges = [("Euro", "associated with", "money", 3, 1, 5.0, None, None, None, "weights", False)]
    weights = pa.Table.from_pylist(
        [dict(zip(SCHEMAS["edges"].names, e, strict=True)) for e in edges], SCHEMAS["edges"]
    )
    triples = derive_triples(facts, weights)
    made = {"facts": facts, "edges": weights, "triples": triples, "entities": derive_entities(triples)}
    for name, schema in SCHEMAS.items():
        write_table(place / f"{name}.parquet", name, made.get(name, schema.empty_table()))
    build_database(place, place / "model.duckdb", "keys")
    return duckdb.connect(str(place / "model.duckdb"), read_only=True)


def subjects(graph: duckdb.DuckDBPyConnection, query: str) -> set[str]:
    return {row[0] for row in graph.sql(query).fetchall()}


@pytest.mark.parametrize("name", ["euro", "Euro", "EUR", "the Euro.", "eur"])
def test_who_knows_every_name_of_an_object(graph: duckdb.DuckDBPyConnection, name: str) -> None:
    assert subjects(graph, f"SELECT subject FROM who('currency', '{name}')") == {"Germany", "France", "Spain"}


@pytest.mark.parametrize("name", ["USA", "US", "United States", "the United States of America"])
def test_descriptions_gather_a_subjects_names(graph: duckdb.DuckDBPyConnection, name: str) -> None:
    rows = graph.sql(f"SELECT relation, target, direction FROM describe_entity('{name}')").fetchall()
    assert set(rows) == {
        ("currency", "dollar", "out"), ("capital", "Washington", "out"), ("home country", "Anna", "in"),
    }  # fmt: skip


def test_another_spelling_may_be_another_thing(graph: duckdb.DuckDBPyConnection) -> None:
    about = "SELECT target FROM describe_entity('{}')"
    assert subjects(graph, about.format("Turkey")) == {"Ankara"}
    assert subjects(graph, about.format("turkey")) == {"bird"}
    assert subjects(graph, about.format("TURKEY")) == {"Ankara", "bird"}
    assert subjects(graph, about.format("raven")) == {"bird"}
    assert subjects(graph, about.format("The Raven")) == {"Poe"}
    assert subjects(graph, about.format("the raven.")) == {"Poe", "bird"}


def test_tables_join_by_key(graph: duckdb.DuckDBPyConnection) -> None:
    rows = graph.sql(
        "SELECT a.subject, b.object FROM model_graph AS a JOIN model_graph AS b ON a.object_key = b.subject_key"
    ).fetchall()
    assert set(rows) == {("Anna", "dollar"), ("Anna", "Washington")}
    mine = pa.table({"country": ["U.S.", "Germany"]})  # noqa: F841
    rows = graph.sql(
        "SELECT country, object FROM mine JOIN facts ON name_key(country) = subject_key AND relation = 'currency'"
    ).fetchall()
    assert set(rows) == {("U.S.", "dollar"), ("Germany", "euro")}
    assert graph.sql(
        "SELECT count(*) FROM triples WHERE (source = 'weights') = (subject_key IS NULL)"
    ).fetchall() == [(len(FACTS) + 1,)]


def test_python_and_sql_agree(graph: duckdb.DuckDBPyConnection) -> None:
    texts = {t for names in (*ALIKE, *DIFFERENT) for t in names} | {
        *aliases(),
        "",
        ".",
        "...",
        "v1..",
        "a\u00a0b",
        "İzmir",
    }
    texts |= {t for r in WORLD.relations for s, several in r.references.items() for t in (s, *several)}
    given = pa.table({"text": sorted(texts)})  # noqa: F841
    rows = graph.sql("SELECT text, name_key(text) FROM given").fetchall()
    assert [(text, key) for text, key in rows if name_key(text) != key] == []


def test_probing_and_inserting_fill_keys(probed_vindex) -> None:
    path = probed_vindex.__wrapped__("llama")
    with lq.connect(path) as session:
        rows = session.sql("SELECT subject, subject_key, object, object_key FROM facts").fetchall()
        assert rows and all(name_key(s) == sk and name_key(o) == ok for s, sk, o, ok in rows)
        session.lql(
            'INSERT INTO EDGES (entity, relation, target) VALUES ("The U.S.", "capital", "Paris") MODE KNN'
        )
        inserted = "SELECT subject_key, object_key FROM {} WHERE subject = 'The U.S.'"
        for table in ("facts", "triples", "model_graph"):
            assert session.sql(inserted.format(f"lq.{table}")).fetchall() == [("united states", "paris")], (
                table
            )
        assert ("The U.S.",) in session.sql("SELECT subject FROM who('capital', 'the Paris')").fetchall()
        assert session.sql("SELECT count(*) FROM describe_entity('USA')").fetchall()[0][0] >= 1


def test_keys_of_an_older_vindex_are_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_vindex(tmp_path / "old.vindex")
    raw = read_json(path / INDEX)
    raw["larql_duck"]["schema_version"] = "2.1"
    for name in ("facts", "triples"):
        file = path / "tables" / f"{name}.parquet"
        pq.write_table(pq.read_table(file).drop_columns(["subject_key", "object_key"]), file)
        raw["larql_duck"]["tables"][name] |= {"bytes": file.stat().st_size, **hash_file(file)}
    (path / INDEX).write_bytes(seal_manifest(raw))
    with lq.connect(path) as session:
        assert "extracted by an earlier version" in capsys.readouterr().err
        rows = session.sql("SELECT subject, subject_key, object, object_key FROM model_graph").fetchall()
        assert rows and all(name_key(s) == sk and name_key(o) == ok for s, sk, o, ok in rows)
        assert session.sql(
            "SELECT DISTINCT subject_key FROM lq.triples WHERE source = 'weights'"
        ).fetchall() == [(None,)]
        assert session.sql("SELECT subject FROM who('capital', 'the Paris.')").fetchall() == [("France",)]
    assert cli.run(["model-sql", str(path)]) == 0
    with duckdb.connect() as con:
        con.execute(capsys.readouterr().out)
        assert con.sql("SELECT subject FROM who('capital', 'paris')").fetchall() == [("France",)]
