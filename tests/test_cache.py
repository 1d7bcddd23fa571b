"""The cache directory: whole entries, a limit on their size, damaged ones ignored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from larql_duck import cache
from larql_duck.errors import LarqlError


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_written_is_read_listed_and_cleared(directory: Path) -> None:
    assert cache.cache_dir() == directory and cache.entries() == [] and cache.clear() == 0
    assert cache.write("text", ("a", "1"), {"model": "m"}, b"\n12\n") is None
    assert cache.read("text", ("a", "1")) == ({"model": "m"}, b"\n12\n")
    assert cache.read("text", ("a", "2")) is None and cache.read("other", ("a", "1")) is None
    [entry] = cache.entries()
    assert (entry.kind, entry.about, entry.path.parent) == ("text", {"model": "m"}, directory)
    assert entry.size == entry.path.stat().st_size == cache.clear()
    assert cache.entries() == []


def test_what_was_not_read_for_longest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "1")
    for i in range(3):
        cache.write("x", (str(i),), {}, bytes(400_000))
        for age, entry in enumerate(cache.entries()):
            os.utime(entry.path, (1000 - age, 1000 - age))
        if i == 1:
            assert cache.read("x", ("0",)) is not None
    assert [cache.read("x", (str(i),)) is not None for i in range(3)] == [True, False, True]
    why = cache.write("x", ("4",), {}, bytes(2_000_000))
    assert why is not None and "1 MiB" in why
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "much")
    with pytest.raises(LarqlError, match="whole number of MiB"):
        cache.write("x", ("5",), {}, b"")


@pytest.mark.parametrize("damage", [b"", b"no entry", None])
def test_a_damaged_entry_counts_as_missing(damage: bytes | None) -> None:
    cache.write("x", ("1",), {}, b"data")
    [entry] = cache.entries()
    entry.path.write_bytes(entry.path.read_bytes() + b"!" if damage is None else damage)
    assert cache.read("x", ("1",)) is None
    assert cache.clear() > 0 or damage == b""
    assert not list(cache.cache_dir().glob("*.entry"))
