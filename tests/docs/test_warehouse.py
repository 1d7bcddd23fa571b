"""docs/warehouse.md: every block is run, those of the engines and table formats too, on the synthetic world."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.sessions import run_page, same
from tests.lowering.engine_tables import java

pytestmark = pytest.mark.extras

PAGE = Path(__file__).parents[2] / "docs" / "warehouse.md"


def test_every_block_prints_what_the_page_says(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("datafusion", "pyspark", "deltalake", "pyiceberg"):
        pytest.importorskip(package, reason="pip install 'larql-duck[extras]'")
    (tmp_path / "smollm2.vindex").symlink_to(world)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    if home := java(tmp_path):
        monkeypatch.setenv("JAVA_HOME", home)
    compared = 0
    for step, printed in run_page(PAGE.read_text(encoding="utf-8"), tmp_path, ("", "elsewhere")):
        assert step.kind == "sh" or same(step.expected, printed), f"{step.typed}\n{printed}"
        compared += bool(step.expected)
    assert compared >= 6
