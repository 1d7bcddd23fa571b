"""The loss of a batch of tiny models against plain passes of transformers, one example at a time; gradients too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from larql_duck.distillation.examples import TrainingExample, collate
from larql_duck.distillation.settings import LossSettings
from larql_duck.distillation.soft_table import SoftTargets
from larql_duck.distillation.soft_targets import SoftExample, write_soft_targets
from larql_duck.distillation.training import Teacher, add_projection, batch_loss, hidden_pairs
from larql_duck.inference.engine import Engine
from larql_duck.models.opening import open_model
from tests.tiny import make_tiny

EXAMPLES = [
    TrainingExample((9, 40, 41, 50, 51), 3),
    TrainingExample((30, 31, 60), 1, weight=0.5),
    TrainingExample((5, 6, 7, 8), 4),
]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher and a student of one family, the second one smaller."""
    place = tmp_path_factory.mktemp(request.param)
    return (
        make_tiny(request.param, place / "teacher", seed=1),
        make_tiny(request.param, place / "student", seed=2, layers=2),
    )


def loaded(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)


def by_hand(student: PreTrainedModel, teacher: PreTrainedModel, alpha: float, t: float) -> torch.Tensor:
    """alpha T^2 KL + (1 - alpha) cross entropy over EXAMPLES, written out."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for example in EXAMPLES:
        ids = torch.tensor([example.ids])
        own = student(input_ids=ids).logits[0].double()
        with torch.no_grad():
            given = teacher(input_ids=ids).logits[0].double()
        soft, hard = [], []
        for at in range(example.start - 1, len(example.ids)):
            p = torch.softmax(given[at] / t, -1)
            soft.append(t**2 * (p * (p.log() - torch.log_softmax(own[at] / t, -1))).sum())
            if at + 1 < len(example.ids):
                hard.append(-torch.log_softmax(own[at], -1)[example.ids[at + 1]])
        mean = alpha * sum(soft) / len(soft)
        mean = mean + (1 - alpha) * (sum(hard) / len(hard) if hard else 0.0)
        total, weights = total + example.weight * mean, weights + example.weight
    return total / weights


def gradients(loss: torch.Tensor, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_batch_loses_what_its_examples_lose(pair: tuple[Path, Path], alpha: float) -> None:
    teacher, student = map(loaded, pair)
    settings = LossSettings(alpha=alpha, temperature=3.0)
    loss = batch_loss(student, Teacher(teacher), collate(EXAMPLES), settings)
    wanted = by_hand(student, teacher, alpha, 3.0)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    slopes = gradients(wanted, student)
    for name, gradient in gradients(loss, student).items():
        torch.testing.assert_close(gradient, slopes[name], atol=1e-6, rtol=1e-5)


def test_stored_soft_targets_teach_what_the_teacher_does(pair: tuple[Path, Path]) -> None:
    import pyarrow as pa

    teacher, student = map(loaded, pair)
    settings, rows = LossSettings(alpha=1.0, temperature=1.0), []
    for number, example in enumerate(EXAMPLES):
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(input_ids=torch.tensor([example.ids])).logits[0], -1)
        for position, row in enumerate(log_p):
            ranked = row.sort(descending=True)
            rows += [
                {"example": number, "position": position, "rank": r, "token_id": int(i), "logprob": float(v)}
                for r, (v, i) in enumerate(zip(ranked.values, ranked.indices, strict=True), start=1)
            ]
    examples = [TrainingExample(e.ids, e.start, e.weight, stored=i) for i, e in enumerate(EXAMPLES)]
    stored = SoftTargets(pa.Table.from_pylist(rows), examples)
    online = batch_loss(student, Teacher(teacher), collate(EXAMPLES), settings)
    offline = batch_loss(student, Teacher(), collate(examples) | stored.of(examples), settings)
    assert offline.item() == pytest.approx(online.item(), abs=1e-4)


def test_a_file_of_soft_targets_teaches_what_its_teacher_does(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    engine = Engine.load(open_model(pair[0]))
    told = [SoftExample(e.ids, e.start, "", "") for e in EXAMPLES]
    path = write_soft_targets(engine, told, tmp_path / "soft.parquet", k=1 << 20)
    stored = SoftTargets.read(path)
    assert [(e.ids, e.start) for e in stored.examples] == [(e.ids, e.start) for e in EXAMPLES]
    student = AutoModelForCausalLM.from_pretrained(pair[1])
    for kind in ("forward", "reverse", "jsd"):
        settings = LossSettings(alpha=1.0, temperature=1.0, divergence=kind)
        examples = [replace(e, weight=1.0) for e in EXAMPLES]
        online = batch_loss(student, Teacher(engine.model), collate(examples), settings)
        offline = batch_loss(
            student, Teacher(), collate(stored.examples) | stored.of(stored.examples), settings
        )
        assert offline.item() == pytest.approx(online.item(), abs=1e-4)


def test_hidden_states_are_projected_and_compared(pair: tuple[Path, Path]) -> None:
    teacher, student = map(loaded, pair)
    pairs = hidden_pairs([0, 2], 3)
    assert pairs == [(1, 1), (2, 3)] and hidden_pairs([0, 1], 3) == [(1, 1)]
    add_projection(student, 32)
    student.double()
    loss = batch_loss(
        student, Teacher(teacher, pairs=pairs), collate(EXAMPLES), LossSettings(0.0, hidden=2.0)
    )
    each = []
    for i, j in pairs:
        own, given = [], []
        for example in EXAMPLES:
            ids = torch.tensor([example.ids])
            own.append(student(input_ids=ids, output_hidden_states=True).hidden_states[i][0])
            given.append(teacher(input_ids=ids, output_hidden_states=True).hidden_states[j][0])
        wanted = torch.cat(given)
        # The projection begins as the identity.
        each.append((torch.cat(own) - wanted).square().mean() / wanted.square().mean())
    plain = by_hand(student, teacher, 0.0, 1.0)
    wanted = plain + 2.0 * sum(each) / len(each)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    assert "distil_projection.weight" in gradients(loss, student)
