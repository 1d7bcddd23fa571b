"""Values: what a feature has to write at its subject so that the model says the new object, by gradient steps.

Only the layers above the edited one run, and of each prompt only what follows the subject: what stands before it is
in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.infer.prefix import fork, starting_at

if TYPE_CHECKING:
    from transformers import DynamicCache

    from larql_duck.infer.engine import Engine

# Gradient steps at most, and the mean loss (nats of the whole object) at which a fact is done.
STEPS, DONE = 40, 0.08
_RATE = 0.1
_KEEP = 0.3
_DECAY = 0.02
# Positions (of suffixes) that one pass takes.
_PASS = 2048


@dataclass(frozen=True)
class Lesson:
    """A prompt that teaches: token ids, the index of the subject's last token, and the facts whose values are added there.

    says: the last `says` tokens are to be said. 0: the next token is to stay as it is, or as `wanted` (log-probabilities
    [vocab]) says. scale multiplies the values.
    """

    ids: tuple[int, ...]
    at: int
    facts: tuple[int, ...]
    says: int = 0
    wanted: torch.Tensor | None = None
    scale: float = 1.0
    weight: float = 1.0


@dataclass
class _Group:
    """Lessons that run together: aligned at the subject, what precedes it cached."""

    lessons: list[Lesson]
    cache: DynamicCache
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    adds: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    labels: torch.Tensor
    owner: torch.Tensor
    keep_rows: torch.Tensor
    keep_columns: torch.Tensor
    kept: torch.Tensor


@dataclass(frozen=True)
class Values:
    """d [facts, hidden], f32; loss [facts], nats of the whole object at the end; steps taken."""

    d: torch.Tensor
    loss: torch.Tensor
    steps: int


def values(
    engine: Engine,
    layer: int,
    lessons: Sequence[Lesson],
    n_facts: int,
    *,
    start: torch.Tensor | None = None,
    steps: int = STEPS,
    progress: Callable[[int, int], None] | None = None,
    trace: Callable[[int, Any], None] | None = None,
) -> Values:
    """The value of every fact, found together by Adam: each lesson's FFN output gets the sum of its facts' values."""
    groups = _groups(engine, layer, lessons, n_facts)
    # Lengths are told in the size of what the layer hands on, so that nothing depends on the model's scale.
    unit = torch.cat([g.hidden[:, 0] for g in groups]).float().norm(dim=1).mean().item()
    unit = _unit(engine, layer, groups) if engine.anatomy.layers[layer].ffn_post is not None else unit
    size = unit / math.sqrt(engine.hidden)
    u = torch.zeros(n_facts, engine.hidden) if start is None else start.clone() / size
    u.requires_grad_(True)
    first = torch.zeros_like(u)
    second = torch.zeros_like(u)
    done = torch.zeros(n_facts, dtype=torch.bool)
    best = torch.full((n_facts,), math.inf)
    out = u.detach().clone()
    loss = best.clone()
    step = 0
    for step in range(1, steps + 1):
        u.grad = None
        said = torch.zeros(n_facts)
        kept = torch.zeros(n_facts)
        n_said, n_kept = torch.zeros(n_facts), torch.zeros(n_facts)
        for g in groups:
            for lesson in g.lessons:
                for f in lesson.facts:
                    (n_said if lesson.says else n_kept)[f] += lesson.weight
        for g in groups:
            live = [i for i, lesson in enumerate(g.lessons) if not all(done[f] for f in lesson.facts)]
            if not live:
                continue
            total = _lesson_loss(engine, layer, g, u * size, live, said, kept, n_said, n_kept)
            total.backward()
        assert u.grad is not None
        decay = _DECAY * (u.detach() * size / unit).pow(2).sum(1)
        grad = u.grad + 2 * _DECAY * u.detach() * (size / unit) ** 2
        whole = said.detach() + _KEEP * kept.detach() + decay
        if trace is not None:
            trace(step, (said.detach().clone(), kept.detach().clone(), (u.detach() * size / unit).norm(dim=1)))
        now = ~done & (whole < best)
        best[now], loss[now], out[now] = whole[now], said[now], u.detach()[now]
        done |= said + 0.5 * _KEEP * kept < DONE
        if bool(done.all()):
            break
        with torch.no_grad():
            first.mul_(0.9).add_(grad, alpha=0.1)
            second.mul_(0.999).addcmul_(grad, grad, value=0.001)
            move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            move[done] = 0
            u -= _RATE * move
        if progress is not None:
            progress(int(done.sum()), n_facts)
    return Values(out * size, loss, step)


def _unit(engine: Engine, layer: int, groups: Sequence[_Group]) -> float:
    """The mean length of the FFN's raw output at the subjects, which a post-norm will scale away."""
    parts = engine.anatomy.layers[layer]
    found: list[torch.Tensor] = []
    handle = parts.ffn.register_forward_hook(lambda module, args, out: found.append(out[:, 0].float()))
    try:
        with torch.no_grad(), starting_at(engine.anatomy, layer, groups[0].hidden):
            _body(engine, groups[0], layer, None)
    finally:
        handle.remove()
    return float(found[0].norm(dim=1).mean())


