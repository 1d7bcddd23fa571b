"""INFER, EXPLAIN INFER, TRACE and USE MODEL as statements, SQL functions and commands."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import re
import threading
import weakref
from pathlib import Path

import pyarrow as pa
import pytest

import larql_duck as lq
from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.charts.saving import save_chart
from larql_duck.cli import app as cli
from larql_duck.errors import LarqlError, LevelError, SemanticError, VindexError
from larql_duck.extraction.pipeline import extract
from larql_duck.inference.predict import infer_table
from larql_duck.inference.trace_file import read_trace
from tests.conftest import UPSTREAM
from tests.inference.support import PROMPTS

PROMPT = PROMPTS[2]
PROBES = [
    ("capital", "The capital of France is"),
    ("capital", "The capital of Spain is"),
    ("language", "In Japan"),
]


@pytest.fixture(scope="module")
def s(tiny_vindex):
    """A session over a tiny llama with a few probe prompts and labels shown."""
    with lq.connect(tiny_vindex("llama")) as session:
        probes = {"prompt": [p for _, p in PROBES], "relation": [r for r, _ in PROBES]}
        from larql_duck.catalog import as_table

        session.workspace.mount.shadow("probes", as_table("probes", probes))
        features = session.sql(
            "SELECT * REPLACE (CASE WHEN layer = 1 AND feature = 5 THEN 'capital' END AS relation,"
            " CASE WHEN layer = 1 AND feature = 5 THEN 'probe' END AS relation_source) FROM lq.features"
        ).arrow()
        session.workspace.mount.shadow("features", features, replace=True)
        yield session


# -- INFER ---------------------------------------------------------------------------------------------------


def test_infer_is_the_engines_table(s) -> None:
    result = s.lql(f'INFER "{PROMPT}" TOP 7')
    assert result.arrow().equals(infer_table(s.model.engine, PROMPT, top=7))
    assert result.arrow().schema == SCHEMAS["infer"]
    assert len(s.lql(f'INFER "{PROMPT}"')) == 5
    with pytest.raises(SemanticError, match="TOP 0 is out of range: it must be at least 1"):
        s.lql(f'INFER "{PROMPT}" TOP 0')
    compared = s.lql(f'INFER "{PROMPT}" COMPARE')
    assert compared.arrow()["source"].to_pylist() == ["dense"] * 5 + ["walk"] * 5
    assert "128 features" in compared.notices[0]
    assert set(s.lql(f'INFER "{PROMPT}" WALK K 2').df()["source"]) == {"walk"}


def test_clauses_of_infer_change_the_one_pass(s) -> None:
    plain = s.lql(f'INFER "{PROMPT}"').arrow()
    for clause in (
        "ABLATE (0, 3), (2, 7)",
        "ABLATE (0, 3) BY MEAN",
        'STEER RELATION "capital" BY 3 AT LAYER 1',
        f'PATCH FROM "{PROMPTS[3]}" AT LAYER 1 POSITION 2',
    ):
        assert s.lql(f'INFER "{PROMPT}" {clause}').arrow() != plain, clause
    patched = s.lql(f'INFER "{PROMPT}" PATCH FROM "{PROMPTS[3]}" AT LAYER 2')
    other = s.lql(f'INFER "{PROMPTS[3]}"')
    assert patched.arrow()["token_id"].equals(other.arrow()["token_id"])
    # Each clause counts, whatever BY another one has.
    one, two = "ABLATE (0, 3) BY MEAN", "ABLATE (2, 7)"
    texts = (f"{one} {two}", f"{two} {one}", one, two)
    both, turned, *alone = (s.lql(f'INFER "{PROMPT}" {text}').arrow() for text in texts)
    assert both.equals(turned) and both not in alone
    assert s.lql(f'INFER "{PROMPT}"').arrow().equals(plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('INFER "a" TOP -1', "TOP -1"),
        ('INFER "a" WALK K 0', "WALK K 0"),
        ('INFER "a" ABLATE (3, 0)', "layers 0-2"),
        ('INFER "a" ABLATE (0, 64)', "features 0-63"),
        ('INFER "a" STEER RELATION "capital" BY 1 AT LAYER -1', "layers 0-2"),
        ('INFER "a" PATCH FROM "b" AT LAYER 3', "layers 0-2"),
        ('INFER "a" PATCH FROM "b" AT LAYER 0 POSITION -2', "positions count from 0"),
        ('EXPLAIN INFER "a" LAYERS 1-9', "layers 0-2"),
        ('TRACE "a" LAYERS 3', "layers 0-2"),
    ],
)
def test_what_is_out_of_range_is_said_before_anything_runs(s, text: str, words: str) -> None:
    with pytest.raises(SemanticError, match=words) as caught:
        s.lql(text)
    assert caught.value.line == 1 and caught.value.column is not None and caught.value.column > 1


def test_steering_names_the_relations_there_are(s) -> None:
    with pytest.raises(LarqlError, match="did you mean capital"):
        s.lql('INFER "a" STEER RELATION "capitl" BY 1 AT LAYER 1')


# -- EXPLAIN INFER, TRACE ------------------------------------------------------------------------------------


def test_explain_infer_honours_its_clauses(s) -> None:
    result = s.lql(f'EXPLAIN INFER "{PROMPT}"')
    assert result.arrow().schema == SCHEMAS["explain"]
    assert [r[1] for r in result.rows()] == [0] * 3 + [1] * 3 + [2] * 3
    assert "explains" in result.notices[0]
    assert len(s.lql(f'EXPLAIN INFER "{PROMPT}" VERBOSE')) == 30
    assert {r[1] for r in s.lql(f'EXPLAIN INFER "{PROMPT}" TOP 2 LAYERS 0,2').rows()} == {0, 2}
    # A model without bands: every layer is in each.
    assert len(s.lql(f'EXPLAIN INFER "{PROMPT}" KNOWLEDGE')) == 9
    only = s.lql(f'EXPLAIN INFER "{PROMPT}" RELATIONS ONLY').dicts()
    assert [(r["layer"], r["feature"], r["relation"]) for r in only] == [(1, 5, "capital")]
    assert {r["kind"] for r in s.lql(f'EXPLAIN INFER "{PROMPT}" WITH ATTENTION').dicts()} == {
        "feature",
        "head",
        "attention",
    }
    assert "Paris" in s.lql(f'EXPLAIN INFER "{PROMPT}" FOR "Paris"').notices[0]


def test_bands_limit_an_explanation(tiny_model, tmp_path: Path) -> None:
    from larql_duck.inference.model import Model
    from larql_duck.models.opening import open_model

    live = Model(open_model(tiny_model("llama")), bands={"syntax": (0, 0), "knowledge": (1, 2)})
    assert set(live.explain(PROMPT, band="knowledge").table["layer"].to_pylist()) == {1, 2}
    assert set(live.explain(PROMPT, band="knowledge", layers=[0, 2]).table["layer"].to_pylist()) == {2}
    assert set(live.explain(PROMPT, band="all").table["layer"].to_pylist()) == {0, 1, 2}
    with pytest.raises(LarqlError, match="syntax, knowledge"):
        live.explain(PROMPT, band="middle")


def test_trace_and_its_file(s, tmp_path: Path) -> None:
    result = s.lql(f'TRACE "{PROMPT}" FOR "Paris" DECOMPOSE POSITIONS ALL SAVE "{tmp_path}/x.parquet"')
    assert result.arrow().schema == SCHEMAS["trace"]
    assert "saved" in result.notices[-1]
    assert lq.read_trace(tmp_path / "x.parquet").table.equals(result.arrow())
    s.lql(f'TRACE "{PROMPT}" SAVE "{tmp_path}/x.trace"')
    assert read_trace(tmp_path / "x.trace").states.shape == (1, 4, 3, 32)
    traced = s.trace(PROMPT, target="Paris")
    assert save_chart(traced.chart(), tmp_path / "x.html").exists()


def test_results_go_on_through_a_pipe(s) -> None:
    found = s.lql(f'TRACE "{PROMPT}" FOR "Paris" |> SELECT layer, token_rank FROM _ WHERE layer >= 0')
    assert [r[0] for r in found.rows()] == [0, 1, 2]
    with pytest.raises(SemanticError, match="INFER is carried out by Python"):
        s.lql('EXPLAIN SQL INFER "a"')


# -- SQL -----------------------------------------------------------------------------------------------------


def test_functions_over_a_table_of_prompts(s) -> None:
    asked = pa.table({"id": range(4), "prompt": [PROMPTS[0], None, PROMPTS[2], PROMPTS[0]]})
    s.con.register("asked", asked)
    rows = s.sql(
        "SELECT id, t.* FROM asked, LATERAL lq_infer_top(prompt, 3) AS t ORDER BY id, t.rank"
    ).dicts()
    assert [r["id"] for r in rows] == [0] * 3 + [2] * 3 + [3] * 3
    for i in (0, 2):
        alone = infer_table(s.model.engine, PROMPTS[i], top=3)
        assert [r["token_id"] for r in rows if r["id"] == i] == alone["token_id"].to_pylist()
    rows = s.sql(
        "SELECT id, t.* FROM asked, LATERAL lq_trace(prompt, 'Paris') AS t ORDER BY id, t.layer"
    ).dicts()
    alone = s.lql(f'TRACE "{PROMPTS[2]}" FOR "Paris"').dicts()
    own = [r for r in rows if r["id"] == 2]
    assert [r["layer"] for r in own] == [-1, 0, 1, 2]
    for ours, theirs in zip(own, alone, strict=True):
        assert ours["token_rank"] == theirs["token_rank"]
        assert ours["ffn_logit"] == pytest.approx(theirs["ffn_logit"], abs=1e-3)
    rows = s.sql(
        "SELECT id, t.* FROM asked, LATERAL lq_logit_lens(prompt, 1) AS t WHERE id = 2 ORDER BY t.layer"
    ).dicts()
    assert [r["token"] for r in rows] == [r["top_token"] for r in alone]


def test_features_of_a_prompt_join_what_is_known_of_them(s) -> None:
    rows = s.sql(f"FROM lq_features('{PROMPT}', p_k := 192)").dicts()
    assert [r["rank"] for r in rows] == list(range(1, 193))
    assert [r["relation"] for r in rows if (r["layer"], r["feature"]) == (1, 5)] == ["capital"]
    assert all(a["contribution"] >= b["contribution"] for a, b in itertools.pairwise(rows))
    best = s.sql(f"FROM lq_features('{PROMPT}', 'Paris', 3)").dicts()
    explained = s.lql(f'EXPLAIN INFER "{PROMPT}" FOR "Paris" TOP 64').dicts()
    explained.sort(key=lambda r: -r["contribution"])
    assert [(r["layer"], r["feature"]) for r in best] == [(r["layer"], r["feature"]) for r in explained[:3]]


def test_one_bad_prompt_is_named(s) -> None:
    result = s.sql("SELECT p FROM (VALUES ('a'), ('')) v(p), LATERAL lq_infer_top(p, 1) AS t")
    assert result.rows() == [("a",)]
    assert result.notices == ["no answer to '': the prompt is empty; give it at least one token of text"]


def test_rows_without_text_and_a_second_bos_are_told(tiny_vindex) -> None:
    with lq.connect(tiny_vindex("qwen2")) as session:
        result = session.lql('INFER "The" TOP 1000')
        nameless = [(r["rank"], r["token_id"]) for r in result.dicts() if not r["token"]]
        assert len(nameless) == 5  # rows of the embedding beyond the tokenizer
        assert result.notices == [
            f"rank {rank} is id {i}, which the tokenizer does not use: it has no text" for rank, i in nameless
        ]
    with lq.connect(tiny_vindex("mistral")) as session:
        for statement in ("INFER", "EXPLAIN INFER", "TRACE"):
            assert any("'<s>' twice" in n for n in session.lql(f'{statement} "<s>The"').notices)


def test_explaining_a_query_runs_no_pass(tiny_vindex) -> None:
    with lq.connect(tiny_vindex("llama")) as session:
        session.sql("EXPLAIN FROM lq_infer_top('a', 3)")
        assert not session.model.loaded


# -- the model's life ----------------------------------------------------------------------------------------


def test_the_model_is_loaded_once_and_dropped_with_its_vindex(tiny_vindex) -> None:
    with lq.connect(tiny_vindex("llama")) as session:
        session.lql('DESCRIBE "France" STORED')
        assert not session.model.loaded
        session.lql(f'INFER "{PROMPT}"')
        # No variable holds the engine: DuckDB looks for tables among them, and Python keeps what it saw.
        model, engine = weakref.ref(session.model.engine.model), id(session.model.engine)
        session.lql(f'TRACE "{PROMPT}"')
        session.lql('DESCRIBE "France" LIVE')
        assert id(session.model.engine) == engine
        session.use(tiny_vindex("gemma2"))
        gc.collect()
        assert model() is None
        assert session.model.engine.family.name == "gemma2"


def test_settings_of_a_session(tiny_vindex) -> None:
    import torch

    with lq.connect(tiny_vindex("llama")) as session:
        session.configure(compute_dtype="bf16")
        assert session.model.engine.model.dtype == torch.bfloat16
        session.configure(compute_dtype="f32")
        assert session.model.engine.model.dtype == torch.float32
        with pytest.raises(LarqlError, match="f64"):
            session.configure(compute_dtype="f64")


def test_threads_take_turns(s) -> None:
    expected = {p: s.lql(f'INFER "{p}"').rows() for p in PROMPTS}
    wrong: list[str] = []

    def ask(prompt: str, clause: str) -> None:
        for _ in range(6):
            found = s.lql(f'INFER "{prompt}" {clause}').rows()
            if (found == expected[prompt]) != (clause == ""):
                wrong.append(prompt)

    jobs = [(p, c) for p in PROMPTS for c in ("", "ABLATE (0, 3), (1, 5), (2, 7)")]
    threads = [threading.Thread(target=ask, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_browse_vindex_names_the_command() -> None:
    with lq.connect(UPSTREAM / "browse-f16.vindex") as session:
        for text in ('INFER "a"', 'EXPLAIN INFER "a"', 'TRACE "a"'):
            with pytest.raises(LevelError, match="--level inference"):
                session.lql(text)


def test_attached_vindexes_have_models_of_their_own(tiny_vindex) -> None:
    import duckdb

    con = duckdb.connect()
    a, b = lq.attach(con, tiny_vindex("llama"), "a"), lq.attach(con, tiny_vindex("gpt2"), "b")
    rows = con.sql(
        "SELECT x.token_id, y.token_id FROM a.lq_infer_top('The capital', 1) AS x, b.lq_infer_top('The capital', 1) AS y"
    ).fetchall()
    expected = tuple(s.lql('INFER "The capital" TOP 1').dicts()[0]["token_id"] for s in (a, b))
    assert rows == [expected]
    a.close()
    b.close()


# -- USE MODEL -----------------------------------------------------------------------------------------------


def test_a_model_without_a_vindex(tiny_model, tiny_vindex, tmp_path: Path) -> None:
    path = tiny_model("llama")
    with lq.connect() as session:
        with pytest.raises(VindexError, match=r"no vindex is open: .*connect\("):
            session.lql('INFER "a"')
        opened = session.lql(f'USE MODEL "{path}"')
        assert opened.dicts()[0]["layers"] == 3 and "EXTRACT MODEL" in opened.notices[0]
        with lq.connect(tiny_vindex("llama")) as other:
            for text in (
                f'INFER "{PROMPT}"',
                f'EXPLAIN INFER "{PROMPT}" WITH ATTENTION',
                f'TRACE "{PROMPT}"',
            ):
                ours, theirs = session.lql(text).arrow(), other.lql(text).arrow()
                for a, b in zip(ours.to_pylist(), theirs.to_pylist(), strict=True):
                    # The vindex knows which token a feature writes.
                    names = ("token", "down_tokens", "activates_on")
                    b |= {n: a[n] for n in names} if a.get("kind") == "feature" else {}
                    assert a == {
                        k: pytest.approx(v, abs=1e-4) if isinstance(v, float) else v for k, v in b.items()
                    }
        stats = {r["name"]: r["value"] for r in session.lql("STATS").dicts()}
        assert stats["family"] == "llama" and stats["features"] == "192"
        assert len(session.lql(f'INFER "{PROMPT}" ABLATE (0, 3) BY MEAN')) == 5
        with pytest.raises(LarqlError, match="probe prompts"):
            session.lql('INFER "a" STEER RELATION "capital" BY 1 AT LAYER 0')
        with pytest.raises(LarqlError, match="layers 0 to 2"):
            session.lql('INFER "a" ABLATE (9, 3)')
        with pytest.raises(VindexError, match="AUTO_EXTRACT"):
            session.lql('DESCRIBE "France"')
        with pytest.raises(VindexError, match="open it with USE"):
            session.lql(f'USE MODEL "{tiny_vindex("llama")}"')
        session.use(tiny_vindex("gpt2"))
        assert session.model.engine.family.name == "gpt2"
        session.lql(f'USE MODEL "{path}"')
        with pytest.raises(LarqlError):
            session.sql("FROM model_graph")


def test_auto_extract_makes_the_vindex_that_a_statement_needs(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Asking for facts is not what this is about, and takes its time.
    monkeypatch.setattr("larql_duck.commands.extracting.make_vindex", functools.partial(extract, probe=False))
    path = tiny_model("gemma")
    with lq.connect() as session:
        session.lql(f'USE MODEL "{path}" AUTO_EXTRACT')
        session.lql(f'INFER "{PROMPT}"')
        session.lql("SELECT 1")
        session.lql("SHOW MODELS")
        assert not list(tmp_path.iterdir())
        found = session.lql('DESCRIBE "France" |> SELECT count(*) FROM _')
        assert len(found) == 1 and session.vindex is not None
        assert [p.name for p in tmp_path.glob("*.vindex")] == [f"{path.name}.vindex"]
    with lq.connect() as session:
        session.lql(f'USE MODEL "{path}" AUTO_EXTRACT')
        found = session.lql("SELECT count(*) FROM FEATURES")
        assert "made from this model before" in found.notices[0] and found.one() == 192
    with lq.connect() as session:
        (tmp_path / f"{tiny_model('llama').name}.vindex").symlink_to(tmp_path / f"{path.name}.vindex")
        session.lql(f'USE MODEL "{tiny_model("llama")}" AUTO_EXTRACT')
        with pytest.raises(VindexError, match="of another model"):
            session.lql("SHOW LAYERS")


def test_the_page_names_functions_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "inference.md").read_text()
    names = re.findall(r"^\| `(lq_\w+)\(", page, re.M)
    assert names
    for name in names:
        assert f"{{schema}}.{name}(" in (Path(__file__).parents[2] / "sql" / "72_forward.sql").read_text()


# -- commands ------------------------------------------------------------------------------------------------


def test_run_streams_the_text(tiny_vindex, tiny_model, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run", str(tiny_vindex("llama")), PROMPTS[0], "-n", "5"]) == 0
    first = capsys.readouterr().out
    assert cli.run(["run", str(tiny_model("llama")), PROMPTS[0], "-n", "5"]) == 0
    assert capsys.readouterr().out == first and first.endswith("\n") and len(first) > 3
    assert cli.run(["run", str(tiny_vindex("llama")), PROMPT, "--chat", "-n", "3"]) == 0
    assert cli.run(["run", str(tiny_vindex("mistral")), PROMPT, "--chat"]) == 1
    assert "no chat template" in capsys.readouterr().err
    assert cli.run(["run", str(UPSTREAM / "browse-f16.vindex"), PROMPT]) == 1
    assert "--level inference" in capsys.readouterr().err


def test_trace_prints_draws_and_keeps(
    tiny_vindex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["trace", str(tiny_vindex("llama")), PROMPT, "--for", "Paris", "--layers", "1-2", "--jsonl"]
    files = ["--plot", str(tmp_path / "x.html"), "--save", str(tmp_path / "x.parquet")]
    assert cli.run([*arguments, *files]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["layer"] for r in rows] == [1, 2]
    assert (tmp_path / "x.html").read_text().startswith("<!DOCTYPE html>")
    assert read_trace(tmp_path / "x.parquet").table.num_rows == 2
    assert cli.run([*arguments, "--plot", str(tmp_path / "x.pdf")]) == 1
    assert ".html, .svg, .png" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ['INFER ""', 'EXPLAIN INFER ""', 'TRACE ""'])
def test_an_empty_prompt_is_refused_before_the_model_is_loaded(tiny_vindex, asked: str) -> None:
    with lq.connect(tiny_vindex("gpt2")) as session:
        with pytest.raises(LarqlError, match="the prompt is empty; give it at least one token"):
            session.lql(asked)
        assert not session.model.loaded
