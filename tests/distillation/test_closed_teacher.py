"""A teacher behind an API: asked through a local server that limits, fails and refuses as real ones do."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from larql_duck.cli import app as cli
from larql_duck.distillation.closed_teacher import KEY_VARIABLE, ClosedTeacher, write_closed_targets
from larql_duck.distillation.soft_export import write_distillkit, write_trl
from larql_duck.errors import LarqlError

PROMPTS = ["The capital of France is", 'a "quoted"\tprompt', "日本"]
TOPS = [{" Paris": math.log(0.7), " the": math.log(0.2)}, {".": math.log(0.9), ",": math.log(0.05)}]


class Server:
    """Answers with TOPS; before that with each (status, headers) of `failures`. requests are those that came."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.text_only = False
        self.body: bytes | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                server.keys.append(self.headers["Authorization"])
                assert self.path == "/v1/completions"
                status, headers = server.failures.pop(0) if server.failures else (200, {})
                choice = {"text": " Paris.", "logprobs": None if server.text_only else {"top_logprobs": TOPS}}
                answer = (
                    {"choices": [choice]}
                    if status == 200
                    else {"error": {"message": f"no: {server.keys[-1]}"}}
                )
                body = json.dumps(answer).encode() if server.body is None else server.body
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_log_probabilities_become_soft_targets(server: Server, tmp_path: Path) -> None:
    teacher = ClosedTeacher(server.url, "m", "secret", logprobs=2, tokens=2)
    rows = pq.read_table(write_closed_targets(teacher, PROMPTS, tmp_path / "s.parquet")).to_pylist()
    assert [r["prompt"] for r in server.requests] == PROMPTS
    assert server.keys == ["Bearer secret"] * 3
    assert server.requests[0] == {
        "model": "m", "prompt": PROMPTS[0], "max_tokens": 2, "temperature": 0, "logprobs": 2,
    }  # fmt: skip
    first = [(r["position"], r["rank"], r["token"], r["token_id"]) for r in rows if r["example"] == 0]
    assert first == [
        (0, 1, " Paris", None), (0, 2, " the", None), (0, 0, None, None),
        (1, 1, ".", None), (1, 2, ",", None), (1, 0, None, None),
    ]  # fmt: skip
    assert math.exp(rows[2]["logprob"]) == pytest.approx(0.1, abs=1e-6)
    trl = write_trl(tmp_path / "s.parquet", tmp_path / "t.jsonl").read_text().splitlines()
    assert json.loads(trl[0]) == {"prompt": PROMPTS[0], "completion": " Paris."}
    with pytest.raises(LarqlError, match="every token"):
        write_distillkit(tmp_path / "s.parquet", tmp_path / "kit")


def test_text_alone_becomes_hard_labels(server: Server, tmp_path: Path) -> None:
    server.text_only = True
    teacher = ClosedTeacher(server.url, "m", logprobs=0, tokens=8)
    rows = pq.read_table(write_closed_targets(teacher, PROMPTS, tmp_path / "s.parquet")).to_pylist()
    assert [(r["example"], r["rank"], r["token"], r["logprob"]) for r in rows] == [
        (i, 1, " Paris.", 0.0) for i in range(3)
    ]
    assert "logprobs" not in server.requests[0] and server.keys[0] is None


def test_limits_are_waited_for_and_refusals_told(server: Server) -> None:
    pauses: list[float] = []
    teacher = ClosedTeacher(server.url, "m", "secret", sleep=pauses.append)
    server.failures = [(429, {"Retry-After": "7"}), (503, {}), (500, {"Retry-After": "soon"})]
    assert teacher.complete("x")["text"] == " Paris."
    assert pauses == [7.0, 2.0, 4.0]
    server.failures = [(401, {})]
    with pytest.raises(
        LarqlError, match=rf"refused \(401\): no: Bearer \*\*\*; set {KEY_VARIABLE}"
    ) as refused:
        teacher.complete("x")
    assert "secret" not in str(refused.value)
    server.failures = [(429, {})] * 9
    pauses.clear()
    with pytest.raises(LarqlError, match=r"refused \(429\)"):
        teacher.complete("x")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]
    server.failures = []
    for body in (b"<html>", b'{"choices": []}', b"[]"):
        server.body = body
        with pytest.raises(LarqlError, match="is it the address of a completions API"):
            teacher.complete("x")


def test_no_more_requests_a_minute_than_said(server: Server) -> None:
    now, pauses = [100.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    teacher = ClosedTeacher(server.url, "m", rate=30, clock=lambda: now[0], sleep=sleep)
    for _ in range(3):
        teacher.complete("x")
    assert pauses == [2.0, 2.0]


def test_an_interrupted_run_asks_nothing_twice(server: Server, tmp_path: Path) -> None:
    server.failures = [(200, {}), (400, {})]
    teacher = ClosedTeacher(server.url, "m")
    with pytest.raises(LarqlError, match=r"refused \(400\).*the same command"):
        write_closed_targets(teacher, PROMPTS, tmp_path / "s.parquet")
    write_closed_targets(teacher, PROMPTS, tmp_path / "s.parquet")
    assert [r["prompt"] for r in server.requests] == [PROMPTS[0], PROMPTS[1], *PROMPTS[1:]]


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("localhost:80", "ftp://x/v1", ""):
        with pytest.raises(LarqlError, match="no address"):
            ClosedTeacher(url, "m")
    with pytest.raises(LarqlError, match="unencrypted"):
        ClosedTeacher("http://example.org/v1", "m", "secret")
    monkeypatch.setattr("larql_duck.distillation.closed_teacher._TRIES", 1)
    with pytest.raises(LarqlError, match="cannot be reached"):
        ClosedTeacher("http://127.0.0.1:1/v1", "m").complete("x")


def test_command_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a\nb\n")
    monkeypatch.setenv(KEY_VARIABLE, "from the environment")
    arguments = [
        "soft-targets",
        "--openai",
        server.url,
        "--prompts",
        str(prompts),
        "-o",
        str(tmp_path / "s.parquet"),
    ]
    assert cli.run([*arguments, "--model", "m", "--completion", "2"]) == 0
    assert server.keys == ["Bearer from the environment"] * 2 and server.requests[0]["logprobs"] == 5
    assert cli.run(arguments) == 2
    assert "--model NAME" in capsys.readouterr().err