def _lesson_loss(
    engine: Engine,
    layer: int,
    g: _Group,
    d: torch.Tensor,
    live: list[int],
    said: torch.Tensor,
    kept: torch.Tensor,
    n_said: torch.Tensor,
    n_kept: torch.Tensor,
) -> torch.Tensor:
    """The sum over facts of what their lessons lack; said and kept [facts] are added to."""
    pick = torch.tensor(live)
    hidden = after(engine, layer, g, d, pick)
    place = torch.full((len(g.lessons),), -1)
    place[pick] = torch.arange(len(live))
    total = hidden.new_zeros((), dtype=torch.float32)
    on = place[g.rows] >= 0
    if bool(on.any()):
        rows = g.rows[on]
        logits = engine_logits(engine, hidden[place[rows], g.columns[on]])
        nats = torch.logsumexp(logits, -1) - logits.gather(1, g.labels[on][:, None])[:, 0]
        for i, lesson in enumerate(g.lessons):
            mine = nats[rows == i]
            if len(mine):
                for f in lesson.facts:
                    part = lesson.weight * mine.sum() / n_said[f]
                    said[f] += part.detach()
                    total = total + part
    on = place[g.keep_rows] >= 0
    if bool(on.any()):
        rows = g.keep_rows[on]
        logits = engine_logits(engine, hidden[place[rows], g.keep_columns[on]])
        log_p = torch.log_softmax(logits, -1)
        before = g.kept[on]
        gap = (before.exp() * (before - log_p)).sum(-1)
        for j, i in enumerate(rows.tolist()):
            lesson = g.lessons[i]
            for f in lesson.facts:
                part = lesson.weight * gap[j] / n_kept[f]
                kept[f] += part.detach()
                total = total + _KEEP * part
    return total


