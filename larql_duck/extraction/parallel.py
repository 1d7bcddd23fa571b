"""Blocks of rows on all processors: one torch thread a block, so that searching and sorting run in parallel too."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Given = TypeVar("Given")
Made = TypeVar("Made")


class Workers:
    """A pool of threads; see `workers`."""

    def __init__(self, pool: ThreadPoolExecutor, n: int) -> None:
        self._pool, self._n = pool, n

    def map(self, function: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
        """`function` of each item, in the items' order; a few are computed ahead. Gradients are off inside."""
        waiting: deque[Future[Made]] = deque()

        def call(item: Given) -> Made:
            with torch.no_grad():  # this setting belongs to a thread
                return function(item)

        try:
            for item in items:
                waiting.append(self._pool.submit(call, item))
                if len(waiting) > 2 * self._n:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def each(self, function: Callable[[Given], object], items: Iterable[Given]) -> None:
        """Call `function` with each item."""
        deque(self.map(function, items), maxlen=0)


def products(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """rows [n, hidden] times the rows of matrix [m, hidden], in `out` [n, m] on the CPU, computed where matrix lies."""
    if matrix.device.type == "cpu":
        return torch.mm(rows, matrix.t(), out=out)
    return out.copy_(rows.to(matrix.device) @ matrix.t())


@contextmanager
def workers() -> Iterator[Workers]:
    """Workers on as many threads as torch uses; inside the block torch itself runs each operation on one.

    A product of two blocks is as fast on one thread each as one after the other on two, while numpy's searches
    and sorts between products, and torch's smaller operations, use all processors only this way.
    """
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n, thread_name_prefix="extract") as pool:
            yield Workers(pool, n)
    finally:
        torch.set_num_threads(n)
