"""What a model says: the probability of a whole object after a prompt, and the next token's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.fact_prompts import answer_ids, filled

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine

# Tokens of one pass, padding included, and logits that it may hold.
_PASS, _LOGITS = 2048, 1 << 24


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
    for part in _parts([len(r) for r in rows], engine.vocab * (max(sizes, default=0) + 1)):
        batch = pad([rows[i] for i in part], device=engine.device)
        keep = max(sizes[i] for i in part) + 1
        mask = batch.mask if batch.padded else None
        logits = engine.run(batch.ids, mask, batch.positions, keep=keep)
        logits = logits[:, None] if logits.dim() == 2 else logits
        for j, i in enumerate(part):
            size = sizes[i]
            labels = torch.tensor(rows[i][len(rows[i]) - size :], device=logits.device)
            log_p = torch.log_softmax(logits[j, -size - 1 : -1], -1)
            own = log_p.gather(1, labels[:, None])[:, 0]
            greedy = bool((log_p.argmax(-1) == labels).all())
            out[i] = TargetProbability(
                float(own.sum().exp()), greedy and size > 0, float(own[:1].exp().sum())
            )
    return [out[i] for i in range(len(asked))]


@torch.inference_mode()
def next_token_probabilities(engine: Engine, prompts: Sequence[str]) -> torch.Tensor:
    """The next token's probabilities, f32 [n, vocab]."""
    if not prompts:
        return torch.zeros(0, engine.vocab)
    rows = engine.tokenizer.encode_batch(list(prompts))
    out = torch.empty(len(rows), engine.vocab)
    for part in _parts([len(r) for r in rows], engine.vocab):
        logits = engine.logits(pad([rows[i] for i in part], device=engine.device))
        out[torch.tensor(part)] = torch.softmax(logits, -1).cpu()
    return out


def _parts(lengths: Sequence[int], logits: int) -> list[list[int]]:
    """Row numbers that run together: of similar length, within the bounds."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    out: list[list[int]] = []
    part: list[int] = []
    for i in order:
        if part and ((len(part) + 1) * lengths[i] > _PASS or (len(part) + 1) * logits > _LOGITS):
            out.append(part)
            part = []
        part.append(i)
    return [*out, part] if part else out
