"""Text after a prompt: streamed for a reader, or greedily for many prompts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Prefix, prefill


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token: its id, the text it adds, its probability; the most probable tokens there, with theirs.

    Probabilities are the model's own, whatever it was sampled with.
    """

    token_id: int
    text: str
    p: float
    best: tuple[tuple[int, float], ...] = ()


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
    """The continuation, token by token, until a special token, a stop id, the context's end or max_tokens.

    prompt is text, or token ids that hold their special tokens already.
    temperature 0 takes the most probable token each time; above 0 it samples, reproducibly by seed, among the fewest
    tokens that together have top_p. alternatives: how many most probable tokens are given beside each.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    batch = engine.encode(prompt) if isinstance(prompt, str) else engine.pad(prompt)
    prefix = prefill(engine, batch)
    room = (
        max_tokens
        if engine.context is None
        else min(max_tokens, engine.context - int(prefix.positions[0, 0]))
    )
    ids: list[int] = []
    text = ""
    for _ in range(room):
        logits, texts = prefix.advanced()
        probabilities = torch.softmax(logits[0], dim=-1)
        if temperature > 0:
            weights = nucleus(torch.softmax(logits[0] / temperature, dim=-1).cpu(), top_p)
            token = int(torch.multinomial(weights, 1, generator=generator))
        else:
            token = int(logits[0].argmax())
        if token in stop_ids or engine.tokenizer.is_special(token):
            return
        ids.append(token)
        # Decoded together: a character may span tokens, and some tokenizers join pieces.
        whole = engine.tokenizer.continuation(ids)
        piece = "" if whole.endswith("\ufffd") else whole[len(text) :]
        text += piece
        best = probabilities.topk(min(alternatives, len(probabilities)))
        pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        yield GeneratedToken(token, piece, float(probabilities[token]), pairs)
        prefix = texts.then(torch.tensor([token], device=engine.device))


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


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """The entropy in nats [...] of distributions given as log probabilities [..., vocab]."""
    # What is impossible adds nothing; the limit keeps 0 times infinity out.
    return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)
