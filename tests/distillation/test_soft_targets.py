"""Soft targets: transformers' own log-softmax, resumable, and what DistillKit and TRL read of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from larql_duck.atlas.texts import open_corpus
from larql_duck.catalog.comparison_tables import SCHEMAS
from larql_duck.cli import app as cli
from larql_duck.distillation.soft_export import write_distillkit, write_trl
from larql_duck.distillation.soft_targets import (
    EXAMPLES,
    fact_examples,
    prompt_examples,
    text_examples,
    write_soft_targets,
)
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.models.opening import open_model
from larql_duck.vindex.store import Vindex

PROMPTS = ["The capital of France is", "hot", "The language of Japan is"]


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return Engine.load(open_model(tiny_model("llama")))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_numbers_are_transformers_own(tiny_model, tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(family))
    engine = Engine.load(open_model(tiny_model(family)))
    texts = tmp_path / "texts.txt"
    texts.write_text("The capital of France is Paris in Europe\nhot\n\nBerlin is a city in Germany\n")
    examples = text_examples(engine, open_corpus(texts), tokens=6)
    out = write_soft_targets(engine, examples, tmp_path / "soft.parquet", k=7)
    table = pq.read_table(out)
    assert table.schema.equals(SCHEMAS["soft_targets"], check_metadata=False)
    listed = json.loads(table.schema.metadata[EXAMPLES])
    rows = table.to_pylist()
    assert {r["example"] for r in rows} == set(range(len(listed)))
    for number, example in enumerate(listed):
        assert example["ids"] == tokenizer(example["completion"])["input_ids"][:6]
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([example["ids"]])).logits[0].double(), -1)
        for position in range(len(example["ids"])):
            own = [r for r in rows if (r["example"], r["position"]) == (number, position)]
            assert [r["rank"] for r in own] == [*range(1, 8), 0]
            for r in own[:-1]:
                assert r["logprob"] == pytest.approx(float(expected[position, r["token_id"]]), abs=1e-4)
                assert r["token"] == engine.tokenizer.token(r["token_id"])
            assert own[0]["token_id"] == int(expected[position].argmax())
            tail = 1 - sum(math.exp(r["logprob"]) for r in own[:-1])
            assert (own[-1]["token_id"], math.exp(own[-1]["logprob"])) == (
                None,
                pytest.approx(tail, abs=1e-5),
            )


def test_prompts_have_one_position_and_facts_those_of_their_answer(
    engine: Engine, probed_vindex, tmp_path: Path
) -> None:
    soft = pq.read_table(
        write_soft_targets(engine, prompt_examples(engine, PROMPTS), tmp_path / "p.parquet", k=3)
    )
    ids = engine.tokenizer.encode_batch(PROMPTS)
    assert sorted(set(zip(soft["example"].to_pylist(), soft["position"].to_pylist(), strict=True))) == [
        (i, len(row) - 1) for i, row in enumerate(ids)
    ]
    vindex = Vindex.open(probed_vindex("llama"))
    facts = vindex.table("facts")
    some = facts.filter(facts["relation"].to_numpy(zero_copy_only=False) == "capital")
    examples = fact_examples(engine, facts, "relation = 'capital'")
    assert len(examples) == some.filter(some["rank"].to_numpy() == 1).num_rows > 0
    for e in examples:
        assert engine.tokenizer.decode(e.ids[e.start :], skip_special=True).strip() == e.completion.strip()
        assert list(e.positions) == list(range(e.start - 1, len(e.ids)))
    with pytest.raises(LarqlError, match=r"no condition over facts.*columns: subject"):
        fact_examples(engine, facts, "nonsense = 1")
    with pytest.raises(LarqlError, match="no condition over facts"):
        fact_examples(engine, facts, "relation = ")


def test_an_interrupted_run_goes_on(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("larql_duck.distillation.soft_targets._BLOCK", 1)
    examples = prompt_examples(engine, PROMPTS)
    whole = pq.read_table(write_soft_targets(engine, examples, tmp_path / "whole.parquet", k=3))
    real, calls = Engine.run, []

    def run(self: Engine, *args: object, **options: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(Engine, "run", run)
    out = tmp_path / "soft.parquet"
    with pytest.raises(KeyboardInterrupt):
        write_soft_targets(engine, examples, out, k=3)
    assert not out.exists()
    write_soft_targets(engine, examples, out, k=3)
    assert len(calls) == 4 and pq.read_table(out).equals(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["soft.parquet", "whole.parquet"]


def test_distillkit_reads_it_back(engine: Engine, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The capital of France is Paris\nhot and cold\n")
    examples = text_examples(engine, open_corpus(texts), tokens=32)
    soft = write_soft_targets(engine, examples, tmp_path / "soft.parquet", k=5)
    folder = write_distillkit(soft, tmp_path / "kit")
    config = json.loads((folder / "compression_config.json").read_text())
    assert (config["d"], config["k"], config["exact_k"], config["delta_encoding"]) == (
        engine.vocab,
        5,
        5,
        False,
    )
    bits = math.ceil(math.log2(engine.vocab))
    rows = pq.read_table(folder / "data_0.parquet").to_pylist()
    stored = pq.read_table(soft).to_pylist()
    for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
        assert row["input_ids"] == list(example.ids)
        assert len(row["compressed_logprobs"]) == len(example.ids) - 1
        for position in range(len(example.ids) - 1):
            own = [r for r in stored if (r["example"], r["position"]) == (number, position) and r["rank"]]
            # As DistillKit unpacks them: a stream of bits, highest first; then f32 values as they lie.
            stream = "".join(f"{byte:08b}" for byte in row["bytepacked_indices"][position])
            ids = [int(stream[i * bits : (i + 1) * bits], 2) for i in range(5)]
            values = torch.tensor(row["compressed_logprobs"][position], dtype=torch.uint8).view(torch.float32)
            assert ids == [r["token_id"] for r in own]
            np.testing.assert_array_equal(values.numpy(), np.float32([r["logprob"] for r in own]))
    prompts = write_soft_targets(engine, prompt_examples(engine, PROMPTS), tmp_path / "p.parquet", k=5)
    with pytest.raises(LarqlError, match="--texts"):
        write_distillkit(prompts, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_trl_gets_prompts_and_completions(engine: Engine, tmp_path: Path) -> None:
    soft = write_soft_targets(engine, prompt_examples(engine, PROMPTS), tmp_path / "p.parquet", k=2)
    lines = [json.loads(line) for line in write_trl(soft, tmp_path / "t.jsonl").read_text().splitlines()]
    best = engine.logits(PROMPTS).argmax(-1).tolist()
    assert lines == [
        {"prompt": p, "completion": engine.tokenizer.token(i)} for p, i in zip(PROMPTS, best, strict=True)
    ]
    with pytest.raises(LarqlError, match="cannot be read as Parquet"):
        write_trl(tmp_path / "t.jsonl", tmp_path / "u.jsonl")


def test_command_line(tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(PROMPTS))
    model, out = str(tiny_model("llama")), str(tmp_path / "s.parquet")
    assert cli.run(["soft-targets", model, "--prompts", str(prompts), "-k", "4", "-o", out]) == 0
    assert pq.read_table(out).num_rows == 3 * 5
    assert cli.run(["export-targets", out, "--to", "trl", "-o", str(tmp_path / "t.jsonl")]) == 0
    capsys.readouterr()
    for arguments, said in (
        ([model], "give one of --prompts"),
        ([model, "--facts"], "a model alone has no facts"),
        ([model, "--prompts", str(prompts), "--where", "true"], "--where belongs to --facts"),
        (["--prompts", str(prompts)], "name a TEACHER"),
        ([model, "--prompts", str(tmp_path / "none")], "none"),
    ):
        assert cli.run(["soft-targets", *arguments, "-o", str(tmp_path / "x.parquet")]) != 0
        assert said in capsys.readouterr().err
    prompts.write_text("\n")
    assert cli.run(["soft-targets", model, "--prompts", str(prompts), "-o", out]) == 1
    assert "no examples" in capsys.readouterr().err
