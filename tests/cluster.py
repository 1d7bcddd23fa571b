"""A cluster of one machine for tests: tasks run in this process, of three that are at hand the last one first."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any


class Backwards:
    """A Cluster whose node offers `room` bytes; it notes the memory that tasks ask for, and breaks off after `most` of them."""

    def __init__(self, room: int = 1 << 40, most: int | None = None) -> None:
        self.room, self.most = room, most
        self.asked: list[int] = []
        self.calls: list[tuple[Any, ...]] = []

    def memory(self) -> int:
        return self.room

    def run(
        self,
        function: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        *,
        memory: int,
        threads: int = 1,
        in_order: bool = False,
    ) -> Generator[tuple[tuple[Any, ...], Any], None, None]:
        left = iter(calls)
        waiting = list(islice(left, 3))
        while waiting:
            call = waiting.pop(0 if in_order else -1)
            if self.most is not None and len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(memory)
            self.calls.append(call)
            yield call, function(*call)
            waiting += islice(left, 1)

    @contextmanager
    def at(self, address: str | None) -> Iterator[Backwards | None]:
        """In the place of `cluster_at`."""
        yield None if address is None else self
