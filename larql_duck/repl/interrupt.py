"""Ctrl-C while a query runs: DuckDB stops, the session goes on."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from larql_duck.errors import interruption

# Seconds after which a query that goes on is stopped again.
_AGAIN = 0.2


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, Ctrl-C calls `stop` at once, from another thread, and then raises KeyboardInterrupt.

    Python's own handler only runs between two steps of Python; a query is one long step. The signal's number is
    therefore read from a pipe by a thread, which calls `stop` again until Python's handler has run: what comes while DuckDB
    still plans a query is lost. Outside the main thread nothing happens: signals do not arrive there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    noticed = threading.Event()
    handler = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        noticed.set()
        if callable(handler):
            handler(number, frame)

    thread = threading.Thread(
        target=_wait, args=(reading, stop, noticed), name="larql-duck interrupt", daemon=True
    )
    thread.start()
    if callable(handler):
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    except RuntimeError as error:
        if interruption(error):
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(before)
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
        # The end of the pipe ends the thread.
        os.close(writing)
        thread.join()
        os.close(reading)


def _wait(reading: int, stop: Callable[[], None], noticed: threading.Event) -> None:
    while number := os.read(reading, 1):
        if number[0] != signal.SIGINT:
            continue
        with suppress(Exception):
            stop()
        # Until the pipe's end, too: nobody may be there any more who would notice.
        while not noticed.wait(_AGAIN) and not select.select([reading], [], [], 0)[0]:
            with suppress(Exception):
                stop()
        noticed.clear()
