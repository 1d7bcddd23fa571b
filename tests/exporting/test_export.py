"""EXPORT: facts as other tools' files, read back by the libraries that those who use them have."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx
import pyarrow.parquet as pq
import pytest

import larql_duck as lq
from larql_duck.cli import app as cli
from larql_duck.errors import LarqlError, QueryError, SemanticError
from larql_duck.session import Session
from tests.world import NASTY

rdflib = pytest.importorskip("rdflib", reason="pip install rdflib, which reads the files back")
pytest.importorskip("pyoxigraph", reason="pip install 'larql-duck[rdf]'")

LQ = rdflib.Namespace("urn:larql-duck:term:")
RDF, RDFS, PROV = rdflib.RDF, rdflib.RDFS, rdflib.PROV
WDT = rdflib.Namespace("http://www.wikidata.org/prop/direct/")
GRAPH = "SELECT subject, relation, object, p, confidence, source FROM triples WHERE source <> 'weights'"


def export(s: Session, path: Path, form: str, query: str = "CURRENT", clauses: str = "") -> lq.Result:
    return s.lql(f"EXPORT {query} INTO '{path}' FORMAT {form} {clauses}")


def stored(s: Session) -> list[dict[str, Any]]:
    return s.sql(GRAPH).dicts()


def stated(graph: rdflib.Graph) -> Iterator[dict[str, Any]]:
    """What the rdf:Statements of a graph say, with names for IRIs."""
    for node in graph.subjects(RDF.type, RDF.Statement):
        figures = {name: graph.value(node, LQ[name]) for name in ("p", "confidence", "source", "relation")}
        yield {
            "subject": str(graph.value(graph.value(node, RDF.subject), RDFS.label)),
            "object": str(graph.value(graph.value(node, RDF.object), RDFS.label)),
        } | {name: None if value is None else value.toPython() for name, value in figures.items()}


def by_fact(rows: Any) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["subject"], row["relation"], row["object"]))


@pytest.mark.parametrize(
    ("form", "read_as"), [("turtle", "turtle"), ("jsonld", "json-ld"), ("nquads", "nquads")]
)
def test_rdflib_reads_what_the_tables_hold(s: Session, tmp_path: Path, form: str, read_as: str) -> None:
    result = export(s, tmp_path / "facts", form)
    dataset = rdflib.Dataset(default_union=True)
    dataset.parse(tmp_path / "facts", format=read_as)
    facts = stored(s)
    # Names with quotes, tabs, emoji and 10,000 characters are among them.
    assert {f["subject"] for f in facts} >= set(NASTY) and by_fact(stated(dataset)) == by_fact(facts)
    [(file, _, n_statements, size)] = result.rows()
    assert file == str(tmp_path / "facts") and size == (tmp_path / "facts").stat().st_size
    assert n_statements == len(list(dataset.quads())) and result.notices == [f"{len(facts)} facts"]


def test_a_fact_is_a_triple_with_wikidatas_property(s: Session, tmp_path: Path) -> None:
    export(s, tmp_path / "facts.ttl", "TURTLE")
    graph = rdflib.Graph().parse(tmp_path / "facts.ttl")
    france, paris = (rdflib.URIRef(f"urn:larql-duck:entity:{name}") for name in ("France", "Paris"))
    assert (france, WDT.P36, paris) in graph and graph.value(WDT.P36, RDFS.label) == rdflib.Literal("capital")
    # No pack knows a property for the relation city: it has a name of our own.
    [(tower, city)] = {(s, p) for s, p in graph.subject_predicates(paris) if "Tower" in s}
    assert (
        str(tower) == "urn:larql-duck:entity:Eiffel%20Tower" and str(city) == "urn:larql-duck:relation:city"
    )


def test_provenance_leads_to_the_model(s: Session, tmp_path: Path) -> None:
    export(s, tmp_path / "facts.nq", "NQUADS")
    dataset = rdflib.Dataset()
    dataset.parse(tmp_path / "facts.nq", format="nquads")
    [model] = {graph.identifier for graph in dataset.graphs()} - {rdflib.graph.DATASET_DEFAULT_GRAPH_ID}
    graph = dataset.graph(model)
    assert set(graph.objects(None, PROV.wasDerivedFrom)) == {model}
    assert graph.value(model, RDFS.label) == rdflib.Literal(s.workspace.vindex.manifest.model)


def test_reifiers_and_another_base(s: Session, tmp_path: Path) -> None:
    import pyoxigraph as ox

    base = "https://example.org/"
    query = "SELECT * FROM model_graph WHERE subject = 'France'"
    export(s, tmp_path / "facts.nq", "NQUADS", query, f"WITH REIFIERS WITH BASE '{base}'")
    quads = list(ox.parse(path=str(tmp_path / "facts.nq"), format=ox.RdfFormat.N_QUADS))
    reified = [q.object for q in quads if q.predicate.value == f"{RDF}reifies"]
    assert {(t.subject.value, t.object.value) for t in reified} == {
        (f"{base}entity:France", f"{base}entity:{name}") for name in ("Paris", "French", "Europe")
    }
    assert not any(q.object == ox.NamedNode(str(RDF.Statement)) for q in quads)


def test_networkx_reads_the_graph(s: Session, tmp_path: Path) -> None:
    export(s, tmp_path / "facts.graphml", "GRAPHML")
    graph = networkx.read_graphml(tmp_path / "facts.graphml", force_multigraph=True)
    labels = dict(graph.nodes(data="label"))
    edges = [
        {"subject": labels[a], "object": labels[b], "confidence": None, **data}
        for a, b, data in graph.edges(data=True)
    ]
    keys = ("subject", "relation", "object", "p", "confidence", "source")
    assert by_fact([{k: e[k] for k in keys} for e in edges]) == by_fact(stored(s))


def test_neo4js_files(s: Session, tmp_path: Path) -> None:
    export(s, tmp_path / "facts.csv", "NEO4J")
    nodes, relationships = (
        list(csv.DictReader((tmp_path / f"facts-{what}.csv").open(encoding="utf-8", newline="")))
        for what in ("nodes", "relationships")
    )
    assert list(nodes[0]) == ["name:ID", ":LABEL"] and {n[":LABEL"] for n in nodes} == {"Entity"}
    names = [n["name:ID"] for n in nodes]
    facts = stored(s)
    assert len(names) == len(set(names)) and set(names) == {
        f[k] for f in facts for k in ("subject", "object")
    }
    assert sorted(
        (r[":START_ID"], r[":TYPE"], r[":END_ID"], float(r["p:double"])) for r in relationships
    ) == sorted((f["subject"], f["relation"], f["object"], f["p"]) for f in facts)


def test_any_columns_as_csv_and_parquet(s: Session, tmp_path: Path) -> None:
    query = "SELECT layer, feature, top_token FROM FEATURES WHERE layer = 3"
    rows = s.lql(query).rows()
    export(s, tmp_path / "f.parquet", "PARQUET", query)
    assert [tuple(r.values()) for r in pq.read_table(tmp_path / "f.parquet").to_pylist()] == rows
    export(s, tmp_path / "f.csv", "CSV", query)
    written = list(csv.reader((tmp_path / "f.csv").open(encoding="utf-8", newline="")))
    assert written[0] == ["layer", "feature", "top_token"]
    assert [tuple(r) for r in written[1:]] == [tuple(map(str, r)) for r in rows]


def test_edits_are_exported(tiny_vindex: Any, tmp_path: Path) -> None:
    with lq.connect(tiny_vindex("llama")) as s:
        s.insert([("France", "capital", "Rome")], mode="knn")
        export(s, tmp_path / "facts.jsonld", "JSONLD")
        assert "Rome" in (tmp_path / "facts.jsonld").read_text()


def test_tables_of_the_callers(s: Session, tmp_path: Path) -> None:
    import pandas as pd

    mine = pd.DataFrame({"Entity": ["a", None], "relation": "r", "target": ["b", "c"]})
    assert len(mine) == 2
    result = s.lql(f"EXPORT SELECT * FROM mine INTO '{tmp_path}/mine.graphml' FORMAT GRAPHML")
    assert result.notices == ["1 fact", "left out: 1 row without a subject, relation or object"]
    assert sorted(
        n["label"] for _, n in networkx.read_graphml(tmp_path / "mine.graphml").nodes(data=True)
    ) == ["a", "b"]


@pytest.mark.parametrize(
    ("statement", "error", "said"),
    [
        (
            "EXPORT SELECT subject FROM FACTS INTO '{}/x' FORMAT TURTLE",
            SemanticError,
            "no column relation or",
        ),
        ("EXPORT SELECT nothing FROM FACTS INTO '{}/x' FORMAT CSV", QueryError, "nothing"),
        ("EXPORT CURRENT INTO '{}/x' FORMAT CSV WITH REIFIERS", SemanticError, "WITH REIFIERS goes with"),
        (
            "EXPORT CURRENT INTO '{}/x' FORMAT GRAPHML WITH BASE 'urn:a:'",
            SemanticError,
            "WITH BASE goes with",
        ),
        ("EXPORT CURRENT INTO '{}/x' FORMAT TURTLE WITH BASE 'no iri '", LarqlError, "begins no IRI"),
        ("EXPORT CURRENT INTO ' ' FORMAT CSV", SemanticError, "has no name"),
        ("EXPORT CURRENT INTO '{}/none/x' FORMAT CSV", LarqlError, "make the folder first"),
        (
            "EXPORT SELECT subject, relation, object, 'x' AS p FROM FACTS INTO '{}/x' FORMAT TURTLE",
            QueryError,
            "'x'",
        ),
    ],
)
def test_errors_leave_nothing(s: Session, tmp_path: Path, statement: str, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        s.lql(statement.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_export_stays(s: Session, tmp_path: Path) -> None:
    mine = tmp_path / "facts.ttl"
    mine.write_text("my notes")
    with pytest.raises(LarqlError, match="holds something of another kind"):
        export(s, mine, "TURTLE")
    assert mine.read_text() == "my notes"
    mine.unlink()
    for _ in range(2):
        export(s, mine, "TURTLE")


def test_without_pyoxigraph(s: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyoxigraph", None)
    with pytest.raises(LarqlError, match=r"pip install 'larql-duck\[rdf\]'"):
        export(s, tmp_path / "facts.ttl", "TURTLE")
    export(s, tmp_path / "facts.graphml", "GRAPHML")


def test_the_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o'brien.jsonld"
    query = "SELECT * FROM FACTS WHERE subject = 'France'"
    assert cli.run(["export", str(world), "--format", "jsonld", "-o", str(out), "--query", query]) == 0
    assert "RDF statements" in capsys.readouterr().err and json.loads(out.read_text())
    for extra, said in (
        (["--format", "csv", "--top", "3"], "--format neuronpedia"),
        (["--format", "neuronpedia", "--reifiers"], "for facts, not for tables"),
        (["--format", "csv", "--query", "STATS"], "takes one query"),
    ):
        assert cli.run(["export", str(world), "-o", str(tmp_path / "x"), *extra]) == 2
        assert said in capsys.readouterr().err
