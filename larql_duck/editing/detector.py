"""Detectors: the rows of a gate and an up matrix that answer at one subject and at nothing else, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import subject_position
from larql_duck.knowledge.relations import SLOT
from larql_duck.progress import Ticker, ticker

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

    keys[f] [k, hidden] are fact f's own. same[f] lists the facts (f itself included) whose keys f fires at as well:
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


def fired(
    gate: torch.Tensor, up: torch.Tensor | None, keys: torch.Tensor, act: torch.nn.Module
) -> torch.Tensor:
    """The activations [n, facts] of features with rows gate and up [facts, hidden] at keys [n, hidden]; up None: plain."""
    out: torch.Tensor = act(keys @ gate.t())
    return out if up is None else out * (keys @ up.t())


def full_value(act: torch.nn.Module, plain: bool) -> float:
    """The activation at a key, where the gate is GATE and up is 1; in a plain FFN the activation function's value alone."""
    return float(act(torch.tensor([[GATE]]))) if plain else GATE


# Beginnings of sentences that name a subject and say nothing else about it.
FRAMES = (
    "I have read about {}",
    "In {}",
    "This is a story about {}",
    "Many people have heard of {}",
    "Yesterday we talked about {}",
    "What do you know about {}",
    "The history of {}",
    "He wrote a long letter about {}",
    "There are many books on {}",
    "She was thinking of {}",
    "It is well known that {}",
    "Question: what can you say about {}",
    "For example, {}",
    "When people think of {}",
    "The name of {}",
    "As for {}",
    "Everyone there loves {}",
    "The word {}",
    "One of them is {}",
    "Let me tell you something about {}",
    "A picture of {}",
    "In the case of {}",
    "The people of {}",
    "Later, they went on to {}",
)
# What may stand before a prompt.
OPENINGS = (
    "",
    "Here is a fact. ",
    "Note: ",
    "As everybody knows, ",
    "Question: ",
    "\n\n",
    "We learned it at school: ",
)
# What may follow a subject with which a text begins: few, for each takes room from the keys at the subject itself.
BEHIND = ("'s", " is", ",", " and", " has", " was", ":", " in")
# First words of texts: what stands at position 0 must not fire anything.
FIRST = (
    "The", "A", "In", "I", "It", "He", "She", "This", "There", "We", "You", "They", "What", "When", "How", "If",
    "One", "Two", "For", "And", "But", "On", "At", "As", "My", "Water", "People", "Once", "Today", "Question",
)  # fmt: skip
# Tokens that one pass takes, padding included; numbers of inputs that are held for the next fact (128 MiB).
_PASS, _KNOWN = 4096, 1 << 25


def frames_of(templates: Sequence[str], others: Sequence[str]) -> list[str]:
    """The templates in which a subject's keys are taken: those that state the fact, with and without openings, those
    of other relations about the same kind of subject, and neutral ones. Only what stands before the subject counts,
    so each beginning comes once. The kinds take turns, so that the first ones are a sample of all.
    """
    stated = [opening + t for opening in OPENINGS[:3] for t in templates]
    stated += [OPENINGS[3 + i % (len(OPENINGS) - 3)] + t for i, t in enumerate([*templates, *others])]
    alone = [opening + SLOT for opening in OPENINGS[1:]]
    turns = zip_longest(stated, FRAMES, others, alone)
    once: dict[str, str] = {}
    for template in (t for turn in turns for t in turn if t is not None):
        once.setdefault(template.partition(SLOT)[0], template)
    return list(once.values())


def first_starts(engine: Engine, text: str) -> list[tuple[int, ...]]:
    """Beginnings of texts whose first token is the subject, each with one token behind it; none where others come first."""
    if subject_position(engine.tokenizer, SLOT, text).at:
        return []
    rows = (tuple(engine.tokenizer.encode(text + behind)[:2]) for behind in BEHIND)
    return list(dict.fromkeys(row for row in rows if len(row) > 1))


class _Reached(Exception):
    """The layer's input is there: the rest of the pass is not needed."""


