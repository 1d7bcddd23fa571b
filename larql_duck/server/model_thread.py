"""The one thread in which everything that needs a model runs, request after request; equal work goes together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from larql_duck.errors import LarqlError

# Requests that one pass answers at most.
_TOGETHER = 32


class TimeLimitError(LarqlError):
    """Work that took longer than a request may."""


class OutOfTurnError(LarqlError):
    """A statement that needs the model was begun outside its thread; it is run again inside."""


@dataclass
class Work:
    """Something to be done in the thread: `run` gives a result for each of the items of works with the same key.

    A result that is an exception is raised where the work was asked for. key None: goes with no other.
    """

    run: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any
    key: Hashable
    deadline: float
    future: Future[Any] = field(default_factory=Future)


class ModelThread:
    """Runs works in order; those with the key of the one whose turn it is go with it, wherever they wait."""

    def __init__(self) -> None:
        self._waiting: deque[Work] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._deadline = float("inf")
        # How many works the last batches held: requests and passes that were shared.
        self.batches = 0
        self.batched = 0
        self._thread = threading.Thread(target=self._loop, name="larql-duck-model", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller is in this thread."""
        return threading.current_thread() is self._thread

    @property
    def waiting(self) -> int:
        """How many works wait."""
        return len(self._waiting)

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """The function's result, from this thread. TimeLimitError where it is not there within so many seconds."""
        return self.put(lambda items: [function()], None, None, seconds).result()

    def put(
        self, run: Callable[[Sequence[Any]], Sequence[Any]], item: Any, key: Hashable, seconds: float
    ) -> Future[Any]:
        """The result to come of `run` on this item and others with the same key."""
        work = Work(run, item, key, time.monotonic() + seconds)
        with self._condition:
            if self._closed:
                raise LarqlError("the server is stopping; ask again later")
            self._waiting.append(work)
            self._condition.notify()
        return work.future

    def check_time(self) -> None:
        """Raise TimeLimitError where the work at hand has had its time: called between two passes."""
        if self.is_current and time.monotonic() > self._deadline:
            raise TimeLimitError("the model took longer than a request may; ask for less at a time")

    def close(self) -> None:
        """End the thread after the work at hand; what waits is refused."""
        with self._condition:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._condition.notify()
        for work in waiting:
            work.future.set_exception(LarqlError("the server is stopping; ask again later"))
        self._thread.join()

    def _loop(self) -> None:
        while works := self._next():
            self.batches += 1
            self.batched += len(works)
            self._deadline = max(work.deadline for work in works)
            try:
                results: Sequence[Any] = works[0].run([work.item for work in works])
            except BaseException as error:
                results = [error] * len(works)
            finally:
                self._deadline = float("inf")
            for work, result in zip(works, results, strict=True):
                if isinstance(result, BaseException):
                    work.future.set_exception(result)
                else:
                    work.future.set_result(result)

    def _next(self) -> list[Work]:
        """The works to do now, one or several with one key; none where the thread is to end."""
        while True:
            with self._condition:
                while not self._waiting and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return []
                first = self._waiting.popleft()
                works = [first]
                if first.key is not None:
                    same = [w for w in self._waiting if w.key == first.key][: _TOGETHER - 1]
                    works += same
                    for work in same:
                        self._waiting.remove(work)
            ready = [work for work in works if self._in_time(work)]
            if ready:
                return ready

    def _in_time(self, work: Work) -> bool:
        """Whether the work is still wanted; who waits for one that is too late is told so."""
        if not work.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() <= work.deadline:
            return True
        work.future.set_exception(TimeLimitError("too many requests wait for the model; ask again later"))
        return False
