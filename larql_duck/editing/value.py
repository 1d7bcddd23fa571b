"""Values: what a feature has to write at its subject so that the model says the new object, by gradient steps.

Only the layers above the edited one run, and of each prompt only what follows the subject: what stands before it is
in a cache. A step runs a share of the prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.kv_cache import fork_cache, holds_anything, holds_keys
from larql_duck.inference.loading import return_memory
from larql_duck.inference.modules import starting_at, watching_input
from larql_duck.inference.prefix import cheapest_groups, prefill
from larql_duck.progress import Ticker

if TYPE_CHECKING:
    from transformers import DynamicCache


# Gradient steps at most, and the loss (nats of the whole object, averaged over prompts) at which a fact is done.
STEPS, DONE = 42, 0.12
# Shares in which the prompts are run, one a step.
PHASES = 6
# Adam's step, in units of the layer's own length; what a nat of changed other answers weighs; what length^2 weighs.
RATE, KEEP, DECAY = 0.15, 4.0, 0.05
# A prompt whose loss (nats) is below this rests in its next turn: its gradient is next to nothing.
_REST = 0.05
# What the first prompt of a deletion weighs: to be said less of all ways is not enough where it is asked first.
_FIRST = 4.0
# A post-norm keeps the direction of a sum alone: to turn it, d has to be longer than what was there.
_POST = 3.0
# Positions behind the subject that one pass takes; tokens of a distribution that are held one by one.
_PASS, _HELD = 256, 512
# What starting one more pass costs, in tokens of a running one (measured on CPUs; it only decides how to group).
_START = 64


@dataclass(frozen=True)
class RewritePrompt:
    """A prompt that teaches: token ids, the index of the subject's last token, the facts whose values are added there.

    says: the last `says` tokens are to be said. 0: the next token's distribution is to stay as it is, except that the
    tokens `less` are to be no more probable than `most`, what they lose being shared by the others in proportion.
    scale multiplies the values. always: it is part of every step.
    """

    ids: tuple[int, ...]
    at: int
    facts: tuple[int, ...]
    says: int = 0
    less: tuple[int, ...] = ()
    most: float = 0.0
    scale: float = 1.0
    always: bool = False

    @property
    def goal(self) -> bool:
        """Whether this is what the edit is for, and not what it is to leave alone."""
        return self.says > 0 or bool(self.less)


@dataclass(frozen=True)
class Values:
    """d [facts, hidden], f32; loss [facts], mean nats of what is to be said; stated [facts], the same for what is part of
    every step; steps taken.
    """

    d: torch.Tensor
    loss: torch.Tensor
    stated: torch.Tensor
    steps: int


def values(
    engine: Engine,
    layer: int,
    prompts: Sequence[RewritePrompt],
    n_facts: int,
    *,
    start: torch.Tensor | None = None,
    steps: int = STEPS,
    keep: float | None = None,
    progress: Ticker | None = None,
    trace: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> Values:
    """The value of every fact, found together by Adam: at each prompt's subject the FFN's raw output gets the sum of
    its facts' values. keep weighs what is to stay (KEEP). trace(step, said, kept, length) is called with the losses [facts] and lengths of d.
    """
    phases = [_groups(engine, layer, part, n_facts) for part in _phases(prompts, n_facts) if part]
    return_memory()
    # Lengths are told in that of what the layer hands on, so that nothing depends on the model's scale.
    unit = _unit(engine, layer, phases[0])
    size = unit / math.sqrt(engine.hidden)
    u = torch.zeros(n_facts, engine.hidden) if start is None else start / size
    u = u.clone().requires_grad_(True)
    first, second = torch.zeros_like(u), torch.zeros_like(u)
    taken = torch.zeros(n_facts)
    stated = torch.zeros(n_facts)
    weight = KEEP if keep is None else keep
    done = torch.zeros(n_facts, dtype=torch.bool)
    rewrite_loss = torch.full((len(phases), n_facts), math.inf)
    keep_loss = torch.full((len(phases), n_facts), math.inf)
    step = 0
    for step in range(1, steps + 1):
        u.grad = None
        phase = (step - 1) % len(phases)
        rewrite_loss[phase][~done], keep_loss[phase][~done] = 0.0, 0.0
        live = ~done
        for group in phases[phase]:
            active = group.live(done)
            if len(active):
                loss = _losses(engine, layer, group, u * size, active)
                weights = (group.share * live).sum(1) * torch.where(group.goal, 1.0, weight)
                (weights * loss).sum().backward()
                group.keep(active, loss)
            else:
                group.rests[:] = False
            shared = group.share * live * group.loss[:, None]
            rewrite_loss[phase] += shared[group.goal].nansum(0)
            keep_loss[phase] += shared[~group.goal].nansum(0)
            for i in torch.nonzero(group.always).flatten().tolist():
                stated[group.owner[i]] = group.loss[i]
        if bool(done.all()):
            break
        if u.grad is None:
            continue
        length = u.detach().norm(dim=1) / math.sqrt(engine.hidden)
        if trace is not None:
            trace(step, rewrite_loss[phase], keep_loss[phase], length)
        # What is asked first has to be said, too, not only most of the forms.
        done |= (rewrite_loss.mean(0) < DONE) & (keep_loss.mean(0) < DONE) & (stated < DONE)
        with torch.no_grad():
            move = live & ~done
            grad = u.grad + 2 * DECAY * u / engine.hidden
            # A fact that had no prompt in this phase rests.
            move &= u.grad.abs().amax(1) > 0
            taken += move.float()
            first[move] = 0.9 * first[move] + 0.1 * grad[move]
            second[move] = 0.99 * second[move] + 0.01 * grad[move].pow(2)
            n = taken[move][:, None]
            rate = RATE * min(1.0, 2 * (1 - (step - 1) / steps) + 0.1)
            u[move] -= rate * (first[move] / (1 - 0.9**n)) / ((second[move] / (1 - 0.99**n)).sqrt() + 1e-8)
        if progress is not None:
            progress(int(done.sum()), n_facts)
        if bool(done.all()):
            break
    return Values(u.detach() * size, rewrite_loss.clamp(max=1e4).mean(0), stated, step)


def _phases(prompts: Sequence[RewritePrompt], n_facts: int) -> list[list[RewritePrompt]]:
    """The prompts dealt out so that each phase has goals and keepers of every fact."""
    out: list[list[RewritePrompt]] = [[] for _ in range(PHASES)]
    dealt: dict[tuple[bool, int], int] = {}
    for prompt in prompts:
        if prompt.always:
            for part in out:
                part.append(prompt)
            continue
        key = (prompt.goal, prompt.facts[0])
        n = dealt.get(key, 0)
        dealt[key] = n + 1
        out[n % PHASES].append(prompt)
    return out


# -- prompts as batches ---------------------------------------------------------------------------------------


@dataclass
class _Group:
    """Prompts that run together, aligned at the subject; `hidden` enters the layer, what precedes it is in `cache`.

    adds [n, facts]: which values each prompt gets. said_share and kept_share [n, facts]: its share in each fact's mean.
    say [k, 3]: row, column and label of what is to be said. hold [m, 2]: row and column of distributions that are held:
    log-probabilities [m, HELD] of their most probable `tokens`, and of all others together in the last column of `log_p`.
    loss [n]: what each prompt lacked when it ran last; rests [n]: whether it rests in its next turn.
    """

    cache: DynamicCache
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    adds: torch.Tensor
    share: torch.Tensor
    goal: torch.Tensor
    always: torch.Tensor
    owner: list[int]
    say: torch.Tensor
    hold: torch.Tensor
    tokens: torch.Tensor
    log_p: torch.Tensor
    less: list[tuple[tuple[int, ...], float]]
    loss: torch.Tensor
    rests: torch.Tensor

    def live(self, done: torch.Tensor) -> torch.Tensor:
        """The prompts of which at least one fact is not done and that do not rest, int64."""
        return torch.nonzero(((self.adds != 0) & ~done).any(1) & ~self.rests).flatten()

    def keep(self, active: torch.Tensor, loss: torch.Tensor) -> None:
        """Keep the losses of the picked prompts, and let those that are small rest in their next turn."""
        self.loss[active] = loss.detach()[active]
        self.rests = torch.zeros_like(self.rests)
        self.rests[active] = self.loss[active] < _REST


def _groups(engine: Engine, layer: int, prompts: Sequence[RewritePrompt], n_facts: int) -> list[_Group]:
    """The prompts in groups of similar shape, each prepared."""
    counts = torch.zeros(2, n_facts)
    for prompt in prompts:
        counts[int(prompt.goal), list(prompt.facts)] += 1
    out: list[_Group] = []
    for group in cheapest_groups([len(s.ids) - s.at for s in prompts], start=_START):
        longest = max(len(prompts[i].ids) - prompts[i].at for i in group)
        step = max(1, _PASS // longest)
        for start in range(0, len(group), step):
            out.append(_prepared(engine, layer, [prompts[i] for i in group[start : start + step]], counts))
    return out


@torch.no_grad()
def _prepared(engine: Engine, layer: int, prompts: Sequence[RewritePrompt], counts: torch.Tensor) -> _Group:
    n, behind = len(prompts), max(len(s.ids) - s.at for s in prompts)
    prefix = prefill(engine, pad([s.ids[: s.at + 1] for s in prompts], device=engine.device))
    before = prefix.cache.get_seq_length() if holds_anything(prefix.cache) else 0
    # Padding behind a prompt is seen by nobody: attention looks back only.
    ids = torch.tensor([[*s.ids[s.at :], *[0] * (behind - len(s.ids) + s.at)] for s in prompts])
    ids = ids.to(engine.device)
    mask = torch.ones(n, before + behind, dtype=torch.bool, device=engine.device)
    if prefix.mask is not None:
        mask[:, :before] = prefix.mask
    positions = prefix.positions + torch.arange(behind, device=engine.device)
    cache = prefix.cache
    with watching_input(engine.modules, layer) as seen:
        out = _pass(engine, ids, mask, positions, fork_cache(cache))
    share, adds = torch.zeros(n, counts.shape[1]), torch.zeros(n, counts.shape[1])
    say: list[tuple[int, int, int]] = []
    hold: list[tuple[int, int]] = []
    for i, s in enumerate(prompts):
        facts = list(s.facts)
        adds[i, facts] = s.scale
        share[i, facts] = (_FIRST if s.always and s.less else 1) / counts[int(s.goal), facts]
        length = len(s.ids) - s.at
        say += [(i, j - 1, s.ids[s.at + j]) for j in range(length - s.says, length)]
        if not s.says:
            hold.append((i, length - 1))
    held = torch.tensor(hold, dtype=torch.int64).reshape(-1, 2)
    tokens, log_p = _held(engine, out[held[:, 0], held[:, 1]], [prompts[i] for i, _ in hold])
    return _Group(
        cache=_without(cache, layer),
        ids=ids,
        mask=mask,
        positions=positions,
        hidden=seen[0],
        adds=adds,
        share=share,
        goal=torch.tensor([s.goal for s in prompts]),
        always=torch.tensor([s.always for s in prompts]),
        owner=[s.facts[0] for s in prompts],
        say=torch.tensor(say, dtype=torch.int64).reshape(-1, 3),
        hold=held,
        tokens=tokens,
        log_p=log_p,
        less=[(s.less, math.log(max(s.most, 1e-12)) if s.less else 0.0) for s in prompts],
        loss=torch.full((n,), math.inf),
        rests=torch.zeros(n, dtype=torch.bool),
    )


def _without(cache: DynamicCache, layer: int) -> DynamicCache:
    """The cache without what layers below `layer` hold, in the same shape: many of them are held at a time."""
    out = fork_cache(cache)
    for own in out.layers[:layer]:
        if holds_keys(own):
            own.keys, own.values = (t.new_zeros(()).expand(t.shape) for t in (own.keys, own.values))
    return out


def _held(
    engine: Engine, hidden: torch.Tensor, prompts: Sequence[RewritePrompt]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [m, k] and log-probabilities [m, k + 1] (the last: all others) of what each prompt is to leave behind."""
    k = min(_HELD, engine.vocab - 1)
    tokens, log_p = [], []
    for start in range(0, len(prompts), 32):
        p = torch.softmax(logits_of(engine, hidden[start : start + 32]), -1)
        for row, prompt in zip(p, prompts[start : start + 32], strict=True):
            if prompt.less:
                index = list(prompt.less)
                whole = float(row[index].sum())
                if whole > prompt.most:
                    row[index] *= prompt.most / whole
                    row /= row.sum()
        best = p.topk(k, dim=-1)
        rest = (1 - best.values.sum(-1, keepdim=True)).clamp(min=1e-9)
        tokens.append(best.indices)
        log_p.append(torch.cat([best.values.clamp(min=1e-12), rest], dim=1).log())
    if not tokens:
        return torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k + 1)
    return torch.cat(tokens), torch.cat(log_p)


