"""The explorer in a browser: how long its first page, a stored name and a live one take, and how much it loads."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import Row, smollm2

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_STORED = ("France", "Japan", "Kenya", "Poland", "Brazil", "Paris", "Tokyo")
_LIVE = ("Beethoven", "Marie Curie", "Lake Victoria", "photosynthesis", "Kilimanjaro")
_RUNS = 5
# When the page's main part is there, in milliseconds since the navigation began.
_SHOWN = "new Promise(done => { const look = () => document.querySelector('main[data-page]') ? done(performance.now()) : requestAnimationFrame(look); look(); })"
_LOADED = "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).reduce((sum, e) => sum + e.transferSize, 0)"


def explorer(work: Path, model: str | Path = "", vindex: str = "") -> Iterator[Row]:
    """First load, stored and live names. vindex is one that was extracted before; else the model (SmolLM2) is extracted."""
    from larql_duck.extraction import extract

    path = Path(vindex) if vindex else work / "explorer.vindex"
    if not path.exists():
        extract(model or smollm2(), path)
    with _served(path) as url, _browser() as browser:
        first, size = _first_load(browser, url)
        yield Row("explorer: first load, empty cache", first, None, "ms", "<= 1000")
        yield Row("explorer: first load, compressed", size / 1e6, None, "MB", "<= 1")
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("main[data-page]")
        stored = [_named(page, name, "main table") for name in _STORED]
        yield Row("explorer: a stored name, median", statistics.median(stored), None, "ms", "<= 300")
        yield Row("explorer: a stored name, slowest", max(stored), None, "ms", "")
        _named(page, "Mozart", "main button:has-text('Measure')")
        live = [_named(page, name, "main:not(:has(#asking)) h1") for name in _LIVE]
        yield Row("explorer: a live name, median", statistics.median(live), None, "ms", "<= 1500")
        yield Row("explorer: a live name, slowest", max(live), None, "ms", "")


def _first_load(browser: Browser, url: str) -> tuple[float, float]:
    """Median milliseconds until the first page is shown, and the bytes that it loads, of runs with an empty cache."""
    times, sizes = [], []
    for _ in range(_RUNS):
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(url, wait_until="commit")
            times.append(float(page.evaluate(_SHOWN)))
            sizes.append(float(page.evaluate(_LOADED)))
    return statistics.median(times), statistics.median(sizes)


def _named(page: Page, name: str, shown: str) -> float:
    """Milliseconds from Enter in the field for names until what is waited for is shown on that name's page."""
    page.fill("#search", name)
    began = time.perf_counter()
    page.press("#search", "Enter")
    page.wait_for_selector(f"h1:text-is('{name}')", timeout=60_000)
    page.wait_for_selector(shown, timeout=60_000)
    return (time.perf_counter() - began) * 1000


@contextmanager
def _served(vindex: Path) -> Iterator[str]:
    """The address of a server of the vindex, which runs while the block does."""
    import uvicorn

    from larql_duck.server.app import create_app

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app([vindex]), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def _browser() -> Iterator[Browser]:
    """Headless Chromium, the system's. RuntimeError where there is none."""
    from playwright.sync_api import sync_playwright

    from tests import chromium

    path = chromium.find()
    if path is None:
        raise RuntimeError("there is no chromium here: python -m tests.chromium installs it")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


CASES = {"explorer": explorer}
