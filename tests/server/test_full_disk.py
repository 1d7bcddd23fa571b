"""A disk without room: the server answers on, whatever it would write."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from larql_duck.commands.opening import connect
from larql_duck.server.keys import keys_of
from larql_duck.server.options import ServeOptions
from tests.conftest import Make
from tests.server.conftest import EDITOR
from tests.server.running import running


def full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


class FullStream:
    write = flush = full


def test_it_answers_on_where_log_cache_and_temporary_files_have_no_room(
    probed_vindex: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = tmp_path / "atlantis.vlp"
    with connect(probed_vindex("llama")) as session:
        session.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Paris")')
        session.lql(f'SAVE PATCH "{patch}"')
    inline = json.loads(patch.read_text())
    monkeypatch.setenv("LARQL_DUCK_CACHE", str(tmp_path / "cache"))
    logger, handler = logging.getLogger("larql_duck.server"), logging.StreamHandler(FullStream())
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)
    # What logging says of a handler that fails would fill the test's own output.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    options = ServeOptions(edits=True, keys=keys_of(EDITOR, "editor"))
    mine = {"Authorization": f"Bearer {EDITOR}"}
    real = builtins.open

    def no_room(file: object, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and set(mode) & set("wax+"):
            full()
        return real(file, mode, *args, **options)

    try:
        with running([probed_vindex("llama")], options) as server:
            monkeypatch.setattr(builtins, "open", no_room)
            monkeypatch.setattr("larql_duck.files.os.replace", full)
            monkeypatch.setattr("pathlib.Path.write_text", full)
            monkeypatch.setattr("pathlib.Path.write_bytes", full)
            monkeypatch.setattr("tempfile.mkdtemp", full)
            monkeypatch.setattr("tempfile.mkstemp", full)
            fact = {"entity": "Lemuria", "relation": "capital", "target": "Paris"}
            for method, path, body in (
                ("GET", "/v1/describe?entity=France", None),
                ("POST", "/v1/infer", {"prompt": "The capital of France is"}),
                ("POST", "/v1/completions", {"prompt": "The capital", "max_tokens": 2}),
                ("POST", "/v1/patches/apply", {"patch": inline, "name": "atlantis"}),
                ("POST", "/v1/insert", fact),
                ("GET", "/metrics", None),
                ("GET", "/", None),
            ):
                response = server.http.request(method, path, json=body, headers=mine)
                assert response.status_code == 200, (path, response.text)
            # What nobody may have saved, nobody has: and it is said so in one line.
            refused = server.lql('SAVE PATCH "x.vlp"', headers=mine)
            assert refused.status_code == 403
    finally:
        logger.removeHandler(handler)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*.entry"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is Linux's")
def test_it_starts_and_goes_on_where_its_log_is_on_a_full_disk(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from larql_duck.cli.app import main; main()", "serve", str(world)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"LARQL_DUCK_PROGRESS": "0", "TMPDIR": str(tmp_path / "none")}
    with open("/dev/full", "w") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stderr=log, env=environment)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            assert process.poll() is None, "it ended"
            try:
                answer = httpx.get(f"{url}/v1/describe?entity=France", timeout=30)
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert answer.status_code == 200 and answer.json()["edges"]
        for _ in range(20):
            assert httpx.get(f"{url}/v1/health", timeout=30).status_code == 200
        process.terminate()
        # 120 is Python's own: what it still had to say could not be written.
        assert process.wait(30) in (0, 120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
