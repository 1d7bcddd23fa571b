"""A vindex from elsewhere, with links in it: nothing outside is written, moved or taken in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from larql_duck.vindex.publish import commit_tables
from larql_duck.vindex.store import Vindex


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "x.vindex"))


def note(section: dict[str, Any]) -> None:
    section["noted"] = True


def test_links_with_names_of_temporary_files_are_left_alone(copy: Path) -> None:
    outside = copy.parent / "thesis"
    outside.write_text("years")
    links = [copy / name for name in (".index.json.tmp", ".model.duckdb.tmp", "tables/.facts.parquet.tmp")]
    for link in links:
        link.symlink_to(outside)
    commit_tables(copy, {"facts": Vindex.open(copy).table("facts")}, note)
    assert outside.read_text() == "years" and all(link.is_symlink() for link in links)
    assert Vindex.open(copy).manifest.section["noted"] is True


def test_links_among_pending_tables_are_dropped(copy: Path) -> None:
    outside, pending = copy.parent / "outside", copy / "tables" / ".next"
    outside.mkdir()
    pending.mkdir()
    # One that index.json would take, by its content.
    shutil.copy(copy / "tables" / "facts.parquet", outside)
    shutil.copy(copy / "index.json", outside)
    (pending / "facts.parquet").symlink_to(outside / "facts.parquet")
    (pending / "folder").symlink_to(outside)
    Vindex.open(copy)
    assert not pending.exists() and not any(path.is_symlink() for path in copy.rglob("*"))
    assert sorted(path.name for path in outside.iterdir()) == ["facts.parquet", "index.json"]
    assert Vindex.open(copy).table("facts").num_rows
