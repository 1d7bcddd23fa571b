"""What a model says: the probability of a whole target after a prompt, and the next token's distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from larql_duck.aliases import Slot
from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import row_edits
from larql_duck.knowledge.relations import SLOT
from larql_duck.models.tokenizer import Tokenizer

# Logits that one pass may hold.
_LOGITS = 1 << 24


@dataclass(frozen=True)
class TargetProbability:
    """How probable a target is: log_p of all its tokens together, log_first of the first one, in nats.

    greedy: whether each is the most probable one. centred: the first one's logit above the vocabulary's mean.
    """

    log_p: float
    log_first: float
    greedy: bool
    centred: float

    @property
    def p(self) -> float:
        """The probability of the whole target."""
        return math.exp(self.log_p)

    @property
    def first(self) -> float:
        """The probability of its first token."""
        return math.exp(self.log_first)


def target_probabilities(engine: Engine, asked: Sequence[tuple[str, str, str]]) -> list[TargetProbability]:
    """What becomes of each (template, subject's text, target)."""
    return score_targets(
        engine,
        [
            (
                engine.tokenizer.encode(filled(template, text)[0]),
                answer_ids(engine.tokenizer, template, target),
            )
            for template, text, target in asked
        ],
    )


def unfit_target(engine: Engine, template: str, text: str, target: str, room: int = 0) -> str | None:
    """Why the model cannot be asked how probable `target` is behind the filled template; None where it can."""
    ids = engine.tokenizer.encode(filled(template, text)[0])
    return engine.unfit([*ids, *answer_ids(engine.tokenizer, template, target)], room)


@torch.inference_mode()
def score_targets(
    engine: Engine, rows: Sequence[tuple[Sequence[int], Sequence[int]]], zeroed: Sequence[Slot | None] = ()
) -> list[TargetProbability]:
    """How probable each target is after its prompt, both as token ids; with the feature `zeroed` beside it at zero
    at every position. A target without tokens has probability 1 and is not greedy.
    """
    out: dict[int, TargetProbability] = {}
    longest = max((len(target) for _, target in rows), default=0)
    lengths = [len(prompt) + len(target) for prompt, target in rows]
    for part in length_groups(lengths, rows=engine.room(_LOGITS) // (engine.vocab * (longest + 1))):
        batch = pad([[*rows[i][0], *rows[i][1]] for i in part], device=engine.device)
        keep = max(len(rows[i][1]) for i in part) + 1
        slots = [(j, slot) for j, i in enumerate(part) if i < len(zeroed) and (slot := zeroed[i]) is not None]
        with engine.intervene(*row_edits(slots)) if slots else nullcontext():
            logits = engine.run(batch.ids, batch.mask if batch.padded else None, batch.positions, keep=keep)
        logits = logits[:, None] if logits.dim() == 2 else logits
        for j, i in enumerate(part):
            size = len(rows[i][1])
            if not size:
                out[i] = TargetProbability(0.0, 0.0, False, 0.0)
                continue
            labels = torch.tensor(rows[i][1], device=logits.device)
            ahead = logits[j, -size - 1 : -1]
            log_p = torch.log_softmax(ahead, -1)
            every = log_p.gather(1, labels[:, None])[:, 0]
            centred = ahead[0, labels[0]] - ahead[0].mean()
            greedy = bool((log_p.argmax(-1) == labels).all())
            out[i] = TargetProbability(float(every.sum()), float(every[0]), greedy, float(centred))
    return [out[i] for i in range(len(rows))]


@torch.inference_mode()
def next_token_probabilities(engine: Engine, prompts: Sequence[str]) -> torch.Tensor:
    """The next token's probabilities, f32 [n, vocab]."""
    if not prompts:
        return torch.zeros(0, engine.vocab)
    rows = engine.tokenizer.encode_batch(list(prompts))
    out = torch.empty(len(rows), engine.vocab)
    for part in length_groups([len(r) for r in rows], rows=engine.room(_LOGITS) // engine.vocab):
        logits = engine.logits(pad([rows[i] for i in part], device=engine.device))
        out[torch.tensor(part)] = torch.softmax(logits, -1).cpu()
    return out


_ARTICLES = ("the ", "a ", "an ")
# Answers follow these without a blank.
_OPENERS = '"`<([“«.+#$'


@dataclass(frozen=True)
class SubjectPosition:
    """A prompt as token ids, and the index of its subject's last token (0-based)."""

    ids: tuple[int, ...]
    at: int

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens up to the subject's last one: all that its key depends on."""
        return self.ids[: self.at + 1]


def filled(template: str, text: str) -> tuple[str, int]:
    """The prompt with `text` in the template's slot, and the index behind it; an article that comes first is capitalised."""
    before, _, after = template.partition(SLOT)
    if not before.strip() and text.startswith(_ARTICLES):
        text = text[0].upper() + text[1:]
    return f"{before}{text}{after}", len(before) + len(text)


def subject_position(
    tokenizer: Tokenizer, template: str, text: str, more: Sequence[int] = ()
) -> SubjectPosition:
    """A template filled with a subject's text, `more` behind it, and where the subject ends."""
    prompt, end = filled(template, text)
    ids = tokenizer.encode(prompt)
    start = tokenizer.encode(prompt[:end])
    shared = 0
    while shared < min(len(ids), len(start)) and ids[shared] == start[shared]:
        shared += 1
    return SubjectPosition((*ids, *more), max(shared - 1, 0))


def answer_ids(tokenizer: Tokenizer, template: str, target: str) -> tuple[int, ...]:
    """The token ids of a target as it follows a template: behind a blank, or at once where the template opens a quotation."""
    if template[-1:].isspace() or template[-1:] in _OPENERS:
        return tuple(tokenizer.encode(target.strip(), special=False))
    return tuple(tokenizer.entity_ids(target))
