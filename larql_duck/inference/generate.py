"""Text after a prompt: token by token, alone or with others, or greedily for many prompts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Prefix, joined, only_row, prefill


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token: its id, the text it adds, its probability; the most probable tokens there, with theirs.

    Probabilities are the model's own, whatever it was sampled with.
    """

    token_id: int
    text: str
    p: float
    best: tuple[tuple[int, float], ...] = ()


class Draft:
    """A text being written behind a prompt, a few tokens at a time: `advance` writes several together.

    ids are the prompt's token ids; `done` is true once nothing follows: a special token or one of stop_ids came (`stopped`),
    or there were max_tokens, or the context is full. temperature 0 takes the most probable token each time; above 0 it samples,
    reproducibly by seed, among the fewest tokens that together have top_p. alternatives: how many most probable tokens are
    given beside each. LarqlError for ids on which the model cannot run.
    """

    def __init__(
        self,
        engine: Engine,
        ids: Sequence[int],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: Sequence[int] = (),
        alternatives: int = 0,
    ) -> None:
        if problem := engine.unfit(ids):
            raise LarqlError(problem)
        self.engine, self.prompt = engine, list(ids)
        self._temperature, self._top_p, self._stop_ids = temperature, top_p, frozenset(stop_ids)
        self._alternatives = alternatives
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        # The position of the token that waits, the prompt's last, is given too.
        left = max_tokens if engine.context is None else min(max_tokens, engine.context - len(ids) + 1)
        self._room = max(left, 0)
        self._ids: list[int] = []
        self._text = ""
        self.done, self.stopped = self._room == 0, False
        # Where its keys and values are: a row of a prefix, which those that were written together share.
        self.place: tuple[Prefix, int] | None = None

    def choose(self, logits: torch.Tensor) -> GeneratedToken | None:
        """The next token from its logits, f32 [vocab]; None where the text ends, which is done then."""
        probabilities = torch.softmax(logits, dim=-1)
        if self._temperature > 0:
            weights = nucleus(torch.softmax(logits / self._temperature, dim=-1).cpu(), self._top_p)
            token = int(torch.multinomial(weights, 1, generator=self._generator))
        else:
            token = int(logits.argmax())
        tokenizer = self.engine.tokenizer
        if token in self._stop_ids or tokenizer.is_special(token):
            self.done = self.stopped = True
            return None
        self._ids.append(token)
        self.done = len(self._ids) >= self._room
        # Decoded together: a character may span tokens, and some tokenizers join pieces.
        whole = tokenizer.continuation(self._ids)
        piece = "" if whole.endswith("\ufffd") else whole[len(self._text) :]
        self._text += piece
        best = probabilities.topk(min(self._alternatives, len(probabilities)))
        pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return GeneratedToken(token, piece, float(probabilities[token]), pairs)


@torch.inference_mode()
def advance(drafts: Sequence[Draft], steps: int = 1) -> list[list[GeneratedToken]]:
    """At most `steps` tokens more of each of these texts of one engine, which share their passes; fewer where a text ends."""
    out: list[list[GeneratedToken]] = [[] for _ in drafts]
    alive = [i for i, draft in enumerate(drafts) if not draft.done]
    if not alive:
        return out
    prefix = _together([drafts[i] for i in alive])
    for _ in range(steps):
        logits, texts = prefix.advanced()
        tokens, rows = [], []
        for row, i in enumerate(alive):
            if (token := drafts[i].choose(logits[row])) is not None:
                out[i].append(token)
                if not drafts[i].done:
                    tokens.append(token.token_id)
                    rows.append(row)
        if not rows:
            return out
        picked = None if len(rows) == len(alive) else _index(prefix, rows)
        prefix = texts.then(_index(prefix, tokens), picked)
        alive = [alive[row] for row in rows]
    for row, i in enumerate(alive):
        drafts[i].place = (prefix, row)
    return out


def _together(drafts: Sequence[Draft]) -> Prefix:
    """One prefix of these texts, in order: those that have begun where they are, the others run up to their last token."""
    engine = drafts[0].engine
    fresh = [draft for draft in drafts if draft.place is None]
    # A sliding window counts columns, and must find no padding inside a text that grows beyond it.
    groups = [[draft] for draft in fresh] if engine.window is not None else [fresh] if fresh else []
    for group in groups:
        begun = prefill(engine, pad([draft.prompt for draft in group], device=engine.device))
        for row, draft in enumerate(group):
            draft.place = (begun, row)
    places = [draft.place for draft in drafts if draft.place is not None]
    first = places[0][0]
    if all(prefix is first for prefix, _ in places):
        rows = [row for _, row in places]
        if rows == list(range(len(first))):
            return first
    return joined([only_row(prefix, row) for prefix, row in places])


