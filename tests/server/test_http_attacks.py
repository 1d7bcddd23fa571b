"""Attempts through addresses, headers, ids and numbers: nothing leads out of the page, the vindex, or one's own session."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import psutil
import pytest

import larql_duck.server
from tests.server.conftest import EDITOR, OTHER, READER
from tests.server.running import Running

MODEL = "llama-probed"
SOURCE = Path(larql_duck.server.__file__).parent

# Targets of requests, as they stand in the first line.
ADDRESSES = [
    "/../../../../../../etc/passwd",
    "/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/%252e%252e%252fetc%252fpasswd",
    "/..%5c..%5c..%5cetc%5cpasswd",
    "/....//....//....//etc/passwd",
    "//etc/passwd",
    "///etc/passwd",
    "/%2fetc%2fpasswd",
    "/file:///etc/passwd",
    "/C:%5cWindows%5cwin.ini",
    "/../app.py",
    "/%2e%2e/app.py",
    "/..%2fapp.py",
    "/vendor/../../app.py",
    "/vendor/..%2f..%2fapp.py",
    "/vendor/%2e%2e/%2e%2e/allowed.toml",
    "/pages/..%5c..%5ckeys.py",
    "/style.css/../../../app.py",
    "/style.css%00.py",
    "/style.css%0d%0aX-Injected:%201",
    "/app.js%2f..%2f..%2f..%2fapp.py",
    "/.%2e/app.py",
    "/static/app.py",
    "/server/app.py",
    "/.git/config",
    "/__pycache__/",
    "/vendor/",
    "/pages/",
    "http://evil.example/v1/stats",
    "/v1/../etc/stats",
    "/v1/..%2f..%2fetc/stats",
    "/v1/%2e%2e/stats",
    "/v1/%2fetc%2fpasswd/stats",
    "/v1/{vindex}/stats",
    "/v1/{model}%2f..%2fworld/stats",
    "/v1/{model}/../world/../nothing",
    "/v1/world%00/stats",
    "/v1/world.vindex/stats",
    "/v1/WORLD/stats",
    "/v1//stats",
    "/v1/*/stats",
    "/v1/{model}/patches/..%2f..%2fsecret.vlp",
    "/v1/sessions/..%2f..%2fetc%2fpasswd",
    "/v1/{model}/explorer/../../../etc/passwd",
    "/v1/{model}/stats/../../../app.py",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/debug",
    "/metrics/../v1/nothing",
]
HUGE = [
    "/v1/{model}/describe?entity=France&limit=" + "9" * 30,
    "/v1/{model}/describe?entity=France&min_score=1e999x",
    "/v1/{model}/walk?prompt=France&top=" + "9" * 20,
    "/v1/{model}/walk?prompt=France&layers=0-99999999999999999999",
    "/v1/{model}/walk?prompt=France&layers=" + "1," * 4000,
    "/v1/{model}/walk?prompt=France&layers=-1",
    "/v1/{model}/explorer/feature?layer=99999999999&feature=1",
    "/v1/{model}/explorer/feature?layer=1&feature=" + "9" * 40,
    "/v1/{model}/explorer/feature?layer=-1&feature=-1",
    "/v1/{model}/describe?entity=" + "a" * 60_000,
]
BODIES = [
    ("select", {"limit": 10**18}),
    ("select", {"limit": -1}),
    ("select", {"min_confidence": "1e999"}),
    ("infer", {"prompt": "x", "top": 10**12}),
    ("infer", {"prompt": "x " * 200_000}),
    ("explain-infer", {"prompt": "x", "per_layer": 10**9}),
    ("completions", {"prompt": "x", "max_tokens": -1}),
    ("completions", {"prompt": "x", "seed": 2**64}),
    ("completions", {"prompt": "x", "temperature": 1e308}),
    ("completions", {"prompt": "x", "logprobs": 10**9}),
    ("completions", {"prompt": "x", "n": 10**9}),
    ("completions", {"prompt": "x", "stop": ["x"] * 1000}),
    ("chat/completions", {"messages": [{"role": "user", "content": "x"}] * 300}),
    ("chat/completions", {"messages": [{"role": "root", "content": "x"}]}),
    ("query", {"statement": 'INFER "x" TOP 999999999999999999999'}),
    ("query", {"statement": 'WALK "x" LAYERS 0-99999999999999'}),
    ("query", {"statement": 'WALK "x" TOP 99999999999999999999'}),
    ("query", {"statement": "NEIGHBORS OF 'x' HOPS 999999999999"}),
    ("query", {"statement": 'INFER "x" ABLATE (0, 999999999999999999999)'}),
    ("query", {"statement": "SELECT 1 LIMIT 99999999999999999999999"}),
]
# Heads that are read in two ways, each followed by what might be taken for a second request.
SMUGGLING = [
    "Content-Length: 4\r\nContent-Length: 400",
    "Content-Length: 4\r\nTransfer-Encoding: gzip",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked, chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: \x0bchunked",
    "Content-Length: +4",
    "Content-Length: 0x4",
    "Content-Length: 4, 5",
    "Content-Length: 4\r\n Transfer-Encoding: chunked",
    "X: a\x00b",
    "Bad Name: x",
    ": empty",
]


def raw(server: Running, request: bytes) -> bytes:
    """Everything that the server answers to these bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    parts = []
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        # One that is kept open has said what it has to say.
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(1 << 16):
                parts.append(part)
    return b"".join(parts)


