"""In which order tests run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.conftest import pytest_collection_modifyitems


def _item(name: str, *marks: str, fixtures: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        name=name, fixturenames=fixtures, get_closest_marker=lambda mark: mark if mark in marks else None
    )


def test_what_waits_longest_for_a_vindex_comes_first() -> None:
    items = [
        _item("kills", "extras"),
        _item("pages", "real", fixtures=("smollm2_vindex",)),
        _item("default", "extras", fixtures=("tmp_path", "default_vindex")),
        _item("readers", "extras"),
    ]
    pytest_collection_modifyitems(items)
    assert [item.name for item in items] == ["default", "pages", "kills", "readers"]
