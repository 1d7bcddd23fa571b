"""Text that a model writes by itself, as token ids: ordinary text for whoever has no other."""

from __future__ import annotations

import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import prefill
from larql_duck.progress import Ticker

# Tokens of one text, and texts that are written together.
LENGTH, TOGETHER = 192, 64


@torch.inference_mode()
def written_ids(engine: Engine, n: int, *, seed: int = 0, progress: Ticker | None = None) -> list[list[int]]:
    """Token ids of texts with at least n tokens together, sampled at temperature 1; equal seeds give equal texts.

    Each starts with the tokenizer's BOS, or with a word of the vocabulary; after an end-of-text token it goes on with
    a new text, as training data does.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    length = min(LENGTH, engine.context or LENGTH)
    texts: list[list[int]] = []
    made = 0
    while made < n:
        rows = _starts(engine, min(TOGETHER, -(-(n - made) // length)), generator)
        prefix = prefill(engine, pad(rows, device=engine.device))
        while len(rows[0]) < length:
            logits, read = prefix.advanced()
            tokens = _drawn(logits.cpu(), generator)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.append(token)
            prefix = read.then(tokens.to(engine.device))
            if progress is not None:
                progress(made + len(rows) * len(rows[0]), max(n, made + len(rows) * length))
        texts += rows
        made += sum(map(len, rows))
    return texts


def _drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token id a row of logits [n, vocab], int64 [n]: where a uniform number lies among the summed probabilities.

    torch.multinomial draws a number for every token of the vocabulary, which takes longer than the rest of a step.
    """
    summed = logits.double().softmax(-1).cumsum(-1)
    u = torch.rand(len(summed), 1, generator=generator, dtype=torch.float64) * summed[:, -1:]
    return torch.searchsorted(summed, u, right=True)[:, 0].clamp(max=summed.shape[1] - 1)


def _starts(engine: Engine, count: int, generator: torch.Generator) -> list[list[int]]:
    bos = engine.tokenizer.bos_id
    if bos is not None:
        return [[bos] for _ in range(count)]
    words = [i for i in range(engine.vocab) if engine.tokenizer.is_word(i)] or list(range(engine.vocab))
    picked = torch.randint(len(words), (count,), generator=generator).tolist()
    return [[words[i]] for i in picked]
