"""Errors and remarks of Python functions that SQL calls: DuckDB passes on an error's text only, and no remark."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable

import pyarrow as pa

from larql_duck.errors import LarqlError

# Errors kept at most: those whose text no message brought back. Remarks of one query, and those that are shown.
_MOST = 100
_SHOWN = 5


class Failures:
    """The errors that functions raised, until the one behind a message of DuckDB's is asked for."""

    def __init__(self) -> None:
        # One for each time: threads may fail with the same text at once.
        self._kept: deque[LarqlError] = deque(maxlen=_MOST)
        self._remarks: dict[str, None] = {}
        self._lock = threading.Lock()

    def watched(self, function: Callable[..., pa.Array], parameters: int) -> Callable[..., pa.Array]:
        """`function` of so many columns, whose errors are kept."""

        def call(*columns: pa.Array) -> pa.Array:
            try:
                return function(*columns)
            except LarqlError as error:
                self.keep(error)
                raise

        # DuckDB counts the parameters.
        kind = inspect.Parameter.POSITIONAL_ONLY
        names = [inspect.Parameter(f"column{i}", kind) for i in range(parameters)]
        call.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        return call

    def keep(self, error: LarqlError) -> None:
        """Keep an error that a query of DuckDB's may end with."""
        with self._lock:
            self._kept.append(error)

    def tell(self, remark: str) -> None:
        """Keep a remark for whoever reads the query's result."""
        with self._lock:
            self._remarks[remark] = None

    def take_remarks(self) -> list[str]:
        """The remarks since they were last taken, the first few and how many more there are."""
        with self._lock:
            remarks, self._remarks = list(self._remarks), {}
        more = len(remarks) - _SHOWN
        return [*remarks[:_SHOWN], f"{more} more rows have no answer"] if more > 0 else remarks

    def behind(self, message: str) -> LarqlError | None:
        """The error whose text stands in DuckDB's message, taken out; None where no function failed."""
        with self._lock:
            for error in sorted(self._kept, key=lambda e: len(str(e)), reverse=True):
                if str(error) in message:
                    self._kept.remove(error)
                    return error
        return None
