"""The next-token pass over a relation's subjects: batches by length, finished ones kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.probing.answers import MAX_TOKENS, Candidate, Outcome, ask
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.prompts import Question, Variant

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine

# Prompts of one batch, the numbers in its logits, and the bytes of its keys and values (several such caches live at
# a time: the prefix, the step after it, the answers being decoded).
BATCH_PROMPTS, BATCH_LOGITS, BATCH_CACHE = 128, 1 << 23, 1 << 26

_CANDIDATE = pa.struct(
    [
        ("object", pa.string()),
        ("first", pa.int32()),
        ("article", pa.int32()),
        ("p", pa.float64()),
        ("p_string", pa.float64()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("predicted_id", pa.int32()),
        ("predicted", pa.string()),
        ("p", pa.float64()),
        ("entropy", pa.float64()),
        ("top_ids", pa.list_(pa.int32())),
        ("top_p", pa.list_(pa.float64())),
        ("candidates", pa.list_(_CANDIDATE)),
    ]
)


@dataclass(frozen=True)
class Reply:
    """What the model said about a subject under one variant (its index): the prompt and its outcome."""

    subject: str
    variant: int
    prompt: str
    outcome: Outcome


def replies(
    engine: Engine,
    question: Question,
    variant: Variant,
    *,
    checkpoint: Checkpoint,
    done: Callable[[int], None] = lambda n: None,
) -> tuple[list[Reply], list[str]]:
    """Every subject's Reply under one variant, in the subjects' order, and the subjects whose prompt is too long.

    `done` is called with the number of prompts after each batch, whether it was run or found in the checkpoint.
    """
    relation = question.relation
    prompts = [variant.prompt(relation, subject) for subject in relation.entities]
    ids = engine.tokenizer.encode_batch(prompts)
    # Room for an article and an answer, which have positions too.
    room = None if engine.context is None else engine.context - MAX_TOKENS - 2
    fits = [i for i, row in enumerate(ids) if row and (room is None or len(row) <= room)]
    found: dict[int, Outcome] = {}
    most = max(8, min(BATCH_PROMPTS, BATCH_LOGITS // engine.vocab))
    for chunk in chunks(fits, [len(row) for row in ids], most, BATCH_CACHE // engine.cache_bytes):
        key = checkpoint.key("answers", relation.answer, [prompts[i] for i in chunk])
        table = checkpoint.load(key, _SCHEMA)
        if table is None or table.num_rows != len(chunk):
            table = _as_table(ask(engine, relation.answer, [ids[i] for i in chunk]))
            checkpoint.save(key, table)
        found.update(zip(chunk, _from_table(table), strict=True))
        done(len(chunk))
    skipped = [s for i, s in enumerate(relation.entities) if i not in found]
    if skipped:
        done(len(skipped))
    return [Reply(relation.entities[i], variant.index, prompts[i], found[i]) for i in sorted(found)], skipped


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


def _as_table(outcomes: Sequence[Outcome]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "predicted_id": o.predicted_id,
            "predicted": o.predicted,
            "p": o.p,
            "entropy": o.entropy,
            "top_ids": list(o.top),
            "top_p": list(o.top.values()),
            "candidates": [vars(c) for c in o.candidates],
        }
        for o in outcomes
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _from_table(table: pa.Table) -> list[Outcome]:
    # Always read back from the table, so that a resumed run sees exactly what an unbroken one saw.
    return [
        Outcome(
            predicted_id=row["predicted_id"],
            predicted=row["predicted"],
            p=row["p"],
            entropy=row["entropy"],
            top=dict(zip(row["top_ids"], row["top_p"], strict=True)),
            candidates=tuple(Candidate(**c) for c in row["candidates"]),
        )
        for row in table.to_pylist()
    ]
