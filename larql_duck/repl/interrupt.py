"""Ctrl-C while a query runs: DuckDB stops, the session goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from larql_duck.errors import interruption


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, Ctrl-C calls `stop` at once, from another thread, and then raises KeyboardInterrupt.

    Python's own handler only runs between two steps of Python; a query is one long step. The signal's number is
    therefore read from a pipe by a thread. Outside the main thread nothing happens: signals do not arrive there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_wait, args=(reading, stop), name="larql-duck interrupt", daemon=True)
    thread.start()
    try:
        yield
    except RuntimeError as error:
        if interruption(error):
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(before)
        # The end of the pipe ends the thread.
        os.close(writing)
        thread.join()
        os.close(reading)


def _wait(reading: int, stop: Callable[[], None]) -> None:
    while number := os.read(reading, 1):
        if number[0] == signal.SIGINT:
            with suppress(Exception):
                stop()
