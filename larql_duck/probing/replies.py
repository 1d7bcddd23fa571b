"""The next-token pass over a relation's subjects: batches by length, finished ones kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from larql_duck.inference.engine import Engine
from larql_duck.probing.answers import MAX_TOKENS, ask
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.outcomes import Outcome, Reply
from larql_duck.probing.prompts import Question, Variant

# Prompts of one batch, the numbers in its logits, and the bytes of its keys and values (several such caches live at
# a time: the prefix, the step after it, the answers being decoded).
BATCH_PROMPTS, BATCH_LOGITS, BATCH_CACHE = 128, 1 << 23, 1 << 26


def replies(
    engine: Engine,
    question: Question,
    variant: Variant,
    *,
    checkpoint: Checkpoint,
    done: Callable[[int], None] = lambda n: None,
) -> tuple[list[Reply], dict[str, str]]:
    """Every subject's Reply under one variant, in the subjects' order; subjects that cannot be asked, with the reason.

    `done` is called with the number of prompts after each batch, whether it was run or found in the checkpoint.
    """
    relation = question.relation
    prompts = [variant.prompt(relation, subject) for subject in relation.entities]
    ids = engine.tokenizer.encode_batch(prompts)
    # Room for an article and an answer, which have positions too.
    problems = [engine.unfit(row, room=MAX_TOKENS + 2) for row in ids]
    fits = [i for i, problem in enumerate(problems) if problem is None]
    outcomes: dict[int, Outcome] = {}
    most = max(8, min(BATCH_PROMPTS, BATCH_LOGITS // engine.vocab))
    for chunk in chunks(fits, [len(row) for row in ids], most, BATCH_CACHE // engine.cache_bytes):
        made = checkpoint.batch(
            "answers",
            [relation.answer, [prompts[i] for i in chunk]],
            Outcome,
            len(chunk),
            partial(ask, engine, relation.answer, [ids[i] for i in chunk]),
        )
        outcomes.update(zip(chunk, made, strict=True))
        done(len(chunk))
    skipped = {s: p for s, p in zip(relation.entities, problems, strict=True) if p is not None}
    if skipped:
        done(len(skipped))
    replied = [Reply(relation.entities[i], variant.index, prompts[i], outcomes[i]) for i in sorted(outcomes)]
    return replied, skipped


def chunks(
    rows: Sequence[int], lengths: Sequence[int], most_rows: int, most_tokens: int
) -> Iterator[list[int]]:
    """The row numbers by length, in batches within both limits (one row may exceed the tokens alone)."""
    chunk: list[int] = []
    for i in sorted(rows, key=lambda i: (lengths[i], i)):
        if chunk and (len(chunk) == most_rows or (len(chunk) + 1) * lengths[i] > most_tokens):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk
