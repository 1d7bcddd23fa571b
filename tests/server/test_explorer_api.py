"""What the explorer's pages ask, and the files that they are made of."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra [server]: FastAPI and uvicorn")

from larql_duck.server.app import STATIC
from tests.server.running import Running
from tests.world import NASTY

MODEL, WORLD = "/v1/llama-probed/explorer", "/v1/world/explorer"
OWN = [p for p in sorted(STATIC.rglob("*")) if p.is_file() and "vendor" not in p.parts]


def test_an_entitys_page_holds_its_types_facts_and_the_features_behind_them(reader: Running) -> None:
    page = reader.get(f"{WORLD}/entity", params={"name": "france"}).json()
    assert page["names"] == [{"entity": "France"}] and page["types"][0]["type"] == "country"
    assert {(f["relation"], f["target"]) for f in page["facts"] if f["direction"] == "out"} == {
        ("capital", "Paris"), ("language", "French"), ("continent", "Europe"),
    }  # fmt: skip
    [first, _] = [f for f in page["features"] if f["object"] == "Paris"]
    assert (first["layer"], first["feature"]) == (5, 9) and first["effect"] > 0 and first["down_tokens"]
    into = reader.get(f"{WORLD}/entity", params={"name": "Paris"}).json()["facts"]
    assert {"France", "Eiffel Tower"} <= {f["target"] for f in into if f["direction"] == "in"}


@pytest.mark.parametrize("name", NASTY)
def test_any_name_can_be_asked_for(reader: Running, name: str) -> None:
    page = reader.get(f"{WORLD}/entity", params={"name": name}).json()
    assert page["name"] == name and "facts" in page


def test_a_name_that_nothing_is_stored_about_is_asked_live_and_not_kept(reader: Running) -> None:
    assert not reader.get(f"{MODEL}/entity", params={"name": "Zanzibar"}).json()["facts"]
    thread = reader.app.state.service.thread
    before = thread.batches
    live = reader.get(f"{MODEL}/live", params={"name": "Zanzibar", "part": "facts"})
    # Its types come of the same answer.
    assert thread.batches == before + 1 and "types" in live.json()
    assert live.status_code == 200 and all(f["source"] == "live" for f in live.json()["facts"])
    assert not reader.get(f"{MODEL}/entity", params={"name": "Zanzibar"}).json()["facts"]
    assert "weights" in reader.get(f"{WORLD}/live", params={"name": "Zanzibar", "part": "facts"}).text


def test_a_features_page_holds_tokens_examples_and_facts(reader: Running) -> None:
    page = reader.get(f"{WORLD}/feature", params={"layer": 5, "feature": 9}).json()
    assert page["about"][0]["relation"] == "capital" and page["place"][0]["n_features"] == 40
    assert {row["side"] for row in page["tokens"]} == {"in", "out", "out_neg"}
    assert "[ France]" in page["examples"][0]["context"] and len(page["stats"][0]["histogram"]) == 64
    assert ("France", "Paris") in {(f["subject"], f["object"]) for f in page["facts"]}
    missing = reader.get(f"{WORLD}/feature", params={"layer": 5, "feature": 999}).json()
    assert missing["about"] == [] and missing["place"]
    assert reader.get(f"{WORLD}/feature", params={"layer": -1, "feature": 0}).status_code == 400


def test_names_are_suggested_most_facts_first(reader: Running) -> None:
    found = reader.get(f"{WORLD}/suggest", params={"start": "fr"}).json()["entities"]
    assert [row["entity"] for row in found] == ["France", "French"]
    assert reader.get(f"{WORLD}/suggest", params={"start": "%"}).json()["entities"][0]["entity"] == "%"


def test_the_tokens_of_a_prompt_are_those_that_a_trace_has_positions_for(reader: Running) -> None:
    prompt = "The capital of France is"
    tokens = reader.get(f"{MODEL}/tokens", params={"prompt": prompt}).json()["tokens"]
    assert tokens == ["The", " capital", " of", " France", " is"]
    traced = reader.lql(f'TRACE "{prompt}" POSITIONS ALL', "llama-probed").json()
    assert {row[traced["columns"].index("position")] for row in traced["rows"]} == set(range(len(tokens)))


def test_completion_knows_names_and_nothing_of_the_servers_disk(reader: Running) -> None:
    def complete(text: str) -> list[str]:
        answer = reader.post(f"{WORLD}/complete", {"text": text}).json()
        return [row["text"] for row in answer["completions"]]

    assert complete('DESCRIBE "Fr') == ['France"', 'French"']
    assert "WALK" in complete("WA")
    for path in ('USE "', 'USE "/', 'STATS "/etc/', 'APPLY PATCH "../'):
        assert complete(path) == []


def test_the_console_runs_lql_and_sql_and_what_is_not_served_in_neither(reader: Running) -> None:
    def run(statement: str, language: str) -> tuple[int, dict[str, object]]:
        answer = reader.post(f"{WORLD}/run", {"statement": statement, "language": language})
        return answer.status_code, answer.json()

    # In LQL "x" is text, in SQL a name.
    assert run('SELECT "subject" AS s FROM facts LIMIT 1', "lql")[1]["rows"] == [["subject"]]
    query = """SELECT "subject" FROM facts WHERE object = 'Tokyo';"""
    assert run(query, "sql")[1]["rows"] == [["Japan"]]
    assert run('DESCRIBE "France"', "lql")[1]["columns"][:3] == ["band", "relation", "target"]
    for language in ("lql", "sql"):
        for statement in (
            "SELECT * FROM read_text('/etc/passwd')", "SELECT 1; SELECT 2", "COPY facts TO 'x'", "ATTACH 'x'", "",
            "SELECT getenv('HOME')", "FROM duckdb_settings()", "FROM '/etc/passwd'",
        ):  # fmt: skip
            status, body = run(statement, language)
            assert 400 <= status < 500 and "\n" not in str(body["error"]), (language, statement, body)


def test_every_permanent_address_is_the_page_under_a_strict_policy(reader: Running) -> None:
    page = (STATIC / "index.html").read_text()
    for address in (
        "/",
        "/m/world",
        "/m/world/entity/France",
        "/m/world/feature/5/9",
        "/m/world/entity/a%2Fb",
    ):
        answer = reader.get(address)
        assert answer.text == page
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_own_files_make_no_markup_of_text_and_load_nothing_from_elsewhere() -> None:
    for path in OWN:
        text = path.read_text()
        for unsafe in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ):
            assert unsafe not in text, (path.name, unsafe)
        outside = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, (path.name, outside)
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)


def test_packages_of_others_are_those_that_are_named_with_their_licences() -> None:
    vendor = STATIC / "vendor"
    listed = json.loads((vendor / "packages.json").read_text())
    for package in listed:
        assert hashlib.sha256((vendor / package["file"]).read_bytes()).hexdigest() == package["sha256"]
        assert "Copyright" in (vendor / package["licence_file"]).read_text()
    files = {p.name for p in vendor.iterdir() if p.is_file()}
    assert files == {package["file"] for package in listed} | {"packages.json", "vega-util.js"}


def test_all_files_together_are_small(reader: Running) -> None:
    files = [*OWN, *(p for p in Path(STATIC, "vendor").glob("*js"))]
    assert sum(len(gzip.compress(p.read_bytes())) for p in files) < 1_000_000
    answer = reader.get("/vendor/vega.min.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
