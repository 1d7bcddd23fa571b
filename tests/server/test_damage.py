"""Damaged requests get a 4xx with one line; a server that is killed starts again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import Make
from tests.server.damage import Sent, damaged
from tests.server.running import Running


def send(connection: http.client.HTTPConnection, request: Sent) -> tuple[int, bytes]:
    """Status and body of the answer, over a connection that is kept."""
    method, path, headers, body = request
    names = {name.lower() for name, _ in headers}
    connection.putrequest(method, path, skip_host="host" in names, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value.encode("latin-1"))
    if not names & {"content-length", "transfer-encoding"}:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    return response.status, response.read()


def answers(server: Running, n: int, seed: int) -> Counter[int]:
    """How many answers had each status; AssertionError for one that is no 4xx with one line."""
    host = urlsplit(server.url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
    found: Counter[int] = Counter()
    for request in damaged(n, seed):
        try:
            status, body = send(connection, request)
        except (http.client.HTTPException, OSError):
            # The body did not fit its length: the server ended the connection, after it answered or before.
            connection.close()
            found[0] += 1
            continue
        assert 400 <= status < 500, (request, status, body[:300])
        if body.startswith(b"{"):
            error = json.loads(body)["error"]
            text = error if isinstance(error, str) else error["message"]
            assert text and "\n" not in text and "Traceback" not in text, request
        found[status] += 1
    connection.close()
    return found


def test_damaged_requests_are_refused(reader: Running) -> None:
    found = answers(reader, 300, seed=0)
    assert found[400] > 50 and found[404] > 10 and found[0] < 60, found
    assert reader.lql("SELECT 1", "world").status_code == 200


@pytest.mark.extras
def test_ten_thousand_damaged_requests_leave_memory_flat(reader: Running) -> None:
    answers(reader, 1000, seed=1)
    before = psutil.Process().memory_info().rss
    found = answers(reader, 9000, seed=2)
    assert sum(found.values()) == 9000
    assert psutil.Process().memory_info().rss - before < 60 << 20


def test_killed_it_starts_again(probed_vindex: Make, tmp_path: Path) -> None:
    vindex = probed_vindex("llama")
    before = {p: p.stat().st_mtime_ns for p in vindex.rglob("*")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from larql_duck.cli.app import main; main()",
        "serve",
        str(vindex),
        "--port",
        str(port),
    ]
    for ending in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"LARQL_DUCK_PROGRESS": "0"}
        )
        assert process.stderr is not None
        assert f"at http://127.0.0.1:{port}" in process.stderr.readline()
        for _ in range(200):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", "/v1/describe?entity=France")
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        assert connection.getresponse().status == 200
        process.send_signal(ending)
        status = process.wait(30)
        assert status == (-signal.SIGKILL if ending is signal.SIGKILL else 0)
        log = process.stderr.read()
        process.stderr.close()
        # One that is killed may not have come to its log.
        if ending is signal.SIGTERM:
            assert json.loads(log.splitlines()[0])["route"] == "/v1/describe"
        assert "France" not in log
    assert {p: p.stat().st_mtime_ns for p in vindex.rglob("*")} == before
