"""Names as the model reads them: the residual that stands for each, and how well it knows the name as a piece of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import skipped_layers
from larql_duck.inference.prefix import Head, Heads, behind_heads, groups_of
from larql_duck.knowledge.relations import SLOT
from larql_duck.models.tokenizer import Tokenizer

# What leads up to a name where nothing else says what does.
USUAL_CONTEXT = "I have read about {}"
# Names of one pass, and the numbers in its logits.
_BATCH, _LOGITS = 256, 1 << 24


# Up to so many names are read in all their contexts in one pass: more of them fill a pass in each.
_FEW = 8


@dataclass(frozen=True)
class Context:
    """What names are read in: a text with {} for the name, and the layers behind which its last residual is kept (-1: before).

    familiar: whether it is told there how well each name is known; it is 0 otherwise, and the pass, which ends behind the last
    of these layers, cheaper.
    """

    text: str
    layers: tuple[int, ...] = ()
    familiar: bool = False


@dataclass(frozen=True)
class NamesRead:
    """What reading names in a context gave: fits are the places of those that could be read, residuals f32 [layers, fits,
    hidden] at its last token, familiarity f64 [fits] (see `read_names`), unfinished f64 [fits] the probability that more letters
    follow.
    """

    fits: list[int]
    residuals: np.ndarray
    familiarity: np.ndarray
    unfinished: np.ndarray


def read_names(
    engine: Engine, names: Sequence[str], contexts: Sequence[Context], heads: Heads | None = None
) -> list[NamesRead]:
    """The names read in each context.

    Familiarity is the mean log probability of a name's tokens behind its first one: 0 for a name that is one token,
    far below for letters that nobody writes one after the other.
    """
    heads = heads or Heads(engine)
    rows = [row for at, context in enumerate(contexts) for row in _rows(engine, names, at, context, heads)]
    together = [rows]
    if len(names) > _FEW:
        together = [[row for row in rows if row.context == at] for at in range(len(contexts))]
    found: dict[tuple[int, int], _Told] = {}
    for some in filter(None, together):
        lengths = [len(row.rest) for row in some]
        for group in groups_of(engine, lengths, [row.begun for row in some]):
            most = engine.room(_LOGITS) // (engine.vocab * max(lengths[i] for i in group))
            for start in range(0, len(group), max(1, min(_BATCH, most))):
                part = [some[i] for i in group[start : start + max(1, min(_BATCH, most))]]
                for row, told in zip(part, _pass(engine, contexts, part), strict=True):
                    found[row.context, row.name] = told
    out = []
    for at, context in enumerate(contexts):
        fits = [i for i in range(len(names)) if (at, i) in found]
        own = [found[at, i] for i in fits]
        residuals = np.zeros((len(context.layers), len(fits), engine.hidden), np.float32)
        for i, told in enumerate(own):
            residuals[:, i] = told.residuals
        familiar, unfinished = (
            np.array([getattr(told, field) for told in own], np.float64)
            for field in ("familiarity", "unfinished")
        )
        out.append(NamesRead(fits, residuals, familiar, unfinished))
    return out


def how_familiar(engine: Engine, names: Sequence[str], heads: Heads | None = None) -> NamesRead:
    """The names in the usual context, no residuals kept."""
    return read_names(engine, names, [Context(USUAL_CONTEXT, familiar=True)], heads)[0]


@dataclass(frozen=True)
class _Row:
    """A name in a context, both by number: its head, the tokens behind that, and which of them are the name's."""

    context: int
    name: int
    head: Head | None
    rest: list[int]
    own: slice

    @property
    def begun(self) -> int:
        return 0 if self.head is None else len(self.head.ids)


@dataclass(frozen=True)
class _Told:
    """What is told of one name in one context; residuals f32 [layers, hidden]."""

    residuals: np.ndarray
    familiarity: float = 0.0
    unfinished: float = 0.0


def _rows(engine: Engine, names: Sequence[str], at: int, context: Context, heads: Heads) -> list[_Row]:
    """The names that can be read in this context."""
    before, _, behind = context.text.partition(SLOT)
    ids = engine.tokenizer.encode_batch([f"{before}{name}{behind}" for name in names])
    bare = engine.tokenizer.encode_batch([f"{before}{name}" for name in names]) if behind else ids
    fits = [i for i, row in enumerate(ids) if engine.unfit(row) is None]
    begin = [before.rstrip(" ")] * len(fits)
    begins = heads.beginnings(begin, [ids[i] for i in fits])
    out = []
    for i, begun, head in zip(fits, begins, heads.of(begin, [ids[i] for i in fits]), strict=True):
        started = 0 if head is None else len(head.ids)
        own = slice(len(begun) - started, min(len(bare[i]), len(ids[i])) - started)
        out.append(_Row(at, i, head, list(ids[i][started:]), own))
    return out


@torch.inference_mode()
def _pass(engine: Engine, contexts: Sequence[Context], rows: Sequence[_Row]) -> list[_Told]:
    """What is told of each name."""
    b = behind_heads(engine, [row.head for row in rows], [row.rest for row in rows])
    padding = [b.ids.shape[1] - len(row.rest) for row in rows]
    ends = [before + row.own.stop - 1 for before, row in zip(padding, rows, strict=True)]
    familiar = any(contexts[row.context].familiar for row in rows)
    log_p = goes_on = None
    with engine.recording({"residual"}) as capture:
        if familiar:
            logits = engine.run(b.ids, b.some, b.positions, b.cache, keep=0)
            whole = logits.logsumexp(-1)
            log_p = (logits[:, :-1].gather(2, b.ids[:, 1:, None])[..., 0] - whole[:, :-1]).double().cpu()
            every, last = (
                torch.arange(len(rows), device=engine.device),
                torch.tensor(ends, device=engine.device),
            )
            at_end = logits[every, last] - whole[every, last, None]
            goes_on = at_end[:, _letters(engine)].exp().sum(1).double().cpu()
        else:
            deepest = max((layer for row in rows for layer in contexts[row.context].layers), default=-1)
            with skipped_layers(engine.modules, range(deepest + 1, engine.n_layers)):
                engine.run_body(b.ids, b.some, b.positions, b.cache)
    states = capture.need("residual").float().cpu().numpy()
    out = []
    for i, row in enumerate(rows):
        context = contexts[row.context]
        residuals = states[[layer + 1 for layer in context.layers], i]
        if not context.familiar or log_p is None or goes_on is None:
            out.append(_Told(residuals))
            continue
        # The probabilities of the tokens behind the name's first one.
        later = log_p[i, padding[i] + row.own.start : ends[i]]
        out.append(_Told(residuals, float(later.mean()) if len(later) else 0.0, float(goes_on[i])))
    return out


def _letters(engine: Engine) -> torch.Tensor:
    """The ids of tokens that go on with a word: they begin with a letter, without a blank before it."""
    return torch.tensor([i for i in _going_on(engine.tokenizer) if i < engine.vocab], device=engine.device)


@lru_cache(maxsize=1)
def _going_on(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(i for i, token, _, _ in tokenizer.vocabulary() if token[:1].isalpha())
