"""Second moments and background text: measured once, kept in the cache, the vindex untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from larql_duck import cache, connect
from larql_duck.editing.background_corpus import background_of
from larql_duck.errors import LarqlError
from larql_duck.session import Session
from tests.editing.features import FAMILIES, insert


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_measured_once_and_read_again(session: Session) -> None:
    vindex = session.vindex
    found = background_of(session.workspace).second_moment(1)
    assert found.notice is None and found.n >= 20 * vindex.hidden
    assert found.matrix.dtype == np.float64 and found.matrix.shape == (128, 128)
    assert np.allclose(found.matrix, found.matrix.T) and np.linalg.eigvalsh(found.matrix).min() > -1e-9
    [moment, text] = sorted(cache.entries(), key=lambda e: e.kind)
    assert (moment.kind, text.kind) == ("second-moment", "text")
    assert moment.about["positions"] == found.n and "written by the model" in moment.about["text"]
    inputs = background_of(session.workspace).inputs(1)
    with connect(vindex.path) as other:
        assert np.array_equal(background_of(other.workspace).inputs(1).x, inputs.x)
        again = background_of(other.workspace).second_moment(1)
        assert not other.model.loaded and np.array_equal(again.matrix, found.matrix)
        assert np.array_equal(again.mean, found.mean) and again.n == found.n
        acts = background_of(other.workspace).second_moment(1, "ffn_act")
        assert acts.matrix.shape == (vindex.n_features[1],) * 2


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_an_insert_that_is_taken_back_leaves_every_byte_of_the_vindex(session: Session) -> None:
    path = session.vindex.path
    before = bytes_of(path)
    insert(session, [("France", "capital", "Tokyo")])
    session.lql('SELECT * FROM EDGES WHERE entity = "France"')
    session.lql("ROLLBACK PATCH")
    session.close()
    assert bytes_of(path) == before


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_given_texts_are_used_and_too_short_ones_refused(session: Session) -> None:
    session.configure(texts="The capital of France is Paris.")
    with pytest.raises(LarqlError, match="at least 2560"):
        background_of(session.workspace).second_moment(0)
    text = "The capital of France is Paris and the currency of Spain is the euro in Europe. " * 400
    session.configure(texts=[text])
    found = background_of(session.workspace).second_moment(0)
    engine = session.model.engine
    ids = engine.tokenizer.encode(text)
    length = engine.context or 192
    total, sums, n = 0.0, 0.0, 0
    for i in range(0, len(ids), length):
        if n >= 2 * 2560:
            break
        with engine.recording({"ffn_input"}, positions="all") as capture:
            engine.logits(engine.pad(ids[i : i + length]))
        x = capture.need("ffn_input")[0].double().reshape(-1, 128)
        total, sums, n = total + x.T @ x, sums + x.sum(0), n + len(x)
    assert found.n == n
    assert np.allclose(found.matrix, (total / n).numpy(), atol=1e-4)
    assert np.allclose(found.mean, (sums / n).numpy(), atol=1e-4)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_the_sessions_texts_are_used_by_inserts(session: Session) -> None:
    text = "The capital of France is Paris and the currency of Spain is the euro in Europe. " * 400
    session.configure(texts=[text])
    result = session.lql(
        'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Paris")'
    )
    assert len(result.dicts()) == 1
    measured = [entry.about["text"] for entry in cache.entries() if "text" in entry.about]
    assert measured and set(measured) == {"the texts"}


@pytest.mark.parametrize("session", ["llama"], indirect=True)
@pytest.mark.parametrize("damage", ["changed", "cut", "empty"])
def test_a_damaged_entry_is_measured_again(session: Session, damage: str) -> None:
    found = background_of(session.workspace).second_moment(1)
    [file] = [e.path for e in cache.entries() if e.kind == "second-moment"]
    whole = file.read_bytes()
    file.write_bytes({"changed": whole[:-1] + b"\xff", "cut": whole[:-80], "empty": b""}[damage])
    with connect(session.vindex.path) as other:
        assert np.allclose(background_of(other.workspace).second_moment(1).matrix, found.matrix)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_kept_in_the_session_where_nothing_can_be_written(session: Session, empty_cache: Path) -> None:
    empty_cache.write_text("a file where the directory should be")
    found = background_of(session.workspace).second_moment(1)
    assert found.notice is not None and "this session only" in found.notice
    assert background_of(session.workspace).second_moment(1) is found
