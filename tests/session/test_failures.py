"""Errors of Python functions that SQL calls."""

from __future__ import annotations

import pyarrow as pa
import pytest

from larql_duck.errors import LarqlError
from larql_duck.session.failures import Failures


def test_the_same_error_of_two_threads_is_brought_back_to_both() -> None:
    def fails(column: pa.Array) -> pa.Array:
        raise LarqlError("this needs the model")

    failures = Failures()
    for _ in range(2):
        with pytest.raises(LarqlError):
            failures.watched(fails, 1)(pa.array([1]))
    message = "Invalid Input Error: LarqlError: this needs the model"
    found = [failures.behind(message) for _ in range(3)]
    assert isinstance(found[0], LarqlError) and isinstance(found[1], LarqlError) and found[2] is None
