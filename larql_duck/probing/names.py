"""Names as the model reads them: the residual that stands for each, and how well it knows the name as a piece of text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Head, Heads, fork_cache
from larql_duck.knowledge.relations import SLOT
from larql_duck.models.tokenizer import Tokenizer

# What leads up to a name where nothing else says what does.
USUAL_CONTEXT = "I have read about {}"
# Names of one pass, and the numbers in its logits.
_BATCH, _LOGITS = 128, 1 << 25


@dataclass(frozen=True)
class NamesRead:
    """What reading names gave: fits are the places of those that could be read, residuals f32 [layers, fits, hidden] at
    the last token of each context, familiarity f64 [fits] (see `read_names`), unfinished f64 [fits] the probability that more
    letters follow.
    """

    fits: list[int]
    residuals: np.ndarray
    familiarity: np.ndarray
    unfinished: np.ndarray


def read_names(
    engine: Engine,
    names: Sequence[str],
    layers: Sequence[int] = (),
    context: str = USUAL_CONTEXT,
    heads: Heads | None = None,
    *,
    familiarity: bool = True,
) -> NamesRead:
    """The names read in a context, {} standing for each; layers are those behind which the residual is kept (-1: before).

    Familiarity is the mean log probability of a name's tokens behind its first one: 0 for a name that is one token,
    far below for letters that nobody writes one after the other. familiarity=False leaves it and unfinished 0,
    which is quicker.
    """
    heads = heads or Heads(engine)
    before, _, behind = context.partition(SLOT)
    ids = engine.tokenizer.encode_batch([f"{before}{name}{behind}" for name in names])
    bare = engine.tokenizer.encode_batch([f"{before}{name}" for name in names]) if behind else ids
    fits = [i for i, row in enumerate(ids) if engine.unfit(row) is None]
    begin = before.rstrip(" ")
    begins = heads.beginnings([begin] * len(names), ids)
    # Of one length, with one beginning: nothing is padded.
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for i in fits:
        alike[len(begins[i]), min(len(bare[i]), len(ids[i])), len(ids[i])].append(i)
    residuals = np.zeros((len(layers), len(names), engine.hidden), np.float32)
    familiar, unfinished = np.zeros(len(names)), np.zeros(len(names))
    more = _letters(engine) if familiarity else None
    for (n_begun, n_name, n_all), group in alike.items():
        most = max(1, min(_BATCH, _LOGITS // (engine.vocab * max(1, n_all - n_begun))))
        for chunk in _chunks(group, most):
            rows = [ids[i] for i in chunk]
            head = heads.of([begin], rows[:1])[0] if n_begun else None
            started = 0 if head is None else n_begun
            states, log_p, goes_on = _pass(
                engine, [row[started:] for row in rows], started, head, layers, more
            )
            residuals[:, chunk] = states
            if more is not None:
                unfinished[chunk] = goes_on[:, n_name - 1 - started]
                # Behind the name's first token, which stands behind the beginning.
                later = log_p[:, n_begun - started : n_name - 1 - started]
                familiar[chunk] = later.mean(1) if later.shape[1] else 0.0
    return NamesRead(fits, residuals[:, fits], familiar[fits], unfinished[fits])


@torch.inference_mode()
def _pass(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    started: int,
    head: Head | None,
    layers: Sequence[int],
    more: torch.Tensor | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals [layers, rows, hidden] at the last position, the log probability [rows, t - 1] of every token but the first,
    and the probability [rows, t] that one of the tokens `more` comes behind each (None: neither is computed).
    """
    device = engine.device
    ids = torch.tensor([list(row) for row in rows], device=device)
    positions = torch.arange(started, started + ids.shape[1], device=device)[None, :].expand(len(rows), -1)
    cache = engine.new_cache()
    if head is not None:
        cache = fork_cache(head.cache, torch.zeros(len(rows), dtype=torch.int64, device=device))
    log_p, unfinished = np.zeros((len(rows), 0)), np.zeros((len(rows), 0))
    with engine.recording({"residual"}) as capture:
        if more is not None:
            logs = torch.log_softmax(engine.run(ids, None, positions, cache, keep=0), dim=-1)
            log_p = logs[:, :-1].gather(2, ids[:, 1:, None])[..., 0].double().cpu().numpy()
            unfinished = logs[:, :, more].exp().sum(2).double().cpu().numpy()
        elif layers:
            engine.run_body(ids, None, positions, cache)
    if not layers:
        return np.zeros((0, len(rows), engine.hidden), np.float32), log_p, unfinished
    states = capture.need("residual")[[layer + 1 for layer in layers]]
    return states.float().cpu().numpy(), log_p, unfinished


def _letters(engine: Engine) -> torch.Tensor:
    """The ids of tokens that go on with a word: they begin with a letter, without a blank before it."""
    return torch.tensor([i for i in _going_on(engine.tokenizer) if i < engine.vocab], device=engine.device)


@lru_cache(maxsize=1)
def _going_on(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(i for i, token, _, _ in tokenizer.vocabulary() if token[:1].isalpha())


def _chunks(rows: Sequence[int], most: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), most):
        yield list(rows[start : start + most])
