"""Attempts of strangers to read or write what is not theirs: none works, each is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from larql_duck.server.sql_policy import RefusedError, SqlPolicy
from tests.server.conftest import EDITOR, OTHER
from tests.server.running import Running

MODEL = "llama-probed"
DATA = Path(__file__).parent
CANARY = "canary-b6c1e0"


def cases(name: str) -> list[str]:
    """The lines of a file beside this one; # begins a remark."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the server's machine that no client may read or write."""
    directory = tmp_path_factory.mktemp("secret")
    (directory / "secret.csv").write_text(f"a,b\n{CANARY},2\n")
    (directory / "secret.vlp").write_text(json.dumps({"version": 1, "secret": CANARY}))
    return directory


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARQL_DUCK_CANARY", CANARY)


@pytest.mark.parametrize("key", [None, EDITOR])
def test_no_statement_reads_or_writes_outside(
    reader: Running, editor: Running, secret: Path, canary: None, key: str | None
) -> None:
    server, headers = (reader, {}) if key is None else (editor, {"Authorization": f"Bearer {key}"})
    before = sorted(p.name for p in secret.iterdir())
    attacks = cases("attacks.txt")
    assert len(attacks) >= 400
    for attack in attacks:
        statement = attack.replace("{dir}", str(secret))
        response = server.lql(statement, MODEL, headers=headers)
        assert 400 <= response.status_code < 500, (statement, response.text)
        answer = response.json()
        assert "\n" not in answer["error"] and CANARY not in response.text, statement
    assert sorted(p.name for p in secret.iterdir()) == before


def test_lists_refuse_each_attack_before_it_runs() -> None:
    policy = SqlPolicy()
    for attack in cases("attacks.txt"):
        if attack.split()[0] in ("SELECT", "FROM", "WITH", "VALUES") and "|>" not in attack:
            with pytest.raises(RefusedError):
                policy.check(attack.replace('"{dir}', "'{dir}"))


def test_lists_let_pass_what_is_asked_of_tables() -> None:
    policy = SqlPolicy()
    for query in cases("queries.txt"):
        policy.check(query)


def test_duckdb_itself_refuses_what_a_hole_in_the_lists_would_let_through(
    reader: Running, secret: Path
) -> None:
    """The second wall: the settings that are locked, whatever SQL says."""
    service = reader.app.state.service
    session = service.hosted[MODEL].tables
    for sql in (
        f"SELECT * FROM read_text('{secret}/secret.csv')",
        f"COPY (SELECT 1) TO '{secret}/out.csv'",
        f"ATTACH '{secret}/new.duckdb' AS n",
        "SET enable_external_access = true",
        "SET memory_limit = '8GB'",
        "SET python_enable_replacements = true",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM secret",
    ):
        with (
            session.cursor() as con,
            pytest.raises(Exception, match=r"(?i)disabled|locked|not exist|not found|lock"),
        ):
            con.execute(sql)
    assert not (secret / "out.csv").exists() and not (secret / "new.duckdb").exists()


def test_edits_are_those_of_one_session_of_one_key(editor: Running) -> None:
    mine = {"Authorization": f"Bearer {EDITOR}"}
    fact = {"entity": "Atlantis", "relation": "capital", "target": "Poseidon"}
    made = editor.post("/v1/insert", fact, headers=mine)
    assert made.status_code == 200, made.text
    id = made.headers["X-Session-Id"]
    assert len(id) >= 32 and made.json()["session"] == id
    seen = "SELECT count(*) FROM facts WHERE subject = 'Atlantis'"
    assert editor.lql(seen, headers=mine | {"X-Session-Id": id}).json()["rows"] != [[0]]
    # Without the session, under another key with the id, in another's list: nothing of it.
    assert editor.lql(seen, headers=mine).json()["rows"] == [[0]]
    other = {"Authorization": f"Bearer {OTHER}", "X-Session-Id": id}
    assert editor.lql(seen, headers=other).status_code == 404
    assert editor.get("/v1/patches", headers=other).status_code == 404
    assert editor.get("/v1/sessions", headers=other).json()["data"] == []
    assert editor.get(f"/v1/sessions/{id}", headers=other).status_code == 404
    assert editor.http.delete(f"/v1/sessions/{id}", headers=other).json()["found"] is False
    about = editor.get(f"/v1/sessions/{id}", headers=mine).text
    assert "Atlantis" not in about and "Poseidon" not in about
    assert editor.http.delete(f"/v1/sessions/{id}", headers=mine).json()["found"] is True
    assert editor.lql(seen, headers=mine | {"X-Session-Id": id}).status_code == 404


@pytest.mark.parametrize(
    "statement",
    [
        'PROBE ENTITIES "Spain", "Nowhere" RELATIONS "capital"',
        'PROBE ENTITIES "Spain" RELATIONS "motto" TEMPLATE "The motto of {} is"',
        'PROBE ENTITIES (SELECT subject FROM facts LIMIT 1) RELATIONS "capital" |> SELECT count(*) FROM _',
        'DESCRIBE "Nowhere" LIVE WITH EFFECTS',
    ],
)
def test_nothing_that_is_asked_is_stored(reader: Running, statement: str) -> None:
    vindex = reader.app.state.service.hosted[MODEL].vindex.path
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in vindex.rglob("*")}
    count = "SELECT count(*) FROM facts"
    facts = reader.lql(count, MODEL).json()["rows"]
    answer = reader.lql(statement, MODEL)
    assert answer.status_code == 200, answer.text
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in vindex.rglob("*")} == before
    assert reader.lql(count, MODEL).json()["rows"] == facts
    assert reader.lql(f'INFER "x" TOP 1 |> {count}, _', MODEL).json()["rows"] == facts


def test_ids_that_can_be_guessed_make_no_session(editor: Running) -> None:
    fact = {"entity": "Atlantis", "relation": "capital", "target": "Poseidon"}
    for id in ("1", "abc", "x" * 31, "../../" + "x" * 40, "x" * 200):
        headers = {"Authorization": f"Bearer {EDITOR}", "X-Session-Id": id}
        assert editor.post("/v1/insert", fact, headers=headers).status_code == 403
