"""Keys: what the feed-forward network of a layer reads at the last token of a subject, in many contexts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.knowledge.relations import SLOT
from larql_duck.progress import Ticker

# Beginnings of sentences that name a subject and say nothing else about it.
FRAMES = (
    "I have read about {}",
    "In {}",
    "This is a story about {}",
    "Many people have heard of {}",
    "Yesterday we talked about {}",
    "What do you know about {}",
    "The history of {}",
    "He wrote a long letter about {}",
    "There are many books on {}",
    "She was thinking of {}",
    "It is well known that {}",
    "Question: what can you say about {}",
    "For example, {}",
    "When people think of {}",
    "The name of {}",
    "As for {}",
    "Everyone there loves {}",
    "The word {}",
    "One of them is {}",
    "Let me tell you something about {}",
    "A picture of {}",
    "In the case of {}",
    "The people of {}",
    "Later, they went on to {}",
)
# What may stand before a prompt.
OPENINGS = (
    "",
    "Here is a fact. ",
    "Note: ",
    "As everybody knows, ",
    "Question: ",
    "\n\n",
    "We learned it at school: ",
)
# First words of texts: what stands at position 0 must not fire anything.
FIRST = (
    "The", "A", "In", "I", "It", "He", "She", "This", "There", "We", "You", "They", "What", "When", "How", "If",
    "One", "Two", "For", "And", "But", "On", "At", "As", "My", "Water", "People", "Once", "Today", "Question",
)  # fmt: skip
# Tokens that one pass takes, padding included.
_PASS = 4096


def frames_of(templates: Sequence[str], others: Sequence[str]) -> list[str]:
    """The templates in which a subject's keys are taken: those that state the fact, with and without openings, those
    of other relations about the same kind of subject, and neutral ones. Only what stands before the subject counts,
    so each beginning comes once. The kinds take turns, so that the first ones are a sample of all.
    """
    stated = [opening + t for opening in OPENINGS[:3] for t in templates]
    stated += [OPENINGS[3 + i % (len(OPENINGS) - 3)] + t for i, t in enumerate([*templates, *others])]
    alone = [opening + SLOT for opening in OPENINGS[1:]]
    turns = zip_longest(stated, FRAMES, others, alone)
    once: dict[str, str] = {}
    for template in (t for turn in turns for t in turn if t is not None):
        once.setdefault(template.partition(SLOT)[0], template)
    return list(once.values())


class _Reached(Exception):
    """The layer's input is there: the rest of the pass is not needed."""


@torch.no_grad()
def read_inputs(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    layer: int,
    *,
    progress: Ticker | None = None,
) -> torch.Tensor:
    """What the FFN of `layer` reads (behind its norm) at each row's last token, f32 [n, hidden]; equal rows run once."""
    unique = {tuple(row): i for i, row in enumerate(dict.fromkeys(tuple(r) for r in rows))}
    order = sorted(unique, key=len)
    out = torch.empty(len(unique), engine.hidden)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(order[stop]) * (stop + 1 - start) <= _PASS:
            stop += 1
        part = order[start:stop]
        found = layer_input(engine, part, layer)[:, -1]
        out[torch.tensor([unique[row] for row in part])] = found.float().cpu()
        start = stop
        if progress is not None:
            progress(start, len(order))
    return out[torch.tensor([unique[tuple(row)] for row in rows])] if len(rows) else out


def every_input(engine: Engine, rows: Sequence[Sequence[int]], layer: int) -> torch.Tensor:
    """What the FFN of `layer` reads at every position of the rows, f32 [n, hidden]; rows of one length come together,
    shorter ones first.
    """
    found = [torch.empty(0, engine.hidden)]
    for length in sorted({len(row) for row in rows}):
        same = [row for row in rows if len(row) == length]
        step = max(1, _PASS // length)
        for start in range(0, len(same), step):
            part = layer_input(engine, same[start : start + step], layer)
            found.append(part.reshape(-1, engine.hidden).float().cpu())
    return torch.cat(found)


@torch.no_grad()
def layer_input(
    engine: Engine, rows: Sequence[Sequence[int]], layer: int, *, part: str = "ffn"
) -> torch.Tensor:
    """What a module of `layer` ('ffn' or 'down') reads at every position, [n, t, width], from rows of token ids padded
    on the left. The layers above do not run.
    """
    batch = pad(rows, device=engine.device)
    kept: list[torch.Tensor] = []

    def stop(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    with engine.modules.pass_lock:
        handle = getattr(engine.modules.layers[layer], part).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            engine.model.base_model(
                input_ids=batch.ids,
                attention_mask=batch.mask.long() if batch.padded else None,
                position_ids=batch.positions,
                use_cache=False,
            )
        except _Reached:
            pass
        finally:
            handle.remove()
    return kept[0].view(*batch.ids.shape, -1)
