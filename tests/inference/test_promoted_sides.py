"""A feature that activates negatively promotes what its down column suppresses, wherever it is shown."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import larql_duck as lq
from larql_duck.catalog import FILES, LATER_COLUMNS, LATER_TABLES
from larql_duck.cli.app import run
from larql_duck.errors import VindexError
from larql_duck.models.tokenizer import token_text
from larql_duck.vindex.arrays import hash_file
from larql_duck.vindex.fields import read_json
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.publish import seal_manifest

PROMPT = "The capital of France is"
WITH_ACTIVATION = [
    f'EXPLAIN INFER "{PROMPT}" TOP 10',
    'WALK "France" TOP 100',
    'EXPLAIN WALK "France" TOP 100 VERBOSE',
    f'WALK "{PROMPT}" TOP 40 BASIS CONTEXT',
    f'EXPLAIN WALK "{PROMPT}" BASIS CONTEXT VERBOSE',
    f"SELECT * FROM lq_features('{PROMPT}', p_k := 60)",
    "SELECT * FROM explain_fact('France', NULL)",
]


@pytest.fixture(scope="module")
def vindex(probed_vindex) -> Path:
    return probed_vindex("llama")


def promoted(session, layer: int, feature: int, negative: bool, n: int) -> list[str]:
    """The first n tokens of a feature's side, as tables show them."""
    side = "out_neg" if negative else "out"
    rows = session.sql(
        f"SELECT token FROM lq.feature_tokens WHERE layer = {layer} AND feature = {feature}"
        f" AND side = '{side}' AND rank <= {n} ORDER BY rank"
    )
    return [token_text(row["token"]) for row in rows.dicts()]


