"""A session on a server's vindex: LQL runs there, SQL here, errors as if it were here."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from larql_duck.commands.opening import connect
from larql_duck.errors import LqlSyntaxError, SemanticError, VindexError
from larql_duck.session.remote import KEY, RemoteError
from tests.conftest import Make
from tests.server.conftest import EDITOR, READER
from tests.server.running import Running

MODEL = "llama-probed"


def test_lql_there_and_sql_here_give_the_rows_of_a_session_here(
    reader: Running, probed_vindex: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({"name": ["France", "Japan"]})
    query = (
        "SELECT subject, relation, object FROM facts JOIN frame ON subject = name WHERE rank = 1 ORDER BY ALL"
    )
    edges = "SELECT layer, feature, score FROM edges ORDER BY ALL"
    with connect(probed_vindex("llama")) as here, connect(f"{reader.url}/v1/{MODEL}") as there:
        for statement in (
            'DESCRIBE "France"',
            'INFER "The capital" TOP 2',
            "SELECT * FROM EDGES ORDER BY ALL",
        ):
            assert there.lql(statement).columns == here.lql(statement).columns
            assert len(there.lql(statement)) == len(here.lql(statement))
        assert there.sql(query).rows() == here.sql(query).rows() and len(frame) == 2
        assert there.sql(edges).rows() == here.sql(edges).rows()
        said = capfd.readouterr().err
        assert f"fetched facts of {MODEL}:" in said and said.count("fetched facts") == 1
        assert there.lql("DESCRIBE $name", {"name": "France"}).rows() == here.lql('DESCRIBE "France"').rows()
        there.remote.most_rows = 3
        with pytest.raises(RemoteError, match=r"most_rows"):
            there.sql("SELECT * FROM features")
        with pytest.raises(RemoteError, match="COMPILE is not served"):
            there.lql('COMPILE CURRENT INTO VINDEX "x"')


def test_errors_keep_their_place_and_advice(reader: Running) -> None:
    with connect(f"{reader.url}/v1/{MODEL}") as there:
        with pytest.raises(SemanticError) as wrong:
            there.lql('DESCRIBE "France" AT LAYER 99')
        assert wrong.value.line == 1 and wrong.value.column == 28
        with pytest.raises(LqlSyntaxError) as error:
            there.lql('DESCRIBE "France" ATT LAYER 3')
        assert error.value.column == 19


def test_use_remote_names_what_is_served(reader: Running, world: Path) -> None:
    with connect(world) as session:
        with pytest.raises(VindexError, match=f"name one: USE REMOTE .*/v1/{MODEL}"):
            session.lql(f'USE REMOTE "{reader.url}"')
        # The vindex that was open still is.
        assert session.lql("STATS").rows()
        [row] = session.lql(f'USE REMOTE "{reader.url}/v1/world"').rows()
        assert row[1] == "world"
        assert session.lql('DESCRIBE "France"').rows() and session.vindex is None
        session.lql(f'USE "{world}"')
        assert session.remote is None and session.lql('DESCRIBE "France"').rows()
        for url, said in (
            (f"{reader.url}/v1/none", "serves no vindex 'none'"),
            ("http://127.0.0.1:9", "cannot be reached"),
            ("ftp://127.0.0.1", "is no address"),
            ("http://key@127.0.0.1:1", "does not belong in the address"),
        ):
            with pytest.raises(VindexError, match=said):
                session.lql(f'USE REMOTE "{url}"')


def test_a_patch_of_this_machine_holds_there(
    editor: Running, probed_vindex: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "atlantis.vlp"
    insert = 'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Paris")'
    with connect(probed_vindex("llama")) as here:
        here.lql(insert)
        here.lql(f'SAVE PATCH "{file}"')
        expected = here.lql('INFER "The capital of Atlantis is" TOP 3').dicts()
    monkeypatch.setenv(KEY, READER)
    with connect(editor.url) as there, pytest.raises(RemoteError, match="profile editor"):
        there.lql(f'APPLY PATCH "{file}"')
    monkeypatch.setenv(KEY, EDITOR)
    with connect(editor.url) as there:
        assert there.lql(f'APPLY PATCH "{file}"').dicts() == [
            {
                "applied": "atlantis",
                "operations": len(json.loads(file.read_text())["operations"]),
                "active_patches": 1,
            }
        ]
        got = there.lql('INFER "The capital of Atlantis is" TOP 3').dicts()
        assert [r["token"] for r in got] == [r["token"] for r in expected]
        assert got[0]["probability"] == pytest.approx(expected[0]["probability"], rel=1e-4)
        assert there.sql("SELECT count(*) FROM facts WHERE subject = 'Atlantis'").one() > 0
        # SHOW PATCHES names no place of the server.
        assert there.lql("SHOW PATCHES").dicts()[0]["path"] is None
    assert editor.get("/v1/sessions", headers={"Authorization": f"Bearer {EDITOR}"}).json()["data"] == []
    monkeypatch.setenv(KEY, "a-wrong-key-0123456789")
    with pytest.raises(RemoteError, match=KEY):
        connect(editor.url)
