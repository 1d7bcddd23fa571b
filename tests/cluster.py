"""A cluster of one machine for tests: tasks run in this process, the last of those at hand first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Backwards:
    """A Cluster whose node offers `room` bytes; it notes the memory that tasks ask for, and breaks off after `most` of them."""

    def __init__(self, room: int = 1 << 40, most: int | None = None) -> None:
        self.room, self.most = room, most
        self.asked: list[int] = []

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
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        waiting = list(calls)
        for call in waiting if in_order else reversed(waiting):
            if self.most is not None and len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(memory)
            yield call, function(*call)

    @contextmanager
    def at(self, address: str | None) -> Iterator[Backwards | None]:
        """In the place of `cluster_at`."""
        yield None if address is None else self
