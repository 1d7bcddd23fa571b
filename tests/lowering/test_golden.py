"""The SQL of every query form, against golden files: the statements in one file, their SQL in the other.

`python -m tests.lowering.test_golden` writes the SQL anew; read the difference before committing it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.commands.opening import connect
from larql_duck.commands.transpiling import transpile
from larql_duck.session import Session
from tests.duckdb_cli import run_cli

GOLDEN = Path(__file__).parent.parent / "golden"
_LINE = "\n----\n"


def _cases(name: str) -> list[str]:
    return [case.strip("\n") for case in (GOLDEN / name).read_text(encoding="utf-8").split(_LINE)]


CASES = list(
    zip(
        _cases("queries.lql"),
        _cases("queries.sql") if (GOLDEN / "queries.sql").exists() else [],
        strict=False,
    )
)


@pytest.fixture(scope="module")
def tables(world: Path):
    """A session with tables of the user's own."""
    with connect(world) as session:
        session.con.execute("CREATE TABLE my_table AS SELECT 1 AS a; CREATE TABLE edges AS SELECT 1 AS b")
        yield session


def test_every_statement_has_its_sql() -> None:
    assert len(_cases("queries.lql")) == len(_cases("queries.sql")) == len(CASES)


@pytest.mark.parametrize(("text", "sql"), CASES, ids=[c[0][:50] for c in CASES])
def test_sql(text: str, sql: str) -> None:
    assert transpile(text) == sql


@pytest.mark.parametrize(("text", "sql"), CASES, ids=[c[0][:50] for c in CASES])
def test_the_sql_is_valid(tables: Session, text: str, sql: str) -> None:
    known_missing = text.startswith("SELECT `from` FROM")
    if known_missing:
        with pytest.raises(Exception, match='"from"'):
            tables.con.execute(f"EXPLAIN {sql}")
    else:
        tables.con.execute(f"EXPLAIN {sql.split(chr(10), 1)[1] if sql.startswith('--') else sql}")


def test_the_cli_gives_the_same_rows(s: Session, world: Path) -> None:
    pure = [
        sql
        for text, sql in CASES
        if not sql.startswith("--") and "my_table" not in sql and '"from"' not in sql
    ]
    assert len(pure) > 25
    counted = [
        f"SELECT count(*) AS n, md5(string_agg(to_json(t)::VARCHAR, chr(10) ORDER BY to_json(t)::VARCHAR)) AS rows FROM ({q}) AS t"
        for q in pure
    ]
    by_cli = run_cli(world / "model.duckdb", *counted)
    assert by_cli == [s.sql(q).dicts() for q in counted]


if __name__ == "__main__":
    (GOLDEN / "queries.sql").write_text(
        _LINE.join(transpile(c) for c in _cases("queries.lql")) + "\n", encoding="utf-8"
    )
