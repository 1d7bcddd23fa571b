"""The token that a text names, and the most probable tokens of logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from larql_duck.errors import LarqlError
from larql_duck.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Target:
    """One token of the vocabulary: its id, its text (leading space kept), and remarks on how it was found."""

    token_id: int
    token: str
    notices: tuple[str, ...] = ()


def find_target(tokenizer: Tokenizer, text: str) -> Target:
    """The token that FOR "text" means: the text as it stands in running text, or as typed, where that is one token.

    A text of several tokens means its first one, with a remark: that is what the model has to predict first.
    LarqlError for a text without tokens, and for a token that the model does not have.
    """
    spoken = tokenizer.entity_ids(text) if text.strip() and not text[:1].isspace() else []
    typed = tokenizer.encode(text, special=False) if text else []
    ids = next((ids for ids in (spoken, typed) if len(ids) == 1), spoken or typed)
    if not ids:
        raise LarqlError("an empty text names no token; write the token after FOR")
    token = tokenizer.token(ids[0])
    if ids[0] >= tokenizer.vocab_size:
        raise LarqlError(f"the model has no embedding for the token {token!r} of its tokenizer; name another")
    if len(ids) == 1:
        return Target(ids[0], token)
    return Target(ids[0], token, (f"{text!r} has {len(ids)} tokens; the first one, {token!r}, is looked at",))


def known_target(tokenizer: Tokenizer, token_id: int) -> Target:
    """The Target of a token id."""
    return Target(token_id, tokenizer.token(token_id))


def target_or_prediction(tokenizer: Tokenizer, text: str | None, logits: torch.Tensor) -> Target:
    """The Target of a text, or where it is None that of the most probable token of logits [vocab]."""
    if text is None:
        return known_target(tokenizer, int(top_tokens(logits, 1)[0]))
    return find_target(tokenizer, text)


def top_tokens(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Ids of the k largest of logits [vocab], largest first; equal logits in the order of their ids."""
    k = min(k, logits.shape[-1])
    if k <= 0:
        return torch.zeros(0, dtype=torch.int64, device=logits.device)
    # topk leaves open which of several equal values it takes: everything that reaches the k-th one is sorted.
    limit = torch.topk(logits, k).values[-1]
    ids = torch.nonzero(logits >= limit).flatten()
    return ids[torch.sort(logits[ids], descending=True, stable=True).indices][:k]
