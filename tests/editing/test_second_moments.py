"""Second moments: measured once, stored with their origin, or kept in the session."""

from __future__ import annotations

import json

import numpy as np
import pytest

from larql_duck.commands.opening import connect
from larql_duck.editing.second_moments import second_moments
from larql_duck.errors import LarqlError
from larql_duck.session import Session
from larql_duck.vindex.verify import verify
from tests.editing.features import FAMILIES


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_stored_with_origin_and_read_again(session: Session) -> None:
    vindex = session.need()
    found = second_moments(session, 1)
    assert found.notice is None and found.n >= 20 * vindex.hidden
    assert found.matrix.dtype == np.float64 and found.matrix.shape == (128, 128)
    assert np.allclose(found.matrix, found.matrix.T) and np.linalg.eigvalsh(found.matrix).min() > -1e-9
    section = json.loads((vindex.path / "index.json").read_text())["larql_duck"]
    entry = section["second_moments"]["second_moments/ffn_in.L1.bin"]
    assert "written by the model" in entry["origin"] and entry["positions"] == found.n
    assert "second_moments/ffn_in.L1.bin" in section["files"]
    assert not list(verify(vindex.path))
    with connect(vindex.path) as other:
        again = second_moments(other, 1)
        assert not other.model.loaded and np.array_equal(again.matrix, found.matrix)
        assert np.array_equal(again.mean, found.mean)
        acts = second_moments(other, 1, "ffn_act")
        assert acts.matrix.shape == (vindex.n_features[1],) * 2 and acts.origin == found.origin


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_given_texts_are_used_and_too_short_ones_refused(session: Session) -> None:
    with pytest.raises(LarqlError, match="at least 2560"):
        second_moments(session, 0, texts="The capital of France is Paris.")
    text = "The capital of France is Paris and the currency of Spain is the euro in Europe. " * 400
    found = second_moments(session, 0, texts=[text])
    engine = session.engine()
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
    assert found.n == n and "texts" in found.origin
    assert np.allclose(found.matrix, (total / n).numpy(), atol=1e-4)
    assert np.allclose(found.mean, (sums / n).numpy(), atol=1e-4)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_the_sessions_texts_are_used_by_inserts(session: Session) -> None:
    text = "The capital of France is Paris and the currency of Spain is the euro in Europe. " * 400
    session.texts = [text]
    result = session.lql(
        'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Paris")'
    )
    assert len(result.dicts()) == 1
    stored = json.loads((session.need().path / "index.json").read_text())["larql_duck"]["second_moments"]
    assert {entry["origin"].split()[0] for entry in stored.values()} == {"texts"}


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_damaged_file_is_measured_again(session: Session) -> None:
    found = second_moments(session, 1)
    file = session.need().path / "second_moments/ffn_in.L1.bin"
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * len(whole))
    with connect(session.need().path) as other:
        assert np.allclose(second_moments(other, 1).matrix, found.matrix)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_kept_in_the_session_where_nothing_can_be_written(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.errors import VindexError
    from larql_duck.vindex import publish

    def refuse(*args: object, **kwargs: object) -> None:
        raise VindexError("cannot write here (Read-only file system)")

    monkeypatch.setattr(publish, "commit_tables", refuse)
    found = second_moments(session, 1)
    assert found.notice is not None and "this session only" in found.notice and "cannot write" in found.notice
    assert second_moments(session, 1) is found
    assert not (session.need().path / "second_moments").exists()
