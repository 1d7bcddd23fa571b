"""Damaged requests, made of good ones by a seeded generator: bytes, JSON, headers, LQL, SQL, ids."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

MODEL = "llama-probed"
_DATA = Path(__file__).parents[1] / "data" / "lql-statements.json"

# Method, path, headers (latin-1 text), body.
Sent = tuple[str, str, list[tuple[str, str]], bytes]

_ODD = [
    "",
    "\0",
    "\x1b[31m",
    "é" * 40,
    "\U0001f986",
    "\ud800",
    "'",
    '"',
    "\\",
    "$1",
    "%00",
    "../..",
    "--",
    "/*",
    "{",
    "A" * 3000,
    "-1",
    "1e400",
    "NaN",
]
_GOOD = {
    "query": {"statement": 'DESCRIBE "France"'},
    "select": {
        "entity": "France",
        "relation": "capital",
        "limit": 3,
        "order_by": "gate_score",
        "order": "desc",
    },
    "infer": {"prompt": "The capital of France is", "top": 3, "mode": "dense"},
    "explain-infer": {"prompt": "The capital", "top": 3, "per_layer": 2, "band": "all"},
    "completions": {"prompt": "The", "max_tokens": 2, "temperature": 0, "stop": ["x"], "logprobs": 1},
    "chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "insert": {"entity": "a", "relation": "b", "target": "c"},
    "patches/apply": {"patch": {"version": 1, "operations": []}},
}


def damaged(n: int, seed: int = 0) -> Iterator[Sent]:
    """n requests that differ from good ones."""
    choose = random.Random(seed)
    statements = [row["sql"] for row in json.loads(_DATA.read_text())]
    makers = (_json, _bytes, _headers, _lql, _sql, _ids)
    for i in range(n):
        yield makers[i % len(makers)](choose, statements)


def _post(path: str, body: object, headers: list[tuple[str, str]] | None = None) -> Sent:
    data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    return "POST", f"/v1/{MODEL}/{path}", [("Content-Type", "application/json"), *(headers or [])], data


def _json(choose: random.Random, _: list[str]) -> Sent:
    """Members of another type, left out, or of odd values."""
    path = choose.choice(list(_GOOD))
    body = json.loads(json.dumps(_GOOD[path]))
    first = next(iter(body))
    if choose.random() < 0.3 and path != "select":
        del body[first]
    else:
        body[first] = choose.choice([7, -5, 1e308, 2**70, [], [[[]]], {}, {"a": {}}, True, "\ud800"])
    body[choose.choice(_ODD)] = choose.choice(_ODD)
    return _post(path, body)


def _bytes(choose: random.Random, _: list[str]) -> Sent:
    """JSON with bytes cut, changed or added; deep nesting."""
    path = choose.choice(list(_GOOD))
    data = bytearray(json.dumps(_GOOD[path]).encode())
    kind = choose.randrange(4)
    if kind == 0:
        del data[choose.randrange(1, len(data)) :]
    elif kind == 1:
        data[choose.randrange(len(data))] = choose.choice(b"\x00\xff{[\x80")
        data += b"}"
    elif kind == 2:
        data = bytearray(b"[" * choose.choice([10, 5000]))
    else:
        data = bytearray(choose.randbytes(choose.randrange(1, 400)))
    return _post(path, bytes(data))


def _headers(choose: random.Random, _: list[str]) -> Sent:
    """Headers that contradict the body, or are none."""
    odd = choose.choice(
        [
            ("Host", "evil.example"),
            ("Content-Length", "999999999999"),
            ("Content-Length", "-1"),
            ("Content-Length", "abc"),
            ("Content-Type", "text/plain"),
            ("Content-Type", "application/xml; charset=\xff"),
            ("Transfer-Encoding", "gzip"),
        ]
    )
    body = {"statement": choose.choice(["SELECT", "DESCRIBE", ""])}
    method, path, headers, data = _post("query", body)
    return method, path, [h for h in headers if h[0] != odd[0]] + [odd], data


def _lql(choose: random.Random, statements: list[str]) -> Sent:
    """A statement with a part cut out or put in, which no longer reads; or one that is not served."""
    text = choose.choice(statements)
    at = choose.randrange(len(text) + 1)
    broken = choose.choice(
        [text[:at] + '"' * (text[:at].count('"') % 2 == 0), text[:at] + " ~~~ " + choose.choice(_ODD)]
    )
    return _post("query", {"statement": broken + "\n]["})


def _sql(choose: random.Random, _: list[str]) -> Sent:
    """SELECT of what is not there, nested, or with odd values."""
    odd = choose.choice(_ODD).replace("\0", "")
    depth = choose.choice([1, 50, 90])
    query = choose.choice(
        [
            f"SELECT {'(' * depth}nothing{')' * depth} FROM facts",
            f'SELECT * FROM "{odd or "x"}"',
            f"SELECT nothing('{odd}') FROM facts",
            "SELECT 'a'::INTEGER",
            f"SELECT * FROM facts WHERE p = '{odd}x'",
            "SELECT 1 +",
            f"SELECT {'1 + ' * 1200}",
            "SELECT CAST('x' AS DATE), no_such_column FROM entities",
            "WITH a AS (SELECT 1) SELECT * FROM b",
        ]
    )
    return _post("query", {"statement": query})


def _ids(choose: random.Random, _: list[str]) -> Sent:
    """Models, sessions, layers and numbers that are not there."""
    odd = "".join(c for c in choose.choice(_ODD) if c.isascii() and c.isalnum()) or "zzz"
    path = choose.choice(
        [
            f"/v1/{odd}/stats",
            f"/v1/{MODEL}/patches/{odd}",
            f"/v1/sessions/{odd}",
            f"/v1/{MODEL}/walk?prompt=x&layers=999",
            f"/v1/{MODEL}/walk?prompt=x&layers=a;b",
            f"/v1/{MODEL}/walk?prompt=x&top=0",
            f"/v1/{MODEL}/describe?band=none&entity=x",
            f"/v1/{MODEL}/describe",
            f"/v1/{MODEL}/describe?entity=x&limit=-1",
            f"/v1/{MODEL}/relations?source={odd}",
            f"/{odd}/../../etc/passwd%00",
            f"/v1/{MODEL}//{odd}",
            f"/%2e%2e/%2e%2e/etc/passwd/{odd}",
        ]
    )
    return "GET", path, [], b""