def test_no_address_leads_out_of_the_page_and_the_vindexes(reader: Running) -> None:
    vindex = str(reader.app.state.service.hosted["world"].vindex.path)
    for address in ADDRESSES:
        target = address.format(model=MODEL, vindex=vindex.replace("/", "%2f"))
        answer = raw(
            reader, f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        status = int(answer.split(b" ", 2)[1])
        assert 400 <= status < 500, (target, answer[:300])
        assert b"root:" not in answer and b"from __future__" not in answer and b"x-injected" not in answer
    # The page itself is there, and is the same at every address below /m/.
    pages = [
        raw(reader, f"GET {a} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        for a in ("/m/world", "/m/..%2f..%2fapp.py", "/m/../../etc/passwd", "/m/%2e%2e/%2e%2e/app.py")
    ]
    index = (SOURCE / "static" / "index.html").read_bytes()
    assert all(page.endswith(index) for page in pages)


def test_huge_numbers_and_texts_are_refused_at_once(reader: Running) -> None:
    before = psutil.Process().memory_info().rss
    for address in HUGE:
        response = reader.get(address.format(model=MODEL))
        assert 400 <= response.status_code < 500, (address[:80], response.text[:200])
        assert "\n" not in response.text
    for path, body in BODIES:
        response = reader.post(f"/v1/{MODEL}/{path}", body)
        assert 400 <= response.status_code < 500, (path, body, response.text[:200])
    for literal in (b"9" * 5000, b"1e999", b"-" * 9, b'"\\ud800"'):
        data = b'{"entity": "x", "limit": ' + literal + b"}"
        response = reader.http.post(
            f"/v1/{MODEL}/select", content=data, headers={"Content-Type": "application/json"}
        )
        assert 400 <= response.status_code < 500, literal[:20]
    assert psutil.Process().memory_info().rss - before < 200 << 20


def test_requests_that_can_be_read_in_two_ways_are_answered_once_at_most(editor: Running) -> None:
    hidden = f"GET /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {EDITOR}\r\n\r\n"
    for head in SMUGGLING:
        request = (
            f"POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {READER}\r\n"
            f"Content-Type: application/json\r\n{head}\r\n\r\n0\r\n\r\n{hidden}"
        )
        answer = raw(editor, request.encode("latin-1"))
        assert answer.count(b"HTTP/1.1 ") <= 1 and b'"data"' not in answer, (head, answer[:400])
        assert answer.startswith(b"HTTP/1.1 4"), (head, answer[:200])


@pytest.mark.parametrize(
    "headers",
    [
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-Original-URL": "/v1/sessions"},
        {"X-Rewrite-URL": "/v1/sessions"},
        {"X-Forwarded-Host": "localhost"},
        {"X-Forwarded-User": "root"},
        {"X-Profile": "owner"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Api-Key": EDITOR},
        {"Cookie": f"key={EDITOR}"},
        {"Proxy-Authorization": f"Bearer {EDITOR}"},
        {"Authorization": f"Bearer {EDITOR}, Bearer {READER}"},
        {"Authorization": f"bearer\t{EDITOR}"},
        {"Authorization": f"Bearer {EDITOR[:-1]}"},
        {"Authorization": f"Bearer {EDITOR.upper()}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer null"},
        {"Authorization": "Bearer " + "x" * 5000},
    ],
)
def test_no_header_stands_for_a_key(editor: Running, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/sessions"), ("POST", "/v1/insert"), ("GET", "/v1/stats")):
        response = editor.http.request(method, path, headers=headers)
        assert response.status_code == 401, (path, response.text)


def test_no_id_but_its_own_leads_to_a_session(editor: Running) -> None:
    mine, other = {"Authorization": f"Bearer {EDITOR}"}, {"Authorization": f"Bearer {OTHER}"}
    fact = {"entity": "Atlantis", "relation": "capital", "target": "Poseidon"}
    made = editor.post("/v1/insert", fact, headers=mine)
    assert made.status_code == 200, made.text
    id = made.headers["X-Session-Id"]
    near = [
        id.swapcase(),
        id[:-1],
        id + "a",
        id[::-1],
        f"{id},{id}",
        f"{id};",
        f'"{id}"',
        f"./{id}",
        f"{id}%00",
    ]
    wild = [
        "",
        "*",
        "%",
        "_" * len(id),
        ".*",
        "..",
        "session",
        "null",
        "0",
        "1 OR 1=1",
        "' OR ''='",
        "a" * 6000,
    ]
    seen = {"statement": "SELECT count(*) FROM facts WHERE subject = 'Atlantis'"}
    for key, ids in ((mine, [*near, *wild]), (other, [id, *near, *wild])):
        for each in ids:
            headers = key | {"X-Session-Id": each}
            answer = editor.post("/v1/query", seen, headers=headers)
            assert answer.status_code in (403, 404) or (each == "" and answer.json()["rows"] == [[0]]), each
            patches = editor.get("/v1/patches", headers=headers)
            assert patches.status_code == 404, each
    # Two ids in one request: never those of somebody else.
    both = [*other.items(), ("X-Session-Id", "x" * 40), ("X-Session-Id", id)]
    assert editor.http.post("/v1/query", json=seen, headers=both).status_code == 404
    # No table, patch or statement of one client speaks of another's edits.
    for statement in (
        "SHOW PATCHES",
        "SELECT count(*) FROM edges WHERE entity = 'Atlantis'",
        'DESCRIBE "Atlantis" STORED',
        "SELECT * FROM EDGES WHERE source = 'patch'",
        "SELECT * FROM entities_like('Atlantis')",
    ):
        answer = editor.post("/v1/query", {"statement": statement}, headers=other)
        assert answer.status_code != 200 or "Poseidon" not in json.dumps(answer.json()["rows"]), statement
    assert editor.http.delete(f"/v1/sessions/{id}", headers=mine).json()["found"]
