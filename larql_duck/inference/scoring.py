"""What a model says: the probability of a whole object after a prompt, and the next token's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.fact_prompts import answer_ids, filled

# Logits that one pass may hold.
_LOGITS = 1 << 24


@dataclass(frozen=True)
class TargetProbability:
    """p: the probability of all tokens of the object; greedy: whether each is the most probable one; first: its first."""

    p: float
    greedy: bool
    first: float


@torch.inference_mode()
def target_probabilities(engine: Engine, asked: Sequence[tuple[str, str, str]]) -> list[TargetProbability]:
    """What becomes of each (template, subject's text, object)."""
    rows, sizes = [], []
    for template, text, target in asked:
        ids = answer_ids(engine.tokenizer, template, target)
        rows.append([*engine.tokenizer.encode(filled(template, text)[0]), *ids])
        sizes.append(len(ids))
    out: dict[int, TargetProbability] = {}
    for part in length_groups(
        [len(r) for r in rows], rows=_LOGITS // (engine.vocab * (max(sizes, default=0) + 1))
    ):
        batch = pad([rows[i] for i in part], device=engine.device)
        keep = max(sizes[i] for i in part) + 1
        mask = batch.mask if batch.padded else None
        logits = engine.run(batch.ids, mask, batch.positions, keep=keep)
        logits = logits[:, None] if logits.dim() == 2 else logits
        for j, i in enumerate(part):
            size = sizes[i]
            labels = torch.tensor(rows[i][len(rows[i]) - size :], device=logits.device)
            log_p = torch.log_softmax(logits[j, -size - 1 : -1], -1)
            token_log_p = log_p.gather(1, labels[:, None])[:, 0]
            greedy = bool((log_p.argmax(-1) == labels).all())
            out[i] = TargetProbability(
                float(token_log_p.sum().exp()), greedy and size > 0, float(token_log_p[:1].exp().sum())
            )
    return [out[i] for i in range(len(asked))]


@torch.inference_mode()
def next_token_probabilities(engine: Engine, prompts: Sequence[str]) -> torch.Tensor:
    """The next token's probabilities, f32 [n, vocab]."""
    if not prompts:
        return torch.zeros(0, engine.vocab)
    rows = engine.tokenizer.encode_batch(list(prompts))
    out = torch.empty(len(rows), engine.vocab)
    for part in length_groups([len(r) for r in rows], rows=_LOGITS // engine.vocab):
        logits = engine.logits(pad([rows[i] for i in part], device=engine.device))
        out[torch.tensor(part)] = torch.softmax(logits, -1).cpu()
    return out
