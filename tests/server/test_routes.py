"""What the routes answer: the reference's shapes, the same rows as a session's, Arrow and CSV by Accept."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pytest

from larql_duck.commands.opening import connect
from larql_duck.session import Session
from tests.conftest import Make
from tests.server.running import Running

MODEL, WORLD = "llama-probed", "world"
ARROW = {"Accept": "application/vnd.apache.arrow.stream"}


@pytest.fixture(scope="module")
def own(probed_vindex: Make) -> Session:
    """A session on the vindex that is served, in this process."""
    with connect(probed_vindex("llama")) as session:
        yield session


def test_status(reader: Running) -> None:
    health = reader.get("/v1/health").json()
    assert health["status"] == "ok" and health["uptime_seconds"] >= 0
    models = reader.get("/v1/models").json()
    assert models["object"] == "list" and [m["id"] for m in models["data"]] == [MODEL, WORLD]
    assert "/v1/{model}/describe" in reader.get("/v1/openapi.json").json()["paths"]
    assert "larql_duck_requests_total" in reader.get("/metrics").text


def test_describe_has_the_shape_of_the_reference_and_our_members(reader: Running) -> None:
    answer = reader.get(f"/v1/{WORLD}/describe", params={"entity": "France"}).json()
    assert answer["entity"] == "France" and answer["model"] == WORLD and answer["latency_ms"] > 0
    [edge] = [e for e in answer["edges"] if e["relation"] == "capital"]
    assert (
        edge["target"] == "Paris"
        and {"gate_score", "layer", "source", "also", "confidence", "p"} <= edge.keys()
    )
    assert all(e["direction"] == "in" for e in answer["incoming"])


def test_walk_select_relations_and_stats(reader: Running) -> None:
    walk = reader.get(f"/v1/{WORLD}/walk", params={"prompt": "France", "top": 2}).json()
    assert (
        walk["prompt"] == "France" and {"layer", "feature", "gate_score", "target"} <= walk["hits"][0].keys()
    )
    body = {"entity": "France", "relation": "capital", "limit": 2, "order_by": "gate_score", "order": "desc"}
    select = reader.post(f"/v1/{WORLD}/select", body).json()
    assert {e["target"] for e in select["edges"]} == {"Paris"} and select["total"] >= len(select["edges"])
    scores = [e["gate_score"] for e in select["edges"]]
    assert scores == sorted(scores, reverse=True)
    relations = reader.get(f"/v1/{WORLD}/relations").json()
    assert "capital" in {r["name"] for r in relations["relations"]} and relations["total_probe"] > 0
    stats = reader.get(f"/v1/{MODEL}/stats").json()
    assert stats["layers"] > 0 and stats["extract_level"] == "all" and stats["loaded"]["browse"] is True


def test_infer_answers_as_the_session_does(reader: Running, own: Session) -> None:
    answer = reader.post(f"/v1/{MODEL}/infer", {"prompt": "The capital of France is", "top": 3}).json()
    expected = own.lql('INFER "The capital of France is" TOP 3').dicts()
    assert [p["token"] for p in answer["predictions"]] == [row["token"] for row in expected]
    assert answer["predictions"][0]["probability"] == pytest.approx(expected[0]["probability"], rel=1e-4)
    assert answer["predictions"][0]["text"] == expected[0]["text"]
    both = reader.post(f"/v1/{MODEL}/infer", {"prompt": "The", "mode": "compare"}).json()
    assert len(both["walk"]) == len(both["dense"]) == 5
    explained = reader.post(f"/v1/{MODEL}/explain-infer", {"prompt": "The capital", "per_layer": 2}).json()
    assert explained["predictions"] and len(explained["trace"][0]["features"]) <= 2


STATEMENTS = """\
DESCRIBE "France"
DESCRIBE "France" ALL LAYERS VERBOSE
SELECT subject, object, p FROM facts ORDER BY subject, relation, rank LIMIT 7
SELECT * FROM EDGES WHERE entity = "France" ORDER BY layer, feature
SELECT * FROM EDGES NEAREST TO "France" AT LAYER 1 LIMIT 3
WALK "France" TOP 2
WALK "The capital of France" TOP 2 BASIS CONTEXT
EXPLAIN WALK "France" TOP 2
SHOW RELATIONS WITH EXAMPLES
SHOW LAYERS
SHOW FEATURES 1 WHERE feature < 5 LIMIT 3
SHOW ENTITIES LIMIT 5
NEIGHBORS OF "France" HOPS 2
PATHS FROM "France" TO "Paris"
INFER "The capital of France is" TOP 2 ABLATE (0, 1)
EXPLAIN INFER "The capital of France is" TOP 2
TRACE "The capital" FOR "a"
DESCRIBE "France" |> SELECT relation, target FROM _ ORDER BY relation, target
INFER "The capital of France is" |> SELECT count(*) AS n FROM _
EXPLAIN SQL DESCRIBE "France"
SELECT * FROM lq_logit_lens('The capital', p_k := 1)
SELECT * FROM explain_fact('France', 'capital')
FROM help()
PROBE ENTITIES "France" RELATIONS "capital" DRY RUN""".splitlines()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_query_answers_as_the_session_does(reader: Running, own: Session, statement: str) -> None:
    response = reader.lql(statement, MODEL)
    assert response.status_code == 200, response.text
    answer, expected = response.json(), own.lql(statement)
    assert answer["columns"] == expected.columns and len(answer["rows"]) == len(expected)
    for row, own_row in zip(
        answer["rows"], json.loads(json.dumps(expected.rows(), default=str)), strict=True
    ):
        for value, own_value in zip(row, own_row, strict=True):
            assert value == (
                pytest.approx(own_value, rel=1e-3) if isinstance(own_value, float) else own_value
            )


def test_query_gives_arrow_and_csv_by_accept(reader: Running, own: Session) -> None:
    statement = "SELECT * FROM facts ORDER BY subject, relation, rank"
    expected = own.lql(statement)
    response = reader.lql(statement, MODEL, headers=ARROW)
    assert response.headers["content-type"] == ARROW["Accept"]
    table = pa.ipc.open_stream(response.content).read_all()
    assert table.cast(expected.arrow().schema).equals(expected.arrow())
    text = reader.lql(statement, MODEL, headers={"Accept": "text/csv"}).text
    assert next(csv.reader(io.StringIO(text))) == expected.columns
    # No row is no reason for another schema.
    empty = reader.lql("SELECT * FROM facts WHERE subject = 'nobody'", MODEL, headers=ARROW)
    assert pa.ipc.open_stream(empty.content).read_all().column_names == expected.columns


def test_errors_have_one_line_and_a_place(reader: Running) -> None:
    answer = reader.lql('DESCRIBE "France" ATT LAYER 3', MODEL)
    assert answer.status_code == 400
    body = answer.json()
    assert (
        body["kind"] == "LqlSyntaxError"
        and body["line"] == 1
        and body["column"] == 19
        and "\n" not in body["error"]
    )
    assert reader.lql("DESCRIBE 'x'; DESCRIBE 'y'", MODEL).status_code == 403
    assert reader.lql("SELECT " + "1, " * 5000 + "1", MODEL).status_code == 413
    assert reader.get("/v1/nothing/describe?entity=x").status_code == 404
    assert reader.get("/v1/describe?entity=x").status_code == 404
    assert reader.get("/v1/nowhere").json()["error"].startswith("there is nothing")
    missing = reader.get(f"/v1/{MODEL}/describe")
    assert missing.status_code == 400 and "entity" in missing.json()["error"]


def test_no_answer_names_a_place_on_the_servers_disk(reader: Running, own: Session) -> None:
    place = str(own.vindex.path)
    for statement in ("STATS", "SELECT * FROM meta", 'DESCRIBE "Nobody Knows"', "SHOW RELATIONS"):
        for model in (MODEL, WORLD):
            assert place not in reader.lql(statement, model).text
            assert "/pytest-" not in reader.lql(statement, model).text


def test_what_one_client_asks_the_model_does_not_show_to_another(reader: Running) -> None:
    asked = reader.get(f"/v1/{MODEL}/describe", params={"entity": "A Secret Name"})
    assert asked.status_code == 200
    for statement in (
        "SELECT count(*) FROM facts WHERE subject LIKE 'A Secret%'",
        "SELECT count(*) FROM entities WHERE entity LIKE 'A Secret%'",
        "SELECT count(*) FROM entity_types WHERE subject LIKE 'A Secret%'",
    ):
        assert reader.lql(statement, MODEL).json()["rows"] == [[0]]
