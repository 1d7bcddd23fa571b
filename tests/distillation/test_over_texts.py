"""DIFF ... TEXTS and score: KL and bits are those of transformers, whatever the tokenizers."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import larql_duck as lq
from larql_duck.catalog.comparison_tables import SCHEMAS
from larql_duck.cli import app as cli
from larql_duck.distillation.text_diff import TextDiff, write_text_diff
from larql_duck.errors import LarqlError, LevelError, LqlSyntaxError, SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.models.opening import open_model
from tests.tiny import make_tiny

TEXTS = ["The capital of France is Paris in Europe", "hot and cold", "", "Berlin is a city in Germany"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def models(tiny_model, made_once) -> tuple[Path, Path]:
    return tiny_model("llama"), made_once("llama-other.model", lambda path: make_tiny("llama", path, seed=1))


def _log_p(model: Path, text: str) -> tuple[list[int], torch.Tensor]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([ids])).logits
    return ids, torch.log_softmax(logits[0].double(), -1)


def test_every_token_has_transformers_kl(models: tuple[Path, Path], corpus: Path) -> None:
    found = lq.diff_texts(*models, corpus, tokens=5)
    assert found.columns == SCHEMAS["text_diff"].names
    rows = found.dicts()
    assert sorted({r["doc"] for r in rows}) == [0, 1, 3]
    for doc in (0, 1, 3):
        own = [r for r in rows if r["doc"] == doc]
        (ids, p), (_, q) = (_log_p(model, TEXTS[doc]) for model in models)
        assert [r["position"] for r in own] == list(range(min(5, len(ids))))
        for r in own:
            a, b = p[r["position"]], q[r["position"]]
            assert r["kl"] == pytest.approx(float((a.exp() * (a - b)).sum()), rel=1e-4)
            assert r["p_a"] == pytest.approx(float(a.exp().max()), rel=1e-4)
            assert r["top_a_in_b"] == pytest.approx(float(b[a.argmax()].exp()), rel=1e-4)
            assert r["top_b_in_a"] == pytest.approx(float(a[b.argmax()].exp()), rel=1e-4)
    apart = [r for r in rows if r["top_a"] != r["top_b"]]
    tokens = found.tokens.dicts()
    assert sum(t["places"] for t in tokens if t["preferred_by"] == "a") == len(apart)
    first = tokens[0]
    top, p = f"top_{first['preferred_by']}", f"p_{first['preferred_by']}"
    own = [r for r in apart if r[top] == first["token"]]
    assert (first["places"], first["p"]) == (len(own), pytest.approx(sum(r[p] for r in own) / len(own)))


def test_a_model_does_not_differ_from_itself(models: tuple[Path, Path], corpus: Path) -> None:
    found = lq.diff_texts(models[0], models[0], corpus)
    assert max(r["kl"] for r in found.dicts()) < 1e-6 and len(found.tokens) == 0


@pytest.mark.parametrize("other", ["gemma3_text", "mistral"])
def test_other_tokenizers_are_compared_where_tokens_of_both_end(tiny_model, corpus: Path, other: str) -> None:
    a, b = (Engine.load(open_model(tiny_model(family))) for family in ("llama", other))
    diff = TextDiff(a, b)
    mine, theirs = diff.shared
    assert len(mine) > 20
    assert all(
        a.tokenizer.token(i) == b.tokenizer.token(j)
        for i, j in zip(mine.tolist(), theirs.tolist(), strict=True)
    )
    text = diff.read(0, TEXTS[0], 64)
    assert "".join(text.spans) == TEXTS[0][: len("".join(text.spans))] and len(text.spans) > 3
    rows = diff.table([text]).to_pylist()
    p, q = (
        torch.log_softmax(engine.capture(engine.pad(list(ids)), {"residual"}).need("logits")[0].double(), -1)
        for engine, ids in zip((a, b), text.ids, strict=True)
    )
    at = rows[-1]
    common = (p[mine].exp(), q[theirs].exp())
    rest = [1 - float(x.sum()) for x in common]
    by_hand = float((common[0] * (common[0] / common[1]).log()).sum()) + rest[0] * math.log(rest[0] / rest[1])
    assert at["kl"] == pytest.approx(by_hand, rel=1e-3)


def test_scores_are_transformers_bits(models: tuple[Path, Path], corpus: Path) -> None:
    found = lq.text_scores(models[0], corpus, lens=True, tokens=6)
    rows = {(r["doc"], r["layer"]): r for r in found.dicts()}
    for doc in (0, 1, 3):
        ids, log_p = _log_p(models[0], TEXTS[doc])
        ids = ids[:6]
        bits = -sum(float(log_p[i, t]) for i, t in enumerate(ids[1:])) / math.log(2)
        row = rows[doc, None]
        assert row["bits_per_token"] == pytest.approx(bits / (len(ids) - 1), rel=1e-4)
        assert row["bits_per_character"] == pytest.approx(bits / row["characters"], rel=1e-4)
        # The last layer's reading is the model's own.
        assert rows[doc, 2]["bits_per_token"] == pytest.approx(row["bits_per_token"], rel=1e-5)
        assert rows[doc, 0]["bits_per_token"] != pytest.approx(row["bits_per_token"], rel=1e-2)
    total = sum(rows[d, None]["bits_per_token"] * rows[d, None]["tokens"] for d in (0, 1, 3))
    assert rows[None, None]["bits_per_token"] * rows[None, None]["tokens"] == pytest.approx(total)
    assert {layer for _, layer in rows} == {None, -1, 0, 1, 2}


def test_lql(tiny_vindex, models: tuple[Path, Path], corpus: Path, world: Path) -> None:
    with lq.connect(tiny_vindex("llama")) as s:
        result = s.lql(f'DIFF CURRENT "{models[1]}" TEXTS "{corpus}" SAMPLES 2 TOKENS 4 LIMIT 3')
        kl = [r["kl"] for r in result.dicts()]
        assert len(kl) == 3 and kl == sorted(kl, reverse=True)
        assert s.sql("SELECT count(DISTINCT doc), max(position) FROM text_diff").rows() == [(2, 3)]
        assert s.sql("SELECT max(kl) FROM text_diff").one() == kl[0]
        assert s.lql("SELECT count(*) FROM diff_tokens").one() > 0
        with pytest.raises(SemanticError, match="SAMPLES"):
            s.lql(f'DIFF CURRENT "{models[1]}" TEXTS "{corpus}" SAMPLES 0')
        with pytest.raises(LqlSyntaxError, match="TEXTS"):
            s.lql('DIFF CURRENT "b" TOKENS 3')
        with pytest.raises(LqlSyntaxError, match="without TEXTS"):
            s.lql('DIFF CURRENT "b" TEXTS "c" LAYER 3')
        with pytest.raises(LarqlError, match="none"):
            s.lql(f'DIFF CURRENT "{models[1]}" TEXTS "{corpus.parent / "none.txt"}"')
    with lq.connect(world) as s, pytest.raises(LevelError, match="TEXTS"):
        s.lql(f'DIFF CURRENT "{models[1]}" TEXTS "{corpus}"')


def test_command_line(
    models: tuple[Path, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d.parquet"
    assert cli.run(["diff-texts", *map(str, models), str(corpus), "-o", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert '"preferred_by"' in printed.out and "3 texts of" in printed.err and "mean KL" in printed.err
    assert pq.read_table(out).schema.equals(SCHEMAS["text_diff"])
    assert cli.run(["score", str(models[0]), str(corpus), "--samples", "1", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == ",".join(SCHEMAS["text_scores"].names)
    (tmp_path / "empty.txt").write_text("\n\n")
    assert cli.run(["score", str(models[0]), str(tmp_path / "empty.txt")]) == 1
    assert cli.run(["diff-texts", *map(str, models), str(tmp_path / "empty.txt")]) == 1
    assert capsys.readouterr().err.count("holds no text") == 2


def test_an_interrupted_comparison_goes_on(
    models: tuple[Path, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("larql_duck.distillation.text_diff._BLOCK", 1)
    a, b = (Engine.load(open_model(model)) for model in models)
    whole = pq.read_table(write_text_diff(a, b, corpus, tmp_path / "whole.parquet"))
    real, calls = TextDiff.table, []

    def table(self: TextDiff, texts: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, texts)

    monkeypatch.setattr(TextDiff, "table", table)
    with pytest.raises(KeyboardInterrupt):
        write_text_diff(a, b, corpus, tmp_path / "d.parquet")
    write_text_diff(a, b, corpus, tmp_path / "d.parquet")
    assert len(calls) == 4 and pq.read_table(tmp_path / "d.parquet").equals(whole)
