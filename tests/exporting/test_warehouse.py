"""All tables as Parquet, Delta Lake and Iceberg, read back by the libraries of each."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from larql_duck.cli import app as cli
from larql_duck.errors import LarqlError
from larql_duck.exporting.warehouse import stored_names, write_tables
from larql_duck.session import Session


def rows(s: Session, name: str) -> list[str]:
    return sorted(map(repr, s.sql(f"FROM lq.{name}").dicts()))


def test_every_table_is_a_parquet_file(s: Session, tmp_path: Path) -> None:
    written = write_tables(s.workspace, s.schema, tmp_path / "out", "parquet")
    assert [t.name for t in written] == stored_names() and not any(t.partitioned for t in written)
    for table in written:
        file = tmp_path / "out" / f"{table.name}.parquet"
        assert table.bytes == file.stat().st_size
        assert sorted(map(repr, pq.read_table(file).to_pylist())) == rows(s, table.name)


def test_large_tables_are_partitioned_by_layer(
    world: Path, s: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--tables", "--partition-by", "layer", "--partition-above", "300", "-o", str(out)]
    assert cli.run(["export", str(world), "--format", "parquet", *arguments]) == 0
    assert "partitioned by layer: features, feature_tokens" in capsys.readouterr().err
    assert (out / "layers.parquet").is_file() and (out / "features" / "layer=4").is_dir()
    files = f"read_parquet('{out}/features/*/*.parquet', hive_partitioning = true)"
    assert duckdb.sql(f"SELECT count(*), count(DISTINCT layer) FROM {files}").fetchall() == [(400, 10)]


@pytest.mark.extras
def test_delta_reads_it_back(world: Path, s: Session, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="pip install 'larql-duck[lake]'")
    out = tmp_path / "lake"
    assert (
        cli.run(
            [
                "export",
                str(world),
                "--format",
                "delta",
                "--partition-by",
                "layer",
                "--partition-above",
                "300",
                "-o",
                str(out),
            ]
        )
        == 0
    )
    features = deltalake.DeltaTable(out / "features")
    assert features.metadata().partition_columns == ["layer"]
    for name in ("features", "facts", "entity_names"):
        table = deltalake.DeltaTable(out / name).to_pyarrow_table()
        found = table.select(s.sql(f"FROM lq.{name} LIMIT 0").columns).to_pylist()
        assert sorted(map(repr, found)) == rows(s, name)


@pytest.mark.extras
def test_iceberg_reads_it_back(world: Path, s: Session, tmp_path: Path) -> None:
    sql = pytest.importorskip("pyiceberg.catalog.sql", reason="pip install 'larql-duck[lake]'")
    out = tmp_path / "ice"
    assert (
        cli.run(
            [
                "export",
                str(world),
                "--format",
                "iceberg",
                "--partition-by",
                "layer",
                "--partition-above",
                "300",
                "-o",
                str(out),
            ]
        )
        == 0
    )
    catalog = sql.SqlCatalog("larql-duck", uri=f"sqlite:///{out}/catalog.db", warehouse=out.as_uri())
    assert {name for _, name in catalog.list_tables("lq")} == set(stored_names())
    assert [field.name for field in catalog.load_table("lq.features").spec().fields] == ["layer"]
    for name in ("features", "facts", "entity_names"):
        found = catalog.load_table(f"lq.{name}").scan().to_arrow().to_pylist()
        assert sorted(map(repr, found)) == rows(s, name)


@pytest.mark.parametrize("form", ["parquet", "iceberg"])
def test_what_stands_there_stays(s: Session, tmp_path: Path, form: str) -> None:
    if form == "iceberg":
        pytest.importorskip("pyiceberg", reason="pip install 'larql-duck[lake]'")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(LarqlError, match="something stands there already"):
        write_tables(s.workspace, s.schema, tmp_path, form)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_failed_export_leaves_nothing(s: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from larql_duck.exporting import warehouse

    monkeypatch.setattr(warehouse, "stored_names", lambda: ["layers", "no_such_table"])
    with pytest.raises(LarqlError, match="no_such_table"):
        write_tables(s.workspace, s.schema, tmp_path / "a" / "out", "parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "csv", "--tables"],
        ["--format", "parquet", "--partition-by", "layer"],
        ["--format", "delta", "--query", "FROM FACTS"],
    ],
)
def test_options_that_do_not_go_together(world: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert cli.run(["export", str(world), "-o", str(tmp_path / "x"), *arguments]) == 2
    assert list(tmp_path.iterdir()) == []
