"""Prompts as model input: token ids, left-padded, with mask and explicit position ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from larql_duck.errors import LarqlError
from larql_duck.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """n prompts padded on the left to t tokens.

    ids and positions are int64 [n, t]; mask is bool [n, t], true on real tokens; positions count from 0 at each
    prompt's first real token. lengths are the prompts' own token counts.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def padded(self) -> bool:
        """Whether any prompt is shorter than the longest one."""
        return min(self.lengths) != max(self.lengths)

    def row(self, i: int) -> list[int]:
        """Prompt i's own token ids."""
        ids: list[int] = self.ids[i, self.ids.shape[1] - self.lengths[i] :].tolist()
        return ids

    def select(self, rows: Sequence[int]) -> Batch:
        """A batch of the given prompts, padded no more than they need."""
        return pad([self.row(i) for i in rows], device=self.ids.device)


def pad(rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu") -> Batch:
    """The rows of token ids as one Batch. Padding takes id 0, which the mask hides."""
    lengths = tuple(len(r) for r in rows)
    t = max(lengths)
    ids = torch.zeros(len(rows), t, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, t - len(row) :] = torch.tensor(row, dtype=torch.int64)
    starts = torch.tensor([t - n for n in lengths])[:, None]
    steps = torch.arange(t)[None, :] - starts
    return Batch(ids.to(device), (steps >= 0).to(device), steps.clamp(min=0).to(device), lengths)


def length_groups(
    lengths: Sequence[int], *, tokens: int = 2048, rows: int | None = None
) -> Iterator[list[int]]:
    """Numbers of rows that go through the model together: of like length, at most `tokens` with padding and `rows`."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and ((len(group) + 1) * lengths[i] > tokens or (rows is not None and len(group) >= rows)):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


EMPTY = "the prompt is empty; give it at least one token of text"


def unfit(
    ids: Sequence[int], *, tokenizer: Tokenizer, context: int | None, vocab: int, room: int = 0
) -> str | None:
    """Why the model cannot run on these token ids with `room` more behind them; None where it can."""
    if not ids:
        return EMPTY
    if context is not None and len(ids) + room > context:
        more = f", of which {room} are for what follows" if room else ""
        return f"the prompt has {len(ids)} tokens and the model's context holds {context}{more}; shorten it"
    if (beyond := max(ids)) >= vocab:
        token = tokenizer.token(beyond)
        if not token:
            return f"the model has {vocab} embeddings, none for id {beyond}; tokenizer.json does not belong to it"
        return f"the model has no embedding for the token {token!r} of its tokenizer; leave it out"
    return None


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The token ids of a prompt: raw completion text, special tokens as the tokenizer's own settings say."""
    try:
        return tokenizer.encode(prompt)
    except (UnicodeEncodeError, TypeError):
        # Half of a surrogate pair is a Python string, but no text.
        raise LarqlError(
            "the prompt holds a lone surrogate and is no valid text; write it as UTF-8"
        ) from None
