"""Killed at any moment, a command leaves the old or the new state; the next one leaves nothing of the killed one."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from larql_duck.catalog import SCHEMAS
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.reliability.killed import kill_after, start

pytestmark = pytest.mark.extras
COMMANDS = ("extract", "probe", "save", "compile", "report", "insert")
# Moments of all commands together.
KILLS = int(os.environ.get("LARQL_DUCK_RANDOM_KILLS", "72"))


def listing(folder: Path) -> set[str]:
    """Names of all files, but those that measurements are cached in and lock files."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {str(p) for p in files if p.parts[0] != "cache" and p.suffix != ".lock"}


def tables(vindex: Path) -> dict[str, bytes]:
    return {name: (vindex / "tables" / f"{name}.parquet").read_bytes() for name in set(SCHEMAS) - {"meta"}}


@pytest.mark.parametrize("command", COMMANDS)
def test_kill_at_random_moments(command: str, tiny_model, probed_vindex, tmp_path: Path) -> None:
    model, probed = tiny_model("llama"), probed_vindex("llama")

    def folder(name: str) -> tuple[Path, Path, Path]:
        place = tmp_path / name
        place.mkdir()
        return model, Path(shutil.copytree(probed, place / "in.vindex")), place

    whole = folder("whole")
    process, _ = start(command, *whole)
    began = time.perf_counter()
    process.join()
    took = time.perf_counter() - began
    assert process.exitcode == 0
    changed = whole[2] / ("out.vindex" if command in ("extract", "compile") else "in.vindex")
    expected, expected_tables = listing(whole[2]), tables(changed)
    rng = random.Random(command)
    for i in range(-(-KILLS // len(COMMANDS))):
        killed = folder(str(i))
        process, _ = start(command, *killed)
        kill_after(process, rng.uniform(0, took))
        out = killed[2] / changed.name
        assert Vindex.open(killed[1]).table("facts").num_rows
        done = command in ("extract", "compile") and out.exists()
        if done:
            assert verify(out) == [], i
            shutil.rmtree(out)
        process, _ = start(command, *killed)
        process.join()
        assert process.exitcode == 0, i
        assert listing(killed[2]) == expected, i
        assert tables(out) == expected_tables, i
        assert verify(out) == [], i
        shutil.rmtree(killed[2])
