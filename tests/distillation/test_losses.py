"""Losses against numbers worked out by hand in numpy, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from larql_duck.distillation.losses import (
    DIVERGENCES,
    IGNORED,
    combined,
    example_means,
    hard_loss,
    hidden_loss,
    soft_loss,
    stored_loss,
)

TEACHER = np.array([[2.0, -1.0, 0.5, 0.0], [0.3, 0.1, -2.0, 1.5]])
STUDENT = np.array([[0.5, 1.0, -0.5, 0.25], [1.0, -1.0, 0.0, 0.5]])


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(kind: str, teacher: np.ndarray, student: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each row and its gradient with respect to the student's logits, by their formulas."""
    p, q = softmax(teacher / t), softmax(student / t)
    if kind == "forward":
        loss, gradient = (p * np.log(p / q)).sum(-1), q - p
    elif kind == "reverse":
        loss = (q * np.log(q / p)).sum(-1)
        gradient = q * (np.log(q / p) - loss[:, None])
    else:
        m = (p + q) / 2
        loss = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
        inner = np.log(q / m) / 2
        gradient = q * (inner - (q * inner).sum(-1, keepdims=True))
    # T^2 in front, 1 / T from inside of the softmax.
    return t**2 * loss, t * gradient


def double(values: np.ndarray, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_soft_losses_are_those_of_the_formulas(kind: str, temperature: float) -> None:
    student = double(STUDENT, grad=True)
    loss = soft_loss(double(TEACHER), student, temperature, kind)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    wanted, slope = by_hand(kind, TEACHER, STUDENT, temperature)
    np.testing.assert_allclose(loss.detach().numpy(), wanted, atol=1e-9)
    np.testing.assert_allclose(gradient.numpy(), slope, atol=1e-9)


def test_the_same_model_loses_nothing() -> None:
    for kind in DIVERGENCES:
        assert soft_loss(double(TEACHER), double(TEACHER), 2.0, kind).abs().max() < 1e-12


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_whole_table_of_soft_targets_is_the_teacher_itself(kind: str) -> None:
    known = torch.log_softmax(double(TEACHER), -1).sort(-1, descending=True)
    for temperature in (1.0, 2.0):
        student = double(STUDENT, grad=True)
        loss = stored_loss(known.values, known.indices, student, temperature, kind)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        wanted, slope = by_hand(kind, TEACHER, STUDENT, temperature)
        np.testing.assert_allclose(loss.detach().numpy(), wanted, atol=1e-9)
        np.testing.assert_allclose(gradient.numpy(), slope, atol=1e-9)


def test_the_rest_of_a_table_is_one_outcome() -> None:
    known = torch.log_softmax(double(TEACHER), -1).sort(-1, descending=True)
    ids = known.indices[:, :2]
    loss = stored_loss(known.values[:, :2], ids, double(STUDENT), 1.0, "forward")
    p, q = softmax(TEACHER), softmax(STUDENT)
    for row, chosen in enumerate(ids.tolist()):
        a, b = p[row, chosen], q[row, chosen]
        a, b = np.append(a, 1 - a.sum()), np.append(b, 1 - b.sum())
        assert float(loss[row]) == pytest.approx((a * np.log(a / b)).sum(), abs=1e-9)
    # A shorter row is filled up with -1, which is no token.
    filled = torch.cat([ids, torch.full((2, 1), -1)], 1)
    values = torch.cat([known.values[:, :2], torch.zeros(2, 1, dtype=torch.float64)], 1)
    again = stored_loss(values, filled, double(STUDENT), 1.0, "forward")
    torch.testing.assert_close(again, loss)


def test_a_position_without_soft_targets_costs_nothing() -> None:
    student = double(STUDENT, grad=True)
    loss = stored_loss(double(np.zeros((2, 1))), torch.full((2, 1), -1), student, 2.0, "forward")
    assert loss.abs().max() < 1e-9


def test_examples_count_alike_however_long_they_are() -> None:
    labels = torch.tensor([1, 3, IGNORED])
    logits = double(np.vstack([STUDENT, STUDENT[:1]]))
    hard = hard_loss(logits, labels)
    log_q = np.log(softmax(STUDENT))
    np.testing.assert_allclose(hard.numpy(), [-log_q[0, 1], -log_q[1, 3], 0], atol=1e-9)
    rows = torch.tensor([0, 0, 1])
    means = example_means(hard, rows, labels != IGNORED, 2)
    np.testing.assert_allclose(means.numpy(), [(-log_q[0, 1] - log_q[1, 3]) / 2, 0], atol=1e-9)
    loss = combined(double(np.array([1.0, 4.0])), means, double(np.array([1.0, 0.5])), 0.25)
    wanted = (0.25 * 1 + 0.75 * float(means[0])) * 1 + (0.25 * 4) * 0.5
    assert float(loss) == pytest.approx(wanted / 1.5, abs=1e-9)
    assert float(combined(None, means, double(np.ones(2)), 0.0)) == pytest.approx(float(means.mean()))


def test_hidden_states_are_compared_in_parts_of_the_teachers_size() -> None:
    rows = double(np.array([[3.0, 0.0], [0.0, 1.0]]))
    assert float(hidden_loss(rows, rows * 0)) == pytest.approx(1.0)
    assert float(hidden_loss(1000 * rows, 999 * rows)) == pytest.approx(1e-6)