@pytest.mark.parametrize("statement", WITH_ACTIVATION)
def test_the_sign_of_the_activation_chooses_the_tokens(statement: str, vindex: Path) -> None:
    with lq.connect(vindex) as session:
        rows = session.lql(statement).dicts()
        rows = [r for r in rows if r["activation"] is not None]
        assert {r["activation"] < 0 for r in rows} == {True, False}
        for r in rows[:: max(1, len(rows) // 20)]:
            slot = (r["layer"], r["feature"])
            tokens = promoted(session, *slot, r["activation"] < 0, len(r["down_tokens"]))
            assert [token_text(t) for t in r["down_tokens"]] == tokens
            assert token_text(r["token"] if "kind" in r else r["top_token"]) == tokens[0]
            known = session.sql(
                f"SELECT activates_on FROM lq.features WHERE (layer, feature) = {slot}"
            ).dicts()
            assert known == [{"activates_on": r["activates_on"]}]


def test_features_show_their_usual_side(vindex: Path) -> None:
    with lq.connect(vindex) as session:
        rows = session.lql("SHOW FEATURES 1 LIMIT 20").dicts()
        assert {r["sign"] for r in rows} == {1, -1}
        for r in rows:
            tokens = promoted(session, r["layer"], r["feature"], r["sign"] < 0, 3)
            assert (r["top_token"], r["down_tokens"]) == (tokens[0], tokens)


def test_edges_keep_the_activation_that_was_measured(vindex: Path) -> None:
    with lq.connect(vindex) as session:
        edges = session.sql(
            "SELECT e.layer, e.feature, e.activation, f.prompt FROM lq.edges AS e"
            " JOIN lq.facts AS f USING (subject, relation, object) WHERE e.source = 'probe' LIMIT 5"
        ).dicts()
        for e in edges:
            table = session.model.activations(e["prompt"], layers=[e["layer"]])
            [row] = [r for r in table.to_pylist() if r["feature"] == e["feature"]]
            assert row["activation"] == pytest.approx(e["activation"], abs=1e-4)
    assert len(edges) == 5


def as_of_2_0(vindex: Path) -> None:
    """Make the vindex one of schema 2.0: without later tables and columns, positive tokens shown everywhere, p shown as
    the confidence of facts about which nothing was learnt.
    """
    raw = read_json(vindex / INDEX)
    section = raw["larql_duck"]
    section["schema_version"] = "2.0"
    for name in LATER_TABLES:
        (vindex / "tables" / f"{name}.parquet").unlink()
        del section["tables"][name]
    for name, columns in LATER_COLUMNS.items():
        path = vindex / "tables" / f"{name}.parquet"
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            if row.get("sign") == -1:
                row["down_tokens"] = row["opposite_tokens"]
                row["top_token"] = row["down_tokens"][0]
            if name == "facts":
                row["calibrated"] = row["calibrated"] != "none"
                row["confidence"] = row["confidence"] if row["calibrated"] else row["p"]
        schema = pa.schema([f.with_type(pa.bool_()) if f.name == "calibrated" else f for f in FILES[name]])
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table.drop_columns(list(columns)), path)
        section["tables"][name] |= {"bytes": path.stat().st_size, **hash_file(path)}
    (vindex / INDEX).write_bytes(seal_manifest(raw))


def test_a_script_for_older_duckdbs_of_a_vindex_of_the_schema_before(
    probed_vindex, capsys: pytest.CaptureFixture[str]
) -> None:
    path = probed_vindex.__wrapped__("llama")
    as_of_2_0(path)
    assert run(["model-sql", str(path)]) == 0
    with lq.connect(path) as session, duckdb.connect() as con:
        con.execute(capsys.readouterr().out)
        for query in (
            "FROM features ORDER BY layer, feature",
            "SELECT * EXCLUDE (subject_key, object_key) FROM facts ORDER BY ALL",
            *(f"FROM {name} ORDER BY ALL" for name in ("edges", "accuracy", "prompts", "priors")),
        ):
            assert con.sql(query).fetchall() == session.sql(query).fetchall()
        assert con.sql("FROM explain_fact('France', NULL)").fetchall()


def test_a_vindex_of_the_schema_before_opens(probed_vindex, capsys: pytest.CaptureFixture[str]) -> None:
    path = probed_vindex.__wrapped__("llama")
    as_of_2_0(path)
    with lq.connect(path) as session:
        # A note that can be followed.
        again = f"lacks the features' usual sign: larql-duck extract {path} -o NEW.vindex --level all\n"
        said = capsys.readouterr().err
        assert "extracted by an earlier version" in said and said.endswith(again)
        assert session.sql("SELECT DISTINCT sign FROM lq.features").dicts() == [{"sign": 1}]
        [fact] = session.sql(
            "SELECT DISTINCT confidence, calibrated, correct, held_out FROM lq.facts"
        ).dicts()
        assert fact == {"confidence": None, "calibrated": "none", "correct": None, "held_out": None}
        assert session.sql("SELECT sum(asked) > 0, sum(judged) FROM accuracy").rows() == [(True, 0)]
        rows = session.lql(f'EXPLAIN INFER "{PROMPT}" TOP 10').dicts()
        for r in rows:
            tokens = promoted(session, r["layer"], r["feature"], r["activation"] < 0, 3)
            assert [token_text(t) for t in r["down_tokens"]] == tokens and len(r["activates_on"]) == 3
        assert session.sql("SELECT count(*) AS n FROM explain_fact('France', NULL)").dicts()[0]["n"] > 0
        session.probe(["Spain"], ["capital"])
    with lq.connect(path) as session:
        found = session.sql("SELECT count(activation) AS n FROM lq.edges WHERE subject = 'Spain'").dicts()
        assert found[0]["n"] > 0


def test_a_vindex_of_the_schema_before_types_opens_and_learns_them(probed_vindex) -> None:
    path = probed_vindex.__wrapped__("llama")
    raw = read_json(path / INDEX)
    raw["larql_duck"]["schema_version"] = "3.0"
    tables = raw["larql_duck"]["tables"]
    for name in ("type_probe", "entity_types"):
        (path / "tables" / f"{name}.parquet").unlink()
        del tables[name]
    # Columns that came with mixtures and hybrids.
    for name, column in {"features": "expert", "layers": "mixer"}.items():
        file = path / "tables" / f"{name}.parquet"
        pq.write_table(pq.read_table(file).drop_columns([column]), file)
        tables[name] |= {"bytes": file.stat().st_size, **hash_file(file)}
    (path / INDEX).write_bytes(seal_manifest(raw))
    with lq.connect(path) as session:
        assert session.sql("SELECT count(*) FROM entity_types").rows() == [(0,)]
        assert session.lql('DESCRIBE "Zanzibar"').dicts()
        told = session.fit_types()
        assert told.dicts() and not {"weights", "intercept"} & set(told.arrow().column_names)
    with lq.connect(path) as session:
        subjects = {s for (s,) in session.sql("SELECT DISTINCT subject FROM entity_types").rows()}
        assert subjects and subjects <= {s for (s,) in session.sql("SELECT subject FROM facts").rows()}
    # What every vindex of its schema has may not be missing.
    raw = read_json(path / INDEX)
    del raw["larql_duck"]["tables"]["prompts"]
    raw["larql_duck"]["schema_version"] = "3.0"
    (path / INDEX).write_bytes(seal_manifest(raw))
    with pytest.raises(VindexError, match="table prompts is not listed"):
        lq.connect(path)