# -- passes ---------------------------------------------------------------------------------------------------


def _losses(engine: Engine, layer: int, g: _Group, d: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """What the picked prompts lack, nats [n], zero for the others; differentiable."""
    hidden = _written(engine, layer, g, d, active)
    place = torch.full((len(g.adds),), -1)
    place[active] = torch.arange(len(active))
    loss = torch.zeros(len(g.adds))
    say = g.say[place[g.say[:, 0]] >= 0]
    if len(say):
        logits = logits_of(engine, hidden[place[say[:, 0]], say[:, 1]])
        nats = torch.logsumexp(logits, -1) - logits.gather(1, say[:, 2:].to(logits.device))[:, 0]
        loss = loss.index_add(0, say[:, 0], nats.cpu())
    on = place[g.hold[:, 0]] >= 0
    if bool(on.any()):
        hold = g.hold[on]
        now = torch.log_softmax(logits_of(engine, hidden[place[hold[:, 0]], hold[:, 1]]), -1)
        wanted = g.log_p[on]
        named = now.gather(1, g.tokens[on])
        others = (1 - named.exp().sum(-1, keepdim=True)).clamp(min=1e-9).log()
        gaps = (wanted.exp() * (wanted - torch.cat([named, others], dim=1))).sum(-1)
        more = []
        for row, i in zip(now, hold[:, 0].tolist(), strict=True):
            less, most = g.less[i]
            more.append(
                (torch.logsumexp(row[list(less)], -1) - most).clamp(min=0) if less else row.new_zeros(())
            )
        gaps = gaps + torch.stack(more)
        loss = loss.index_add(0, hold[:, 0], gaps.cpu())
    return loss


def logits_of(engine: Engine, hidden: torch.Tensor) -> torch.Tensor:
    """Logits, f32 [n, vocab], of hidden states behind the last norm [n, hidden], differentiable."""
    return engine.capped(engine.modules.head(hidden.to(engine.model.dtype)).float() * engine.logit_scale)


def _written(engine: Engine, layer: int, g: _Group, d: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """The final hidden states [picked, t, hidden] with values d [facts, hidden] added at the subjects."""
    add = (g.adds[active] @ d).to(engine.device)

    def hook(module: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out + torch.nn.functional.pad(add[:, None].to(out), (0, 0, 0, out.shape[1] - 1))

    with engine.modules.pass_lock, starting_at(engine.modules, layer, g.hidden[active]):
        handle = engine.modules.layers[layer].down.register_forward_hook(hook)
        try:
            return _pass(
                engine, g.ids[active], g.mask[active], g.positions[active], fork_cache(g.cache, active, layer)
            )
        finally:
            handle.remove()


def _pass(
    engine: Engine, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Hidden states behind the last norm [n, t, hidden]; gradients flow where the caller lets them."""
    out = engine.model.base_model(
        input_ids=ids,
        attention_mask=None if bool(mask.all()) else mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    hidden: torch.Tensor = out.last_hidden_state
    return hidden


@torch.no_grad()
def _unit(engine: Engine, layer: int, groups: Sequence[_Group]) -> float:
    """The mean length of the residual at the subjects; of the FFN's raw output where a post-norm scales it away."""
    parts = engine.modules.layers[layer]
    if parts.ffn_post is None:
        return float(torch.cat([g.hidden[:, 0] for g in groups]).float().norm(dim=1).mean())
    found: list[torch.Tensor] = []
    g = groups[0]
    with engine.modules.pass_lock, starting_at(engine.modules, layer, g.hidden):
        handle = parts.down.register_forward_hook(lambda module, args, out: found.append(out[:, 0].float()))
        try:
            _pass(engine, g.ids, g.mask, g.positions, fork_cache(g.cache))
        finally:
            handle.remove()
    return _POST * float(found[0].norm(dim=1).mean())