def engine_logits(engine: Engine, hidden: torch.Tensor) -> torch.Tensor:
    """Logits, f32 [n, vocab], of final hidden states behind the last norm [n, hidden], differentiable."""
    logits = engine.anatomy.head(hidden.to(engine.model.dtype)).float() * engine.anatomy.logit_scale
    cap = getattr(engine.model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def after(
    engine: Engine, layer: int, g: _Group, d: torch.Tensor | None, pick: torch.Tensor | None = None
) -> torch.Tensor:
    """The final hidden states [rows, t, hidden] of a group with d [facts, hidden] added to the FFN's raw output."""
    add = None if d is None else (g.adds if pick is None else g.adds[pick]) @ d
    hidden = g.hidden if pick is None else g.hidden[pick]

    def hook(module: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        assert add is not None
        extra = torch.nn.functional.pad(add[:, None].to(out), (0, 0, 0, out.shape[1] - 1))
        return out + extra

    with engine.anatomy.passing:
        handle = None if add is None else engine.anatomy.layers[layer].ffn.register_forward_hook(hook)
        try:
            with starting_at(engine.anatomy, layer, hidden):
                return _body(engine, g, layer, pick)
        finally:
            if handle is not None:
                handle.remove()


def _body(engine: Engine, g: _Group, layer: int, pick: torch.Tensor | None) -> torch.Tensor:
    cache = fork(g.cache, pick, layer)
    ids, mask, positions = g.ids, g.mask, g.positions
    if pick is not None:
        ids, mask, positions = ids[pick], mask[pick], positions[pick]
    out = engine.model.base_model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    hidden: torch.Tensor = out.last_hidden_state
    return hidden


def _groups(engine: Engine, layer: int, lessons: Sequence[Lesson], n_facts: int) -> list[_Group]:
    """The lessons in groups of similar shape, each prepared."""
    order = sorted(lessons, key=lambda s: (len(s.ids) - s.at, s.at))
    out: list[_Group] = []
    start = 0
    while start < len(order):
        stop, longest = start, 0
        while stop < len(order):
            longest = max(longest, len(order[stop].ids) - order[stop].at)
            if stop > start and longest * (stop + 1 - start) > _PASS:
                break
            stop += 1
        out.append(_prepared(engine, layer, order[start:stop], n_facts))
        start = stop
    return out


@torch.no_grad()
def _prepared(engine: Engine, layer: int, lessons: list[Lesson], n_facts: int) -> _Group:
    n, before = len(lessons), max(s.at for s in lessons)
    behind = max(len(s.ids) - s.at for s in lessons)
    ids = torch.zeros(n, before + behind, dtype=torch.int64)
    mask = torch.zeros(n, before + behind, dtype=torch.bool)
    for i, s in enumerate(lessons):
        ids[i, before - s.at : before - s.at + len(s.ids)] = torch.tensor(s.ids)
        # Padding behind a prompt is seen by nobody: attention looks back only.
        mask[i, before - s.at :] = True
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    ids, mask, positions = (t.to(engine.device) for t in (ids, mask, positions))
    cache = engine.new_cache()
    with engine.anatomy.passing:
        if before:
            engine.model.base_model(
                input_ids=ids[:, :before],
                attention_mask=mask[:, :before].long(),
                position_ids=positions[:, :before],
                past_key_values=cache,
                use_cache=True,
            )
        seen: list[torch.Tensor] = []

        def watch(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        handle = engine.anatomy.layers[layer].block.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            out = engine.model.base_model(
                input_ids=ids[:, before:],
                attention_mask=mask.long(),
                position_ids=positions[:, before:],
                past_key_values=fork(cache),
                use_cache=True,
            ).last_hidden_state
        finally:
            handle.remove()
    adds = torch.zeros(n, n_facts)
    said: list[tuple[int, int, int, int]] = []
    keep: list[tuple[int, int]] = []
    kept: list[torch.Tensor] = []
    for i, s in enumerate(lessons):
        adds[i, list(s.facts)] = s.scale
        length = len(s.ids) - s.at
        for j in range(length - s.says, length):
            said.append((i, j - 1, s.ids[s.at + j], s.facts[0]))
        if not s.says:
            keep.append((i, length - 1))
            own = s.wanted
            if own is None:
                own = torch.log_softmax(engine_logits(engine, out[i, length - 1][None])[0], -1)
            kept.append(own)
    columns = torch.tensor(said or [(0, 0, 0, 0)])[: len(said)].t().reshape(4, -1)
    keeps = torch.tensor(keep or [(0, 0)])[: len(keep)].t().reshape(2, -1)
    return _Group(
        lessons, cache, ids[:, before:], mask, positions[:, before:], seen[0], adds,
        columns[0], columns[1], columns[2], columns[3], keeps[0], keeps[1],
        torch.stack(kept) if kept else torch.zeros(0, engine.vocab),
    )  # fmt: skip