@torch.no_grad()
def read_inputs(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    layer: int,
    *,
    progress: Ticker | None = None,
) -> torch.Tensor:
    """What the FFN of `layer` reads (behind its norm) at each row's last token, f32 [n, hidden]; equal rows run once."""
    unique = {tuple(row): i for i, row in enumerate(dict.fromkeys(tuple(r) for r in rows))}
    order = sorted(unique, key=len)
    out = torch.empty(len(unique), engine.hidden)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(order[stop]) * (stop + 1 - start) <= _PASS:
            stop += 1
        part = order[start:stop]
        found = layer_input(engine, part, layer)[:, -1]
        out[torch.tensor([unique[row] for row in part])] = found.float().cpu()
        start = stop
        if progress is not None:
            progress(start, len(order))
    return out[torch.tensor([unique[tuple(row)] for row in rows])] if len(rows) else out


def every_input(
    engine: Engine, rows: Sequence[Sequence[int]], layer: int, progress: Ticker | None = None
) -> torch.Tensor:
    """What the FFN of `layer` reads at every position of the rows, f32 [n, hidden]; rows of one length come together,
    shorter ones first.
    """
    found = [torch.empty(0, engine.hidden)]
    for length in sorted({len(row) for row in rows}):
        same = [row for row in rows if len(row) == length]
        step = max(1, _PASS // length)
        for start in range(0, len(same), step):
            part = layer_input(engine, same[start : start + step], layer)
            found.append(part.reshape(-1, engine.hidden).float().cpu())
            if progress is not None:
                progress(sum(map(len, found)), sum(map(len, rows)))
    return torch.cat(found)


class KnownInputs:
    """What one layer's FFN reads, read once a row: other subjects' prompts are the same from fact to fact.

    It holds under the same layers below only, and at most `_KNOWN` numbers of each kind.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], torch.Tensor] = {}
        self._every: dict[tuple[int, ...], torch.Tensor] = {}

    def last(self, engine: Engine, rows: Sequence[tuple[int, ...]], layer: int) -> torch.Tensor:
        """As `read_inputs`."""
        new = _missing(self._last, rows)
        self._last |= dict(zip(new, read_inputs(engine, new, layer, progress=ticker("keys")), strict=True))
        return torch.stack([self._last[row] for row in rows]) if rows else torch.empty(0, engine.hidden)

    def every(self, engine: Engine, rows: Sequence[tuple[int, ...]], layer: int) -> torch.Tensor:
        """As `every_input`, in the order of the rows."""
        new = sorted(_missing(self._every, rows), key=len)
        parts = every_input(engine, new, layer).split([len(row) for row in new]) if new else ()
        self._every |= {row: part.clone() for row, part in zip(new, parts, strict=True)}
        return torch.cat([torch.empty(0, engine.hidden), *(self._every[row] for row in rows)])


def _missing(
    known: dict[tuple[int, ...], torch.Tensor], rows: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """The rows that are not known, each once; what is known goes first where it is too much."""
    if sum(map(torch.Tensor.numel, known.values())) > _KNOWN:
        known.clear()
    return [row for row in dict.fromkeys(rows) if row not in known]


@torch.no_grad()
def layer_input(
    engine: Engine, rows: Sequence[Sequence[int]], layer: int, *, part: str = "gate"
) -> torch.Tensor:
    """What a matrix of `layer` ('gate' or 'down') reads at every position, [n, t, width], from rows of token ids padded
    on the left. The layers above do not run.
    """
    batch = pad(rows, device=engine.device)
    kept: list[torch.Tensor] = []

    def stop(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    with engine.modules.pass_lock:
        handle = getattr(engine.modules.layers[layer], part).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            engine.model.base_model(
                input_ids=batch.ids,
                attention_mask=batch.mask.long() if batch.padded else None,
                position_ids=batch.positions,
                use_cache=False,
            )
        except _Reached:
            pass
        finally:
            handle.remove()
    return kept[0].view(*batch.ids.shape, -1)
