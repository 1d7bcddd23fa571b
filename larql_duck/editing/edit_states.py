"""What a model says of edited facts and of what is near them: once before the edits, once after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from larql_duck.compilation.slot_replacement import perplexity
from larql_duck.editing.asked_prompts import ROOM, AskedFact
from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.generate import greedy
from larql_duck.inference.prefix import prefill
from larql_duck.inference.scoring import (
    TargetProbability,
    answer_ids,
    next_token_probabilities,
    score_targets,
)
from larql_duck.probing.words import answer_text, find_answer
from larql_duck.progress import ticker

# Tokens that a first answer may have; tokens behind a target, to see what follows it.
ANSWER, BEHIND = 12, 8
# Free text: its tokens, the most probable ones among which each is drawn (as in ROME's evaluation), and the seed.
FREE, BEST, SEED = 64, 5, 7
# Prompts whose whole distributions are kept: each is as long as the vocabulary.
KEPT = 1000
# Texts that are written together.
_ROWS = 64


@dataclass(frozen=True)
class EditState:
    """What a model says under one set of edits, of facts in their order.

    targets [fact][stated prompt], negated, reversed_ (None where not asked) and portable [fact][question] are how probable
    targets are. written [fact][stated prompt] is the text that greedy decoding puts there; free [fact] texts about the
    subject. next holds next-token probabilities f32 [vocab] by prompt, of the first KEPT
    prompts; answers the whole first answer of all.
    """

    targets: list[list[TargetProbability]]
    negated: list[TargetProbability | None]
    reversed_: list[TargetProbability | None]
    portable: list[list[bool]]
    written: list[list[str]]
    free: list[list[str]]
    next: Mapping[str, torch.Tensor]
    answers: Mapping[str, str]
    perplexity: float


def edit_state(
    engine: Engine, asked: Sequence[AskedFact], text: Sequence[Sequence[int]] = (), *, free: bool = True
) -> EditState:
    """What the engine says, under whatever it runs under. text: rows of token ids for the perplexity (1 for none);
    free: whether texts about the subjects are written, too.
    """
    rows: list[tuple[list[int], list[int]]] = []

    def put(prompt: str, target: str) -> int:
        ids = engine.tokenizer.encode(prompt), answer_ids(engine.tokenizer, prompt, target)
        rows.append((list(ids[0]), list(ids[1])))
        return len(rows) - 1

    stated = [[put(p, a.fact.target) for p in a.stated] for a in asked]
    negated = [None if a.negated is None else put(a.negated, a.fact.target) for a in asked]
    back = [None if a.reversed_ is None else put(a.reversed_, a.text) for a in asked]
    portable = [[[put(q.prompt, x) for x in q.answers] for q in a.portability] for a in asked]
    # What does not fit is not said.
    fits = [i for i, (prompt, target) in enumerate(rows) if engine.unfit([*prompt, *target]) is None]
    found = dict(zip(fits, score_targets(engine, [rows[i] for i in fits]), strict=True))
    said = [found.get(i, TargetProbability(-1e4, -1e4, False, 0.0)) for i in range(len(rows))]

    near = list(dict.fromkeys(p for a in asked for p in a.near))
    everything = [(a, p) for a in asked for p in a.stated]
    longest = [len(answer_ids(engine.tokenizer, p, a.fact.target)) + BEHIND for a, p in everything]
    texts = iter(written(engine, [p for _, p in everything], longest))
    return EditState(
        targets=[[said[i] for i in one] for one in stated],
        negated=[None if i is None else said[i] for i in negated],
        reversed_=[None if i is None else said[i] for i in back],
        portable=[[any(said[i].greedy for i in one) for one in ones] for ones in portable],
        written=[[next(texts) for _ in a.stated] for a in asked],
        free=free_texts(engine, asked) if free else [[] for _ in asked],
        next=dict(zip(near, next_token_probabilities(engine, near[:KEPT]), strict=False)),
        answers=dict(zip(near, first_answers(engine, near), strict=True)),
        perplexity=perplexity(engine, text)[0],
    )


def begins_with(text: str, target: str) -> bool:
    """Whether a text says the target first, whole, and no longer word."""
    text, target = text.lstrip(), target.strip()
    return text.startswith(target) and not text[len(target) : len(target) + 1].isalnum()


def first_answers(engine: Engine, prompts: Sequence[str]) -> list[str]:
    """The whole first answer behind each prompt: greedy tokens up to where a name ends, ANSWER of them at most."""

    def whole(ids: list[int]) -> bool:
        text = engine.tokenizer.continuation(ids)
        return bool(text.strip()) and find_answer(text, "name").closed

    out = [""] * len(prompts)
    for numbers, rows in _batches(engine, prompts, "first answers"):
        prefix = prefill(engine, pad(rows, device=engine.device))
        done = greedy(
            prefix,
            max_tokens=ANSWER,
            stop=lambda _, ids: engine.tokenizer.is_special(ids[-1]) or whole(ids),
        )
        for i, found in zip(numbers, done, strict=True):
            text = engine.tokenizer.continuation(found.ids)
            # Of what is no name, such as a line's end, the first token counts.
            out[i] = answer_text(text, "name") or engine.tokenizer.continuation(found.ids[:1])
    return out


def written(engine: Engine, prompts: Sequence[str], longest: Sequence[int]) -> list[str]:
    """What greedy decoding puts behind each prompt: `longest` tokens, ROOM at most, or up to a special one."""
    out = [""] * len(prompts)
    for numbers, rows in _batches(engine, prompts, "answers"):
        most = [min(longest[i], ROOM) for i in numbers]

        def stop(row: int, ids: list[int], most: list[int] = most) -> bool:
            return engine.tokenizer.is_special(ids[-1]) or len(ids) >= most[row]

        prefix = prefill(engine, pad(rows, device=engine.device))
        for i, found in zip(numbers, greedy(prefix, max_tokens=max(most), stop=stop), strict=True):
            out[i] = engine.tokenizer.continuation(found.ids)
    return out


@torch.inference_mode()
def free_texts(engine: Engine, asked: Sequence[AskedFact]) -> list[list[str]]:
    """Texts about each subject, with their beginnings: each token is drawn among the BEST most probable, by seed."""
    prompts = [p for a in asked for p in a.free]
    out = [""] * len(prompts)
    for numbers, rows in _batches(engine, prompts, "texts about the subjects"):
        generator = torch.Generator(device="cpu").manual_seed(SEED)
        longest = max(map(len, rows))
        room = FREE if engine.context is None else min(FREE, engine.context - longest)
        prefix = prefill(engine, pad(rows, device=engine.device))
        drawn: list[list[int]] = [[] for _ in rows]
        for _ in range(room):
            logits, read = prefix.advanced()
            best = logits.cpu().topk(min(BEST, logits.shape[-1]), dim=-1)
            pick = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            tokens = best.indices.gather(1, pick)[:, 0]
            for row, token in zip(drawn, tokens.tolist(), strict=True):
                row.append(token)
            prefix = read.then(tokens.to(engine.device))
        for i, ids in zip(numbers, drawn, strict=True):
            end = next((n for n, token in enumerate(ids) if engine.tokenizer.is_special(token)), len(ids))
            out[i] = prompts[i] + engine.tokenizer.continuation(ids[:end])
    texts = iter(out)
    return [[next(texts) for _ in a.free] for a in asked]


def _batches(
    engine: Engine, prompts: Sequence[str], what: str
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Numbers of prompts of like length, and their token ids."""
    rows = engine.tokenizer.encode_batch(list(prompts)) if prompts else []
    tick, done = ticker(what), 0
    for numbers in length_groups([len(row) for row in rows], rows=_ROWS):
        yield numbers, [list(rows[i]) for i in numbers]
        done += len(numbers)
        tick(done, len(rows))
