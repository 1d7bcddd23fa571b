"""AUDIT from the command line, LQL and Python: one answer through all doors, plain SQL afterwards, and its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import pytest
from scipy.stats import binomtest

import larql_duck as lq
from larql_duck.catalog.comparison_tables import SCHEMAS, table_of
from larql_duck.cli import app as cli
from larql_duck.distillation.retention import retention_table
from larql_duck.errors import LarqlError, LevelError, ModelError, SemanticError

LOST = [("Germany", "Berlin", "Rome"), ("Spain", "Madrid", None)]


@pytest.fixture
def statement(bigrams: tuple[Path, Path], seats: Path) -> str:
    return f'AUDIT "{bigrams[0]}" AGAINST "{bigrams[1]}" PACK "{seats}"'


def test_lql_gives_retention_and_leaves_a_table(statement: str, tmp_path: Path) -> None:
    with lq.connect() as s:
        result = s.lql(f'{statement} INTO REPORT "{tmp_path / "r.html"}"')
        whole = result.dicts()[0]
        assert (whole["by"], whole["facts"], whole["kept"], whole["lost"], whole["changed"]) == (
            "all",
            4,
            1,
            2,
            1,
        )
        assert "1 kept, 2 lost, 1 changed, 1 gained, 1 neither" in result.notices[0]
        query = "SELECT subject, teacher_object, student_object FROM transfer WHERE status = 'lost' ORDER BY subject"
        assert s.sql(query).rows() == LOST
        assert s.lql(f"{query.replace('transfer', 'lq.transfer')}").rows() == LOST
        assert s.sql("SELECT retention FROM retention WHERE part = 'country'").one() == 0.25
        comment = (
            "SELECT comment FROM duckdb_columns() WHERE table_name = 'transfer' AND column_name = 'status'"
        )
        assert "neither" in s.sql(comment).one()
        s.lql(statement.replace("PACK", "LIMIT 1 PACK"))
        assert s.sql("SELECT count(*) FROM transfer").one() == 1
    page = (tmp_path / "r.html").read_text()
    assert page.lower().startswith("<!doctype html") and page.count("<svg") == 4 and "Berlin" in page


def test_python_gives_the_table(bigrams: tuple[Path, Path], seats: Path, tmp_path: Path) -> None:
    result = lq.audit(*bigrams, pack=str(seats))
    assert result.columns == SCHEMAS["transfer"].names
    assert result.retention.dicts()[0]["kept"] == 1
    result.save(tmp_path / "out")
    with duckdb.connect(str(tmp_path / "out" / "audit.duckdb"), read_only=True) as con:
        query = "SELECT subject, teacher_object, student_object FROM transfer WHERE status = 'lost' ORDER BY subject"
        assert con.sql(query).fetchall() == LOST
        assert con.sql("SELECT kept FROM retention LIMIT 1").fetchall() == [(1,)]
    result.save(tmp_path / "out")  # what stands there is of the same kind
    (tmp_path / "out" / "report.html").write_text("a letter")
    with pytest.raises(LarqlError, match="another kind"):
        result.save(tmp_path / "out")


def test_command_line(
    bigrams: tuple[Path, Path], seats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["audit", *map(str, bigrams), "--pack", str(seats), "-o", str(tmp_path / "new" / "out")]
    assert cli.run([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["kept"] == 1
    assert "p, the probability of the whole answer, takes its place" in printed.err
    figures = json.loads((tmp_path / "new" / "out" / "report.json").read_text())
    assert figures["counts"] == {"kept": 1, "lost": 2, "changed": 1, "gained": 1, "neither": 1}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["out"]  # nothing unfinished
    names = tmp_path / "names.csv"
    names.write_text('name\nFrance\n"Ja""pan"\n')
    assert cli.run([*arguments, "--entities", str(names), "--csv"]) == 0
    assert cli.run(["audit", str(bigrams[0]), str(tmp_path / "nothing"), "-o", str(tmp_path / "x")]) == 1
    assert "no such file" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_an_interrupted_audit_is_resumed(
    bigrams: tuple[Path, Path], seats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = ["audit", *map(str, bigrams), "--pack", str(seats), "-o", str(tmp_path / "out")]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("larql_duck.distillation.audit.transfer_table", interrupted)
        assert cli.run(arguments) == 130
    assert "--resume goes on from there" in capsys.readouterr().err
    assert list((tmp_path / ".out.audit").glob("answers-*.msgpack")) and not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr("larql_duck.probing.replies.ask", interrupted)
        assert cli.run([*arguments, "--resume"]) == 0
    assert (tmp_path / "out" / "report.html").exists() and not (tmp_path / ".out.audit").exists()


def test_the_session_s_own_model_is_a_side(probed_vindex, tmp_path: Path) -> None:
    vindex = probed_vindex("llama")
    with lq.connect(vindex) as s:
        questions = s.sql("SELECT count(*) FROM facts WHERE rank = 1").one()
        whole = s.lql(f'AUDIT "{vindex}" AGAINST CURRENT')
        counts = dict(s.sql("SELECT status, count(*) FROM transfer GROUP BY status").rows())
        assert sum(counts.values()) == questions and set(counts) <= {"kept", "neither"}
        assert s.sql("SELECT max(kl) FROM transfer").one() < 1e-6
        assert whole.columns == SCHEMAS["retention"].names
        some = s.lql(f'AUDIT CURRENT AGAINST "{vindex}" RELATIONS "capital" LIMIT 2')
        assert s.sql("SELECT count(*) FROM transfer").one() == 2 and some.dicts()[1]["part"] == "capital"
        names = s.lql(f'AUDIT CURRENT AGAINST "{vindex}" RELATIONS "capital" ENTITIES (SELECT "France")')
        assert names and s.sql("SELECT subject FROM transfer").rows() == [("France",)]
        with pytest.raises(SemanticError, match="nobody to ask"):
            s.lql(f'AUDIT CURRENT AGAINST "{vindex}" ENTITIES (SELECT subject FROM facts WHERE false)')


def test_refusals(world: Path, bigrams: tuple[Path, Path], tmp_path: Path) -> None:
    with lq.connect(world) as s:
        for sides in (f'CURRENT AGAINST "{bigrams[0]}"', f'"{bigrams[0]}" AGAINST CURRENT'):
            with pytest.raises(LevelError, match="AUDIT"):
                s.lql(f"AUDIT {sides}")
        with pytest.raises(LevelError):
            s.lql(f'AUDIT "{world}" AGAINST "{bigrams[0]}"')
        with pytest.raises(SemanticError, match="LIMIT"):
            s.lql(f'AUDIT "{world}" AGAINST "{bigrams[0]}" LIMIT 0')
    with lq.connect() as s:
        with pytest.raises(LarqlError, match="vindex"):
            s.lql(f'AUDIT CURRENT AGAINST "{bigrams[0]}"')
        with pytest.raises(ModelError):
            s.lql('AUDIT "a" AGAINST "b"')
    other = shutil.copytree(bigrams[0], tmp_path / "odd ' \" name")
    assert len(lq.audit(other, other, relations=["capital"], limit=1)) == 1


def test_retention_by_hand() -> None:
    def row(relation: str, status: str, confidence: float | None, p: float = 0.9, kind: str = "city") -> dict:
        return {
            "subject": "S", "relation": relation, "status": status, "confidence_teacher": confidence,
            "p_teacher": p, "kl": 1.0, "type": kind,
        }  # fmt: skip

    rows = [
        row("capital", "kept", 0.95), row("capital", "kept", 0.5), row("capital", "lost", 0.9),
        row("capital", "kept", 0.49), row("mayor", "changed", None, 0.7, "person"), row("mayor", "gained", 0.6),
        row("mayor", "neither", None, None),
    ]  # fmt: skip
    made = {(r["by"], r["part"]): r for r in retention_table(table_of("transfer", rows)).to_pylist()}
    whole = made["all", "all"]
    assert (whole["facts"], whole["kept"], whole["lost"], whole["changed"], whole["gained"]) == (
        5,
        2,
        1,
        1,
        1,
    )
    by_scipy = binomtest(2, 5).proportion_ci(method="wilson")
    assert (whole["low"], whole["high"]) == pytest.approx((by_scipy.low, by_scipy.high))
    assert made["relation", "capital"]["retention"] == pytest.approx(2 / 3)
    assert made["type", "person"]["facts"] == 1 and made["confidence", "0.9-1.0"]["facts"] == 2
    assert made["confidence", "0.8-0.9"]["retention"] is None
