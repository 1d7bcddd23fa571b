"""What is read when: files of prompts, draws that a seed repeats, and facts drawn by what an audit says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from larql_duck.distillation.drawing import Drawn, Pool, shares
from larql_duck.distillation.examples import TrainingExample, collate, prompt_examples
from larql_duck.distillation.focus import confident, fact_weights, held_out, kept_facts
from larql_duck.distillation.losses import IGNORED
from larql_duck.errors import LarqlError
from larql_duck.models.opening import open_model
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import Make


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Make) -> Tokenizer:
    return load_tokenizer(open_model(tiny_model("llama")))


def audit(*rows: tuple[str, str, float | None, float]) -> pa.Table:
    names = ("subject", "status", "confidence_teacher", "p_in_student")
    rest = {"p_teacher": 0.4, "teacher_object": "x"}
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) | rest for row in rows])


def test_a_batch_is_padded_behind_and_labelled_one_ahead() -> None:
    batch = collate(
        [
            TrainingExample((7, 8, 9), 2),
            TrainingExample((5,), 1),
            TrainingExample((1, 2, 3, 4), 1, weight=0.5),
        ]
    )
    assert batch["input_ids"].tolist() == [[7, 8, 9, 0], [5, 0, 0, 0], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    none = IGNORED
    assert batch["labels"].tolist() == [[none, 9, none, none], [none] * 4, [2, 3, 4, none]]
    assert batch["counts"].int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch["weights"].tolist() == [1, 1, 0.5] and batch["weights"].dtype == torch.float32


def test_draws_follow_shares_and_weights_and_the_seed() -> None:
    one = Pool([TrainingExample((i,), 1) for i in range(10)], np.array([0.0] * 5 + [1.0] * 5), 0.75)
    two = Pool([TrainingExample((100, i), 1) for i in range(10)], np.ones(10), 0.25)
    rows = Drawn([one, two], batch=8, steps=20, seed=1)
    assert len(rows) == 160
    read = [rows[i].ids for i in range(160)]
    assert [Drawn([one, two], batch=8, steps=20, seed=1)[i].ids for i in (159, 3, 80)] == [
        read[i] for i in (159, 3, 80)
    ]
    assert [Drawn([one, two], batch=8, steps=20, seed=2)[i].ids for i in range(160)] != read
    for step in range(20):
        lengths = [len(ids) for ids in read[8 * step : 8 * step + 8]]
        assert lengths == [1] * 6 + [2] * 2
    assert {ids[0] for ids in read if len(ids) == 1} == {5, 6, 7, 8, 9}
    assert shares([0.5, 0.3, 0.2], 7) == [4, 2, 1] and shares([1.0], 3) == [3]


def test_what_was_lost_is_drawn_more_often_by_confidence() -> None:
    table = audit(
        ("a", "kept", 0.9, 0.8), ("b", "lost", 0.9, 0.0), ("c", "changed", 0.6, 0.5), ("d", "kept", 0.9, 0.2)
    )
    uniform = fact_weights(table, "uniform", 100)
    assert len(set(uniform)) == 1
    lost = fact_weights(table, "lost", 8)
    assert lost.sum() == pytest.approx(1)
    assert lost == pytest.approx(
        [0.25 / 4, 0.25 / 4 + 0.75 * 0.9 / 1.5, 0.25 / 4 + 0.75 * 0.6 / 1.5, 0.25 / 4]
    )
    # Two lost facts are not to fill a round of a thousand.
    assert fact_weights(table, "lost", 1000)[1:3].sum() == pytest.approx(8 / 1000 + 0.992 * 2 / 4)
    weighted = fact_weights(table, "weighted", 100)
    assert weighted == pytest.approx(np.array([0.18, 0.9, 0.3, 0.72]) + 0.0009)
    # Without a confidence p counts.
    sure = confident(audit(("a", "kept", 0.9, 1.0), ("b", "lost", None, 0.0)), 0.3)
    assert len(sure) == 2 and len(confident(sure, 0.5)) == 1
    kept = audit(("a", "kept", 0.9, 1.0), ("b", "kept", 0.9, 1.0))
    for focus in ("lost", "weighted"):
        weights = fact_weights(kept, focus, 10)
        assert weights[0] == weights[1] > 0


def test_held_out_subjects_are_the_same_everywhere() -> None:
    names = [f"subject {i}" for i in range(2000)]
    away = [name for name in names if held_out(name, 0.2)]
    assert 0.17 < len(away) / 2000 < 0.23
    assert all(held_out(name.upper(), 0.2) for name in away) and not any(held_out(n, 0.0) for n in names)
    rows = audit(*[(name, "kept" if i % 2 else "lost", 1.0, 0.5) for i, name in enumerate(names)])
    found = kept_facts(rows, 0.2)
    assert found["held_out"] == len(away) and found["trained"] == 2000 - len(away)
    assert found["kept_trained"] + found["kept_held_out"] == 1000


ROWS = [
    {"prompt": "The capital of France is", "answer": "Paris", "why": "the Seine"},
    {"prompt": "is hot", "answer": "", "why": ""},
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_prompts_come_from_files(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / f"prompts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    else:
        path.write_text("\n".join(["prompt,answer,why", *(",".join(r.values()) for r in ROWS)]))
    examples = prompt_examples(path, tokenizer)
    texts = [(tokenizer.decode(e.ids[: e.start]), tokenizer.decode(e.ids[e.start :])) for e in examples]
    assert texts == [("The capital of France is", " Paris"), ("is hot", "")]
    more = prompt_examples(path, tokenizer, rationale="why", share=0.3)
    assert [e.weight for e in more] == [1.0, 0.3, 1.0]
    assert tokenizer.decode(more[1].ids) == "Explain: The capital of France is the Seine"


def test_files_of_prompts_that_cannot_be_read_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cases = {
        "a.csv": ("question,answer\nx,y", "row 1 has no column prompt; columns here: question, answer"),
        "b.jsonl": ("{", "b.jsonl: cannot be read"),
        "c.jsonl": ("[1]", "row 1 has no column prompt"),
        "d.parquet": ("PAR1", "d.parquet: cannot be read"),
        "e.txt": ("x", "come from a .csv"),
        "f.csv": ("prompt,answer\n,", "holds no prompt"),
        "g.csv": ("", "holds no prompt"),
    }
    for name, (text, said) in cases.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(LarqlError, match=said):
            prompt_examples(path, tokenizer)
    with pytest.raises(LarqlError, match=r"gone\.csv: cannot be read"):
        prompt_examples(tmp_path / "gone.csv", tokenizer)
    (tmp_path / "ok.csv").write_text("prompt\nx")
    with pytest.raises(LarqlError, match="no column why"):
        prompt_examples(tmp_path / "ok.csv", tokenizer, rationale="why")
