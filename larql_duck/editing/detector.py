"""Detectors: the rows of a gate and an up matrix that answer at one subject and at nothing else, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# The gate's value at a key; silu and gelu are close to the identity there, and near zero a little below none. up's is 1.
GATE = 12.0
# Below this answer (a key's is 1) a gate stays shut, where the model has a direction to measure it by.
THRESHOLD = 0.6
# How much the steady direction's answer may vary over ordinary text (first positions are among it).
_STEADY = 0.15
# How far keys may miss their value, as a share of what meeting it exactly would cost.
_RIDGE = 0.02
# Zeros that weigh as much as one key, at most.
_ZEROS = 2.0
# The least mean answer that is scaled up to 1.
_LEAST = 0.2
# A share of its own mean added to the diagonal of a second moment.
_SHRINK = 0.01


@dataclass(frozen=True)
class Detectors:
    """w [facts, hidden], f64: w . x is near 1 at a fact's own keys and near 0 elsewhere.

    seen [facts] is the mean of w . x over a fact's own keys, unseen the same for keys left out of the fit (computed,
    not fitted again).
    """

    w: torch.Tensor
    seen: torch.Tensor
    unseen: torch.Tensor


def detectors(
    keys: Sequence[torch.Tensor],
    same: Sequence[Sequence[int]],
    zeros: torch.Tensor,
    second: torch.Tensor,
    *,
    within: float = 0.0,
    ridge: float = _RIDGE,
    weights: torch.Tensor | None = None,
) -> Detectors:
    """Detectors of all facts at once: least squares under the metric of `second`.

    keys[f] [k, hidden] are fact f's own. same[f] lists the facts (f itself included) whose keys f answers to as well:
    those about the same subject. zeros [m, hidden] are keys at which nothing fires. second f64 [hidden, hidden] is
    the second moment of the layer's FFN input. within weighs how keys of one subject differ between contexts;
    weights [sum of k] says how much each key counts, the facts' one after the other.
    """
    second = shrunk(second)
    x = torch.cat([k.double() for k in keys])
    fact = torch.cat([torch.full((len(k),), f) for f, k in enumerate(keys)])
    if within:
        spread = torch.cat([k.double() - k.double().mean(0) for k in keys])
        scatter = spread.t() @ spread / max(len(spread), 1)
        second = second + within * scatter
    # ridge: what keeping every key exactly would cost, on average.
    factor = torch.linalg.cholesky(second)
    cost = torch.linalg.solve_triangular(factor, x.t(), upper=False).pow(2).sum(0)
    slack = ridge * cost.mean()
    # Few keys are not to drown in many zeros.
    weight = min(1.0, _ZEROS * len(x) / max(len(zeros), 1)) ** 0.5
    heavy = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double().sqrt()
    rows = torch.cat([heavy[:, None] * x, weight * zeros.double()])
    a = second + rows.t() @ rows / slack
    targets = torch.zeros(len(rows), len(keys), dtype=torch.float64)
    for f, own in enumerate(same):
        targets[: len(x), f] = heavy * torch.isin(fact, torch.tensor(list(own)))
    factor = torch.linalg.cholesky(a)
    w = torch.cholesky_solve(rows.t() @ targets / slack, factor)
    answers = x @ w
    leverage = heavy.pow(2) * (x * torch.cholesky_solve(x.t(), factor).t()).sum(1) / slack
    own_answers = answers[torch.arange(len(x)), fact]
    left_out = 1 - (1 - own_answers) / (1 - leverage).clamp(min=1e-3)
    n = torch.bincount(fact, minlength=len(keys)).clamp(min=1)
    seen = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, fact, own_answers) / n
    unseen = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, fact, left_out) / n
    # A key's answer is 1 on average, also where the fit falls short of it.
    w = w / seen.clamp(min=_LEAST)
    return Detectors(w.t().contiguous(), seen, unseen)


def feature_rows(w: torch.Tensor, steady: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The gate and up rows f64 [facts, hidden] of detectors w: at a key the gate is GATE and up is 1.

    FFNs of this kind have no bias; `steady` (see `steady_direction`) stands in for one. The gate is then shut where
    w . x is below THRESHOLD, and up falls as it rises, so that between 0.85 and 1.15 their product changes little. Without it
    the rows are GATE w and w, and both open in proportion.
    """
    if steady is None:
        return GATE * w, w
    return GATE / (1 - THRESHOLD) * (w - THRESHOLD * steady), 2 * steady - w


def steady_direction(mean: torch.Tensor, second: torch.Tensor) -> torch.Tensor | None:
    """A direction u, f64 [hidden], with u . x near 1 for every x that an FFN reads; None where there is none.

    What an FFN reads often has a part that is the same everywhere: least squares of 1 on x, from the mean [hidden] and
    the second moment [hidden, hidden] of ordinary text.
    """
    mean, second = mean.double(), second.double()
    u = torch.linalg.solve(shrunk(second), mean)
    answer = u @ mean
    u = u / answer
    spread = (u @ second @ u - 1).clamp(min=0).sqrt()
    return u if float(answer) > 0 and float(spread) <= _STEADY else None


def shrunk(second: torch.Tensor) -> torch.Tensor:
    """A second moment with a share of its mean diagonal added, so that it can be inverted."""
    return second + _SHRINK * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)


def fired(gate: torch.Tensor, up: torch.Tensor, keys: torch.Tensor, act: torch.nn.Module) -> torch.Tensor:
    """The activations [n, facts] of features with rows gate and up [facts, hidden] at keys [n, hidden]."""
    out: torch.Tensor = act(keys @ gate.t()) * (keys @ up.t())
    return out
