"""A server beside a session in one process: DESCRIBE over HTTP, many clients at once, shared passes."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Row
from benchmarks.cases import vindex as made_vindex

_CLIENTS, _REQUESTS = 32, 200
_ROUNDS = 200


def serve(work: Path, vindex: str = "") -> Iterator[Row]:
    """DESCRIBE warm over HTTP and in-process; 32 clients with 200 mixed requests each; INFER shared and one by one."""
    import larql_duck as lq

    path = Path(vindex) if vindex else made_vindex(work)
    with _server(path) as url, lq.connect(path) as session:
        ask = _describe(url)
        here = 1e3 * _median(lambda: session.lql('DESCRIBE "France" STORED').rows(), _ROUNDS)
        there = 1e3 * _median(ask, _ROUNDS)
        yield Row(
            "DESCRIBE over HTTP",
            there,
            here,
            "ms",
            "in-process + 3 ms",
            f"{_ROUNDS} rounds, one client, warm",
        )
        yield from _mixed(url, session)
        yield from _throughput(url)
        yield from _writing(url)


def _mixed(url: str, session: Any) -> Iterator[Row]:
    """Times and mistakes of many clients at once, the answers held against those of the session."""
    names = [row[0] for row in session.lql("SELECT DISTINCT subject FROM facts ORDER BY ALL LIMIT 40").rows()]
    asked: list[tuple[str, Any]] = []
    for name in names:
        text = json.dumps(name)
        asked += [
            (f"DESCRIBE {text} STORED", None),
            (f"SELECT relation, object FROM facts WHERE subject = {text} AND rank = 1 ORDER BY ALL", None),
            (f"WALK {text} TOP 3", None),
            (f"INFER {json.dumps(f'The capital of {name} is')} TOP 3", None),
        ]
    expected = {text: _plain(session.lql(text).rows()) for text, _ in asked}
    texts = list(expected)

    reasons: Counter[str] = Counter()

    def client(number: int) -> tuple[list[float], int, int]:
        times, errors, wrong = [], 0, 0
        for i in range(_REQUESTS):
            text = texts[(number * 7 + i) % len(texts)]
            began = time.perf_counter()
            try:
                rows = _post(url, "query", {"statement": text})["rows"]
            except OSError as error:
                errors += 1
                reasons[str(error)] += 1
                continue
            times.append(time.perf_counter() - began)
            wrong += not _same(rows, expected[text])
        return times, errors, wrong

    began = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as pool:
        parts = list(pool.map(client, range(_CLIENTS)))
    seconds = time.perf_counter() - began
    times = sorted(1e3 * t for part in parts for t in part[0])
    n = _CLIENTS * _REQUESTS
    note = f"{_CLIENTS} clients x {_REQUESTS} requests: describe, select, walk, infer"
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    yield Row("errors", sum(part[1] for part in parts), None, f"of {n}", "0", why or note)
    yield Row("wrong rows", sum(part[2] for part in parts), None, f"of {n}", "0", note)
    yield Row("mixed requests, p50", times[len(times) // 2], None, "ms", "", note)
    yield Row("mixed requests, p99", times[int(len(times) * 0.99)], None, "ms", "", note)
    yield Row("mixed requests", n / seconds, None, "requests/s", "", note)


def _throughput(url: str) -> Iterator[Row]:
    prompts = [f"The capital of country number {i} is" for i in range(96)]

    def ask(prompt: str) -> object:
        return _post(url, "infer", {"prompt": prompt, "top": 3})

    for prompt in prompts[:4]:
        ask(prompt)
    began = time.perf_counter()
    for prompt in prompts:
        ask(prompt)
    alone = len(prompts) / (time.perf_counter() - began)
    with ThreadPoolExecutor(_CLIENTS) as pool:
        began = time.perf_counter()
        list(pool.map(ask, prompts))
        shared = len(prompts) / (time.perf_counter() - began)
    note = f"{len(prompts)} prompts, {_CLIENTS} clients against one"
    yield Row("INFER over HTTP", shared, alone, "prompts/s", "at least 2 x", note)


def _writing(url: str) -> Iterator[Row]:
    """Tokens a second of completions at once and one by one; greedy and sampled ones share their passes."""
    bodies = [
        {"prompt": f"The capital of country number {i} is", "max_tokens": 16, "temperature": i % 2, "seed": i}
        for i in range(32)
    ]

    def ask(body: Any) -> int:
        return int(_post(url, "completions", body)["usage"]["completion_tokens"])

    began = time.perf_counter()
    alone = sum(map(ask, bodies)) / (time.perf_counter() - began)
    with ThreadPoolExecutor(_CLIENTS) as pool:
        began = time.perf_counter()
        shared = sum(pool.map(ask, bodies)) / (time.perf_counter() - began)
    note = f"{len(bodies)} completions of 16 tokens, {_CLIENTS} clients against one"
    yield Row("completions over HTTP", shared, alone, "tokens/s", "", note)


def _describe(url: str) -> Callable[[], object]:
    """What asks DESCRIBE over one connection that is kept."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.connect()
    assert connection.sock is not None
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> object:
        connection.request("GET", "/v1/describe?entity=France&stored=true")
        return json.loads(connection.getresponse().read())

    return ask


def _post(url: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        f"{url}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.loads(response.read())


def _median(action: Callable[[], object], rounds: int) -> float:
    for _ in range(10):
        action()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _plain(rows: Sequence[Sequence[Any]]) -> Any:
    return json.loads(json.dumps(rows))


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are the same but for the last digits of figures: a pass of many rounds in another order."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float | int):
        return abs(a - b) <= 1e-3 * max(abs(a), abs(b), 1e-3)
    return bool(a == b)


@contextmanager
def _server(vindex: Path) -> Iterator[str]:
    """The address of a server in threads of this process, while the block runs."""
    import uvicorn

    from larql_duck.server.app import create_app
    from larql_duck.server.options import Limits, ServeOptions
    from larql_duck.server.running import listen

    app = create_app([vindex], ServeOptions(limits=Limits(seconds=300)))
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


CASES: dict[str, Case] = {"serve": serve}
