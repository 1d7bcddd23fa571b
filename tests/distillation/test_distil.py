"""Students that are trained, from the command line's options to a directory that loads, extracts and is asked again."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from larql_duck.distillation import distil as module
from larql_duck.distillation.distil import distil
from larql_duck.distillation.focus import held_out
from larql_duck.distillation.settings import LossSettings, RoundSettings, TrainingData, TrainSettings
from larql_duck.distillation.student import make_student
from larql_duck.errors import LarqlError, VindexError
from larql_duck.inference.model import Model
from tests.conftest import Make

pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("accelerate", "peft")),
        reason="the extra distil is not installed: pip install 'larql-duck[distil]'",
    ),
]
Train = Callable[..., pa.Table]


@pytest.fixture(scope="module")
def teacher(probed_vindex: Make) -> Path:
    return probed_vindex("llama")


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(Model.open(teacher), tmp_path_factory.mktemp("students") / "student", layers=2).path


@pytest.fixture
def train(teacher: Path, student: Path) -> Train:
    """A function (out, **options) -> the rounds of a short training run; options are fields of the settings."""

    def run(
        out: Path, *, resume: bool = False, start: Path = student, by: Path = teacher, **given: Any
    ) -> pa.Table:
        def fill(settings: Any) -> Any:
            return replace(settings, **{k: v for k, v in given.items() if hasattr(settings, k)})

        return distil(
            Model.open(by),
            start,
            out,
            lessons=fill(TrainingData(confidence=0.0, held_out=0.3, size=16)),
            loss=fill(LossSettings()),
            settings=fill(TrainSettings(steps=4, batch=6, learning_rate=5e-3)),
            plan=fill(RoundSettings(rounds=2)),
            resume=resume,
        ).rounds

    return run


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_a_student_learns_what_its_teacher_states(train: Train, student: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "taught"
    rows = train(out, steps=60, rounds=3, batch=6, mix=0.0).to_pylist()
    assert [(row["round"], row["step"]) for row in rows] == [(0, 0), (1, 20), (2, 40), (3, 60)]
    assert rows[-1]["kept_trained"] > rows[0]["kept_trained"]
    assert rows[-1]["kept_trained"] == rows[-1]["trained"] > 0
    assert rows[1]["loss"] > rows[3]["loss"] and rows[3]["tokens"] > rows[1]["tokens"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"taught"}
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert plain.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(out)("The capital of France is").input_ids
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    assert not any(path.suffix in (".bin", ".pt") for path in out.iterdir())
    before, after = weights(student), weights(out)
    assert (
        before.keys() == after.keys()
        and before["model.norm.weight"].dtype == after["model.norm.weight"].dtype
    )


def test_the_result_extracts(train: Train, tmp_path: Path) -> None:
    from larql_duck.extraction import extract

    train(tmp_path / "taught", steps=2, rounds=1)
    extract(tmp_path / "taught", tmp_path / "taught.vindex", probe=False, in_basis="embedding")
    assert Model.open(tmp_path / "taught.vindex").engine.n_layers == 2


def test_held_out_subjects_are_never_read(
    train: Train, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, read = Model.open(teacher).engine.tokenizer, []

    class Watched(module.Drawn):
        def __getitem__(self, row: int) -> Any:
            example = super().__getitem__(row)
            read.append(tokenizer.decode(example.ids))
            return example

    monkeypatch.setattr(module, "Drawn", Watched)
    rows = train(tmp_path / "taught", mix=0.0, focus="uniform", held_out=0.5)
    from tests.editing.tables import SUBJECTS

    away = [name for name in SUBJECTS if held_out(name, 0.5)]
    assert away and rows.to_pylist()[0]["held_out"] > 0
    assert read and not [text for text in read for name in away if f"of {name} is" in text[-40:]]


def test_an_interrupted_run_goes_on_to_the_same_student(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", steps=6, rounds=3, focus="lost")
    measured, calls = module.perplexity, []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(module, "perplexity", stopped)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path / "taught", steps=6, rounds=3, focus="lost")
    assert "--resume goes on" in " ".join(caught.value.__notes__)
    with pytest.raises(LarqlError, match="other options"):
        train(tmp_path / "taught", steps=6, rounds=3, focus="uniform", resume=True)
    again = train(tmp_path / "taught", steps=6, rounds=3, focus="lost", resume=True)
    timed = ["seconds", "loss"]
    assert again.drop_columns(timed).to_pylist() == whole.drop_columns(timed).to_pylist()
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "taught")[name]), name
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "taught"}


def test_training_that_diverges_is_said(train: Train, tmp_path: Path) -> None:
    with pytest.raises(LarqlError, match=r"training diverged.*lower --learning-rate"):
        train(tmp_path / "taught", hidden=1e6, learning_rate=10.0, steps=40, rounds=1, alpha=1.0)


def test_the_benchmark_compares_focused_with_uniform_prompts(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import distil as benchmark

    monkeypatch.setattr(benchmark, "STEPS", 3)
    rows = {row.name: row for row in benchmark.training(tmp_path, 2, teacher)}
    assert {"2 layers, step 3: kept, trained subjects", "2 layers: perplexity"} <= rows.keys()
    assert rows["2 layers: perplexity"].ratio == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"lora": 2},
        {"hidden": 1.0},
        {"lora": 2, "hidden": 1.0},
        {"divergence": "reverse", "alpha": 1.0},
        {"divergence": "jsd", "focus": "weighted"},
        {"alpha": 0.0},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_kind_of_training_makes_a_student(
    options: dict[str, Any], train: Train, student: Path, tmp_path: Path
) -> None:
    rows = train(tmp_path / "taught", **options).to_pylist()
    assert len(rows) == 3 and rows[-1]["loss"] > 0
    before, after = weights(student), weights(tmp_path / "taught")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("mlp.gate_proj" in name for name in changed)
    assert ("model.norm.weight" in changed) == ("lora" not in options)


def test_prompts_rationales_and_soft_targets_teach_too(train: Train, teacher: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,answer,why\nThe capital of Rome is,Berlin,it is hot\n")
    engine = Model.open(teacher).engine
    train(tmp_path / "one", prompts=prompts, rationale="why", mix=0.0, steps=40, rounds=1)
    said = Model.open(tmp_path / "one").engine
    assert engine.tokenizer.token(int(said.logits("The capital of Rome is").argmax())) == " Berlin"

    ids = engine.tokenizer.encode("The capital of Rome is")
    table = pa.table(
        {
            "example": [0], "position": [len(ids) - 1], "rank": [1], "logprob": [0.0],
            "token_id": [engine.tokenizer.encode(" Tokyo", special=False)[0]],
        }
    )  # fmt: skip
    examples = json.dumps([{"ids": ids, "start": len(ids)}])
    soft = tmp_path / "soft.parquet"
    pq.write_table(table.replace_schema_metadata({"examples": examples}), soft)
    train(tmp_path / "two", soft_targets=soft, mix=0.0, steps=40, rounds=1, alpha=1.0)
    said = Model.open(tmp_path / "two").engine
    assert engine.tokenizer.token(int(said.logits("The capital of Rome is").argmax())) == " Tokyo"


def test_models_of_other_formats_and_tokenizers(train: Train, tiny_model: Make, tmp_path: Path) -> None:
    from tests.tiny import write_gguf

    file = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    assert len(train(tmp_path / "from-gguf", start=file, by=file, steps=1, rounds=1, mix=1.0)) == 2
    other = tiny_model("gemma2")
    with pytest.raises(LarqlError, match=r"different tokenizers.*--alpha 0"):
        train(tmp_path / "other", start=other)
    assert len(train(tmp_path / "other", start=other, alpha=0.0, steps=1, rounds=1)) == 2


def test_what_cannot_be_done_is_said(train: Train, tiny_model: Make, tmp_path: Path) -> None:
    cases = [
        ({"alpha": 1.5}, "--alpha 1.5 is out of range; it is from 0 to 1"),
        ({"hidden": float("inf")}, "--hidden inf is out of range"),
        ({"rounds": 5}, "--rounds 5 is out of range; it is from 1 to 4"),
        ({"rationale": "why"}, "give that file"),
        ({"hidden": 1.0, "soft_targets": tmp_path / "x"}, "leave it or --soft-targets out"),
        ({"soft_targets": tmp_path / "gone.parquet"}, "gone.parquet: cannot be read"),
    ]
    for options, said in cases:
        with pytest.raises(LarqlError, match=said):
            train(tmp_path / "taught", **options)
        assert not list(tmp_path.iterdir())
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught" / "mine").touch()
    with pytest.raises(VindexError, match="exists already"):
        train(tmp_path / "taught")
