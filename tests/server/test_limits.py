"""Keys, hosts, rates, sizes, times: what a request may take, and what a server refuses to start with."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from larql_duck.errors import LarqlError
from larql_duck.server.keys import keys_of, read_keys
from larql_duck.server.options import Limits, ServeOptions, read_rate
from tests.conftest import Make
from tests.server.conftest import EDITOR, READER
from tests.server.running import Running, running

MODEL = "llama-probed"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"edits": True}, "--edits needs a key"),
        ({"host": "0.0.0.0"}, "needs a key"),
        ({"host": "192.168.1.2"}, "needs a key"),
        ({"keys": keys_of(EDITOR, "editor")}, "needs --edits"),
        ({"origins": ["*"]}, "name the pages"),
        ({"edits": True, "infer": False, "keys": keys_of(EDITOR, "editor")}, "edits need the model"),
    ],
)
def test_what_would_serve_strangers_too_much_does_not_start(options: dict[str, object], said: str) -> None:
    with pytest.raises(LarqlError, match=said):
        ServeOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("short reader", "at least 16"),
        (f"{READER} owner", "keys.txt:1: expected a key and its profile"),
        (f"# remark\n{READER}", "keys.txt:2: expected"),
        (f"{READER} reader\n{READER} editor", "twice"),
    ],
)
def test_files_of_keys_are_read_strictly_and_no_message_holds_a_key(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    with pytest.raises(LarqlError, match=said) as error:
        read_keys(file)
    assert READER not in str(error.value)
    with pytest.raises(LarqlError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_rates() -> None:
    assert read_rate("100/min") == (100, 60.0) and read_rate(None) is None
    for text in ("x", "0/min", "10", "10/year", "-1/s"):
        with pytest.raises(LarqlError, match="100/min"):
            read_rate(text)


def test_keys_are_asked_for_and_profiles_hold(editor: Running, capfd: pytest.CaptureFixture[str]) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": EDITOR},
        {"Authorization": f"Basic {EDITOR}"},
    ):
        for path in (
            "/v1/stats",
            "/v1/models",
            "/metrics",
            "/v1/openapi.json",
            "/v1/sessions",
            "/v1/nowhere",
        ):
            response = editor.get(path, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert editor.get("/v1/health").status_code == 200
    reading = {"Authorization": f"Bearer {READER}"}
    assert editor.get("/v1/stats", headers=reading).status_code == 200
    fact = {"entity": "a", "relation": "b", "target": "c"}
    assert editor.post("/v1/insert", fact, headers=reading).status_code == 403
    refused = editor.lql(
        'INSERT INTO EDGES (entity, relation, target) VALUES ("a", "b", "c")', headers=reading
    )
    assert refused.status_code == 403 and "profile reader" in refused.json()["error"]
    assert editor.post("/v1/patches/apply", {"patch": {}}, headers=reading).status_code == 403
    assert READER not in capfd.readouterr().err


def test_without_edits_there_are_no_routes_for_them(reader: Running) -> None:
    for method, path in (
        ("POST", f"/v1/{MODEL}/insert"),
        ("POST", f"/v1/{MODEL}/patches/apply"),
        ("GET", f"/v1/{MODEL}/patches"),
        ("GET", "/v1/sessions"),
    ):
        assert reader.http.request(method, path).status_code == 404


def test_without_a_key_only_names_of_this_machine_are_answered(reader: Running) -> None:
    assert reader.get("/v1/models", headers={"Host": "localhost:8080"}).status_code == 200
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""):
        assert reader.get("/v1/models", headers={"Host": host}).status_code in (400, 403)


def test_answers_allow_no_foreign_script(reader: Running) -> None:
    headers = reader.get("/v1/health", headers={"Origin": "https://evil.example"}).headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    assert "access-control-allow-origin" not in headers and headers["x-content-type-options"] == "nosniff"


def test_small_limits(probed_vindex: Make) -> None:
    limits = Limits(rows=3, body=2000, rate=(20, 3600.0), statement=500, answer_bytes=400)
    with running([probed_vindex("llama")], ServeOptions(limits=limits)) as server:
        few = server.lql("SELECT feature FROM features").json()
        assert len(few["rows"]) == 3 and few["notices"] == ["the first 3 rows; LIMIT and OFFSET give others"]
        assert len(server.lql("SELECT feature FROM features LIMIT 3").json()["notices"]) == 0
        assert server.lql("SELECT count(*) FROM features").json()["rows"][0][0] > 3
        assert server.lql("SELECT list(token) FROM tokens").status_code == 413
        assert server.lql("SELECT 1" + " " * 600).status_code == 413
        assert server.post("/v1/query", {"statement": "x" * 3000}).status_code == 413
        statuses = [server.get("/v1/models").status_code for _ in range(20)]
        assert statuses.count(429) >= 5 and statuses[0] == 200
        assert int(server.get("/v1/models").headers["retry-after"]) > 0
        assert server.get("/v1/health").status_code == 200


def test_without_infer_no_statement_runs_the_model(probed_vindex: Make) -> None:
    with running([probed_vindex("llama")], ServeOptions(infer=False)) as server:
        for statement in (
            'INFER "The capital"',
            'DESCRIBE "Nowhere" LIVE',
            'DESCRIBE "France" WITH EFFECTS',
            'DESCRIBE "Nowhere" LIVE |> SELECT count(*) FROM _',
            'TRACE "The capital"',
            'EXPLAIN INFER "The capital"',
            'PROBE ENTITIES "Spain" RELATIONS "capital"',
            "SELECT lq_ask('France', 'capital')",
            "FROM lq_describe('Nowhere')",
        ):
            refused = server.lql(statement)
            assert refused.status_code == 403 and "--no-infer" in refused.json()["error"], refused.text
        for path in ("infer", "explain-infer", "completions", "chat/completions"):
            assert server.post(f"/v1/{path}", {"prompt": "x"}).status_code == 404
        assert server.get("/v1/describe?entity=France").json()["edges"]
        for answer in (
            server.get("/v1/describe?entity=Nowhere"),
            server.lql('DESCRIBE "Nowhere"'),
            server.lql('DESCRIBE "Nowhere" |> SELECT count(*) FROM _'),
            server.get("/v1/explorer/live?name=Nowhere&part=facts"),
        ):
            assert answer.status_code == 200, answer.text
        assert server.get("/v1/explorer/live?name=Nowhere&part=features").status_code == 403
        model = server.get("/v1/models").json()["data"][0]
        assert model["loaded"] is False and model["infer"] is False


def test_what_takes_long_is_ended(probed_vindex: Make) -> None:
    limits = Limits(seconds=0.5, memory="100MB")
    with running([probed_vindex("llama")], ServeOptions(limits=limits)) as server:
        endless = (
            "SELECT count(*) FROM feature_tokens a, feature_tokens b, feature_tokens c, feature_tokens d"
        )
        began = time.monotonic()
        answer = server.lql(f"{endless} WHERE a.score * b.score > c.score * d.score")
        assert (
            answer.status_code == 408 and "0.5 s" in answer.json()["error"] and time.monotonic() - began < 10
        )
        large = "SELECT list(a.token || b.token || c.token) FROM feature_tokens a, feature_tokens b, feature_tokens c"
        assert server.lql(large).status_code in (408, 413)
        assert server.lql("SELECT 1").status_code == 200


def test_a_client_that_hangs_up_or_dawdles_costs_nothing(probed_vindex: Make) -> None:
    with running([probed_vindex("llama")], ServeOptions(limits=Limits(stall=0.5, concurrent=4))) as server:
        port = int(server.url.rsplit(":", 1)[1])
        body = json.dumps({"statement": "SELECT * FROM feature_tokens"}).encode()
        head = (
            f"POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Accept: text/csv\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(head + body)
                gone.recv(100)
        # That they are gone shows when something is written to them.
        time.sleep(1)
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        for each in slow:
            each.sendall(head + body[:5])
        time.sleep(1.5)
        assert all(b"408" in each.recv(100) for each in slow)
        for each in slow:
            each.close()
        assert server.lql("SELECT 1").status_code == 200


def test_a_client_that_does_not_read_is_cut_off(probed_vindex: Make) -> None:
    limits = Limits(stall=0.5, rows=60_000)
    with running([probed_vindex("llama")], ServeOptions(limits=limits)) as server:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
            wide = "SELECT a.*, b.* FROM feature_tokens a, feature_tokens b, feature_tokens c"
            body = json.dumps({"statement": wide}).encode()
            head = "POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept: text/csv\r\n"
            slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            # Itself counts as one.
            alone = "larql_duck_requests_running 1.0"
            deadline = time.monotonic() + 20
            while alone in server.get("/metrics").text and time.monotonic() < deadline:
                time.sleep(0.05)
            while alone not in server.get("/metrics").text:
                assert time.monotonic() < deadline, "the answer is still being sent"
                time.sleep(0.1)
        assert server.lql("SELECT 1").status_code == 200


def test_too_many_at_a_time_are_told_so(probed_vindex: Make) -> None:
    with running([probed_vindex("llama")], ServeOptions(limits=Limits(concurrent=1, stall=5))) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as holder:
            holder.sendall(b"POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n")
            time.sleep(0.2)
            busy = server.get("/v1/stats")
            assert busy.status_code == 429 and busy.headers["retry-after"] == "1"


def test_requests_for_the_model_share_passes(reader: Running) -> None:
    service = reader.app.state.service
    held = threading.Event()
    threading.Thread(target=lambda: service.thread.call(held.wait, 30)).start()
    prompts = [f"The capital of France number {i} is" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(reader.post, f"/v1/{MODEL}/infer", {"prompt": p, "top": 3}) for p in prompts]
        while service.thread.waiting < 8:
            time.sleep(0.01)
        before = service.thread.batches
        held.set()
        together = [a.result().json()["predictions"] for a in answers]
    assert service.thread.batches - before <= 2
    for prompt, predictions in zip(prompts, together, strict=True):
        alone = reader.post(f"/v1/{MODEL}/infer", {"prompt": prompt, "top": 3}).json()["predictions"]
        assert [p["token"] for p in predictions] == [p["token"] for p in alone]
        assert [p["text"] for p in predictions] == [p["text"] for p in alone]
        assert [p["probability"] for p in predictions] == pytest.approx(
            [p["probability"] for p in alone], rel=1e-4
        )


def test_an_answer_is_sent_at_once() -> None:
    # Otherwise what follows an answer's head waits for the client to acknowledge that: 40 ms.
    from larql_duck.server.running import listen

    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
