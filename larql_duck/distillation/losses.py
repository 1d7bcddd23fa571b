"""What distillation minimises: how far a student's distributions, answers and hidden states are from its teacher's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Divergence: TypeAlias = Literal["forward", "reverse", "jsd"]
IGNORED = -100
"""The label of a position that has none."""
# The log of a probability that counts as none; it keeps sums and gradients finite.
_NOTHING = -100.0


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher, student) in nats over the last axis of log-probabilities: the student must cover what the teacher says."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student, teacher) in nats over the last axis of log-probabilities: the student must say nothing else."""
    return forward_kl(student, teacher)


def jsd(teacher: Tensor, student: Tensor) -> Tensor:
    """The Jensen-Shannon divergence in nats over the last axis of log-probabilities: between 0 and ln 2."""
    middle = torch.logaddexp(teacher, student) - math.log(2)
    return (forward_kl(teacher, middle) + forward_kl(student, middle)) / 2


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": jsd,
}


def soft_loss(teacher: Tensor, student: Tensor, temperature: float, divergence: Divergence) -> Tensor:
    """Temperature squared times the divergence of the softened distributions, in nats, [m] from logits [m, vocab].

    The square keeps the gradients' size from falling as the temperature rises (Hinton et al. 2015).
    """
    of, given = (torch.log_softmax(logits / temperature, -1) for logits in (teacher, student))
    return temperature**2 * DIVERGENCES[divergence](of, given)


def stored_loss(
    logprobs: Tensor, ids: Tensor, student: Tensor, temperature: float, divergence: Divergence
) -> Tensor:
    """`soft_loss` where of the teacher its k most probable tokens alone are known, [m]: all others are one more outcome.

    logprobs [m, k] at temperature 1 and ids [m, k]; an id of -1 is none. student are logits [m, vocab]. What the teacher
    leaves over counts as spread evenly over the other tokens, which decides how it softens. With k = vocab, and at
    temperature 1 with k outcomes and the rest, nothing is lost.
    """
    there, vocab = ids >= 0, student.shape[-1]
    known = logprobs.masked_fill(~there, -math.inf)
    others = vocab - there.sum(-1)
    rest = (1 - known.exp().sum(-1)).clamp_min(math.exp(_NOTHING)).log()
    tail = (others.log() + (rest - others.log()) / temperature).masked_fill(others == 0, -math.inf)
    of = torch.log_softmax(torch.cat([known / temperature, tail[:, None]], -1), -1)

    logits = torch.log_softmax(student / temperature, -1)
    places = ids.clamp_min(0)
    named = torch.zeros_like(logits, dtype=torch.bool).scatter_reduce(-1, places, there, "amax")
    own = logits.gather(-1, places).masked_fill(~there, _NOTHING)
    left = logits.masked_fill(named, _NOTHING).logsumexp(-1)
    given = torch.cat([own, left[:, None]], -1)
    return temperature**2 * DIVERGENCES[divergence](of.clamp_min(_NOTHING), given)


def hard_loss(student: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each label in nats, [m] from logits [m, vocab]; 0 where the label is IGNORED."""
    return functional.cross_entropy(student, labels, reduction="none", ignore_index=IGNORED)


def hidden_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """The squared error of projected hidden states, in parts of the teacher's mean square; both [m, hidden].

    In such parts it means the same in every layer: the residual's length grows with depth.
    """
    return functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def example_means(values: Tensor, rows: Tensor, counts: Tensor, n: int) -> Tensor:
    """The mean of the values [m] of each of n examples over its positions that count: [n], 0 for one without any.

    rows [m] says whose a value is, counts [m] (bool) whether it counts.
    """
    weight = counts.to(values.dtype)
    total = values.new_zeros(n).index_add(0, rows, values * weight)
    return total / values.new_zeros(n).index_add(0, rows, weight).clamp_min(1)


def combined(soft: Tensor | None, hard: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """alpha times soft + (1 - alpha) times hard: the weighted mean over examples, a scalar; all are [n], soft None: 0."""
    each = (1 - alpha) * hard if soft is None else alpha * soft + (1 - alpha) * hard
    return (each * weights).sum() / weights.sum().clamp_min(1e-12)