def stream(
    engine: Engine,
    prompt: str | Sequence[int],
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    alternatives: int = 0,
) -> Iterator[GeneratedToken]:
    """The continuation, token by token, until a special token, a stop id, the context's end or max_tokens; see `Draft`.

    prompt is text, or token ids that hold their special tokens already.
    """
    draft = Draft(
        engine,
        engine.encode(prompt).row(0) if isinstance(prompt, str) else prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_ids=stop_ids,
        alternatives=alternatives,
    )
    while not draft.done:
        yield from advance([draft])[0]


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probabilities [vocab] with zeros beyond the fewest that together have top_p; one stays at least."""
    if top_p >= 1:
        return probabilities
    ordered, ids = probabilities.sort(descending=True)
    # What is before it has top_p already.
    beyond = ordered.cumsum(0) - ordered >= top_p
    beyond[0] = False
    return probabilities.index_fill(0, ids[beyond], 0.0)


@dataclass(frozen=True)
class PromptToken:
    """One token of a prompt: its id, its probability behind those before it (None for the first), and the most probable there."""

    token_id: int
    p: float | None
    best: tuple[tuple[int, float], ...] = ()


def prompt_tokens(engine: Engine, prompt: str, alternatives: int = 0) -> list[PromptToken]:
    """The tokens of a prompt with the probabilities that the model gives them, from one pass."""
    batch = engine.encode(prompt)
    ids = batch.row(0)
    probabilities = torch.softmax(engine.run(batch.ids, None, batch.positions, keep=0)[0], dim=-1)
    out = [PromptToken(ids[0], None)]
    for row, token in zip(probabilities, ids[1:], strict=False):
        best = row.topk(min(alternatives, len(row)))
        pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        out.append(PromptToken(token, float(row[token]), pairs))
    return out


@dataclass(frozen=True)
class Continuation:
    """A greedy continuation: token ids, and for each its probability and the entropy (nats) of the distribution that it
    was taken from. The given first token is left out.
    """

    ids: tuple[int, ...]
    p: tuple[float, ...]
    entropy: tuple[float, ...] = ()


# In the place of a row's number: it ended and still runs along.
_ENDED = -1


@torch.inference_mode()
def greedy(prefix: Prefix, *, max_tokens: int, stop: Callable[[int, list[int]], bool]) -> list[Continuation]:
    """For each row of `prefix`, what follows its waiting token: at most max_tokens greedy tokens, within the context.

    stop(i, ids) is asked after each token with row i's continuation so far (the newest token included) and ends the
    row; the newest token then still belongs to the result. Rows that ended leave the batch once they are as many as the
    others: to move the others costs as much as to run it along.
    """
    context = prefix.engine.context
    out: list[tuple[list[int], list[float], list[float]]] = [([], [], []) for _ in range(len(prefix))]
    alive = list(range(len(prefix)))
    if context is not None and int(prefix.positions.max()) >= context:
        return [Continuation((), ())] * len(prefix)
    for _ in range(max_tokens):
        logits, texts = prefix.advanced()
        log_p = torch.log_softmax(logits, dim=-1)
        best, tokens = log_p.max(dim=-1)
        entropies = entropy(log_p).tolist()
        probabilities = best.exp().tolist()
        keep = []
        for at, i in enumerate(alive):
            if i == _ENDED:
                continue
            ids, p, doubt = out[i]
            ids.append(int(tokens[at]))
            p.append(probabilities[at])
            doubt.append(entropies[at])
            room = context is None or int(prefix.positions[at, 0]) + 1 < context
            if not stop(i, ids) and room:
                keep.append(at)
        if not keep:
            break
        # A row that runs along needs a position too, and must not change what is computed for the others.
        full = context is not None and int(prefix.positions.max()) + 1 >= context
        if 2 * len(keep) <= len(alive) or full or prefix.engine.rope.modules:
            rows = torch.tensor(keep, device=tokens.device)
            prefix = texts.then(tokens[rows], rows)
            alive = [alive[at] for at in keep]
        else:
            prefix = texts.then(tokens)
            alive = [i if at in keep else _ENDED for at, i in enumerate(alive)]
    return [Continuation(tuple(ids), tuple(p), tuple(doubt)) for ids, p, doubt in out]


@torch.inference_mode()
def forced(prefix: Prefix, tails: Sequence[Sequence[int]]) -> list[float]:
    """For each row of `prefix`, the probability of exactly these tokens behind its waiting one; 1 for none."""
    out = [1.0] * len(tails)
    alive = [i for i, tail in enumerate(tails) if tail]
    if not alive:
        return out
    logits, texts = prefix.advanced(None if len(alive) == len(tails) else _index(prefix, alive))
    for at in range(max(map(len, tails))):
        tokens = _index(prefix, [tails[i][at] for i in alive])
        log_p = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]
        for i, p in zip(alive, log_p.exp().tolist(), strict=True):
            out[i] *= p
        going_on = [n for n, i in enumerate(alive) if len(tails[i]) > at + 1]
        if not going_on:
            break
        alive = [alive[n] for n in going_on]
        rows = _index(prefix, going_on)
        logits, texts = texts.then(tokens[rows], rows).advanced()
    return out


def _index(prefix: Prefix, numbers: Sequence[int]) -> torch.Tensor:
    return torch.tensor(numbers, device=prefix.ids.device)


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """The entropy in nats [...] of distributions given as log probabilities [..., vocab]."""
    # What is impossible adds nothing; the limit keeps 0 times infinity out.
    return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)
