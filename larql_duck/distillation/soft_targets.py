"""Soft targets: a teacher's next-token distributions behind prompts, answers and texts, as a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from larql_duck.atlas.texts import Corpus
from larql_duck.catalog.comparison_tables import SCHEMAS
from larql_duck.databases import in_memory
from larql_duck.distillation.parts import write_in_parts
from larql_duck.errors import LarqlError
from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import answer_ids

EXAMPLES = b"examples"
"""Key of the schema metadata under which the examples stand, as JSON."""
# Examples of one block, which is kept when a run is interrupted; logits of one pass.
_BLOCK, _LOGITS = 64, 1 << 24
# The floor under the probability of the tail, whose logarithm is stored.
_LEAST = 1e-12


@dataclass(frozen=True)
class SoftExample:
    """What a distribution is wanted of: token ids, index of the first token of the answer, and both parts as text.

    Distributions stand behind the token before the answer and behind each of the answer's tokens; where there is no answer,
    behind the last token alone; behind every token of a text (start 1).
    """

    ids: tuple[int, ...]
    start: int
    prompt: str
    completion: str

    @property
    def positions(self) -> range:
        """Where distributions stand."""
        return range(min(self.start, len(self.ids)) - 1, len(self.ids))


def prompt_examples(engine: Engine, prompts: Sequence[str]) -> list[SoftExample]:
    """An example a prompt, with what the model says next unasked."""
    rows = engine.tokenizer.encode_batch(list(prompts))
    return [SoftExample(tuple(ids), len(ids), text, "") for ids, text in zip(rows, prompts, strict=True)]


def text_examples(
    engine: Engine, corpus: Corpus, *, tokens: int, samples: int | None = None
) -> list[SoftExample]:
    """An example a text: its first `tokens` tokens; the first `samples` texts (None: all)."""
    out = []
    for _, text in islice(corpus.texts(), samples):
        ids = tuple(engine.tokenizer.encode(text)[:tokens])
        if len(ids) > 1:
            out.append(SoftExample(ids, 1, "", engine.tokenizer.decode(ids, skip_special=True)))
    return out


def fact_examples(engine: Engine, facts: pa.Table, where: str | None = None) -> list[SoftExample]:
    """An example for each fact of rank 1 that a prompt is stored of: the prompt and the teacher's answer.

    where is a SQL condition over the table facts. LarqlError for one that DuckDB cannot read.
    """
    return [
        _with_answer(engine, prompt, answer) for prompt, answer in _stated(facts, where) if prompt and answer
    ]


def _with_answer(engine: Engine, prompt: str, answer: str) -> SoftExample:
    ids = engine.tokenizer.encode(prompt)
    behind = answer_ids(engine.tokenizer, prompt, answer)
    gap = "" if prompt[-1:].isspace() else " "
    return SoftExample((*ids, *behind), len(ids), prompt, gap + answer)


def _stated(facts: pa.Table, where: str | None) -> list[tuple[str, str]]:
    import duckdb
    import sqlglot
    from sqlglot import exp

    query = exp.select("prompt", "object").from_("facts").where("rank = 1")
    with in_memory() as con:
        con.register("facts", facts)
        try:
            if where is not None:
                query = query.where(exp.paren(sqlglot.condition(where, dialect="duckdb")), copy=False)
            return con.sql(query.sql("duckdb")).fetchall()
        except (sqlglot.errors.SqlglotError, duckdb.Error) as error:
            line = str(error).strip().split("\n", 1)[0]
            known = ", ".join(facts.column_names)
            raise LarqlError(
                f"--where {where!r} is no condition over facts: {line}; columns: {known}"
            ) from None


def write_soft_targets(engine: Engine, examples: Sequence[SoftExample], out: str | Path, *, k: int) -> Path:
    """The path of `out` with the table soft_targets: the k most probable tokens of each position, and the tail's mass.

    An interrupted run is continued by the same call. LarqlError for examples that the model cannot run on.
    """
    if not examples:
        raise LarqlError("no examples: the prompts, texts or facts are empty")
    if k < 1:
        raise LarqlError(f"k is {k}; it must be at least 1")
    for number, example in enumerate(examples):
        if problem := engine.unfit(example.ids):
            raise LarqlError(f"example {number} ({example.prompt or example.completion:.40}): {problem}")
    listed = [
        {"ids": list(e.ids), "start": e.start, "prompt": e.prompt, "completion": e.completion}
        for e in examples
    ]
    schema = schema_with(listed, {"vocab": engine.vocab, "model": engine.fingerprint})
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    key = [engine.fingerprint, str(engine.model.dtype), digest, k]
    blocks = [range(start, min(start + _BLOCK, len(examples))) for start in range(0, len(examples), _BLOCK)]
    tokens = pa.array([engine.tokenizer.token(i) for i in range(engine.vocab)], pa.string())

    def make(number: int) -> pa.Table:
        return _block(engine, examples, blocks[number], min(k, engine.vocab), tokens)

    return write_in_parts(out, schema, key, len(blocks), make, stage="soft targets")


def schema_with(examples: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> pa.Schema:
    """The schema of the table soft_targets with the examples, and other values as JSON, in its metadata."""
    values = {EXAMPLES: json.dumps(list(examples), ensure_ascii=False)}
    return SCHEMAS["soft_targets"].with_metadata(
        values | {name.encode(): json.dumps(value) for name, value in more.items()}
    )


@torch.inference_mode()
def _block(
    engine: Engine, examples: Sequence[SoftExample], numbers: range, k: int, tokens: pa.Array
) -> pa.Table:
    """The rows of these examples, by example, position and rank."""
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    lengths = [len(examples[i].ids) for i in numbers]
    most = engine.room(_LOGITS) // engine.vocab
    for group in length_groups(lengths, tokens=max(1, most)):
        batch = pad([examples[numbers[g]].ids for g in group], device=engine.device)
        keep = max(len(examples[numbers[g]].positions) for g in group)
        logits = engine.run(batch.ids, batch.mask if batch.padded else None, batch.positions, keep=keep)
        logits = logits[:, None] if logits.dim() == 2 else logits
        for row, g in enumerate(group):
            size = len(examples[numbers[g]].positions)
            log_p = torch.log_softmax(logits[row, -size:].float(), -1)
            values, ids = log_p.topk(k, dim=-1)
            tail = (1 - values.double().exp().sum(-1)).clamp_min(_LEAST).log()
            found[numbers[g]] = ids.cpu().numpy(), values.cpu().numpy(), tail.cpu().numpy()
    return pa.concat_tables([_rows(i, examples[i], found[i], tokens) for i in numbers])


def _rows(
    number: int,
    example: SoftExample,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    tokens: pa.Array,
) -> pa.Table:
    ids, values, tail = found
    n, k = ids.shape
    # Behind the listed tokens of a position comes its tail.
    padded = np.concatenate([ids, np.full((n, 1), -1)], axis=1).reshape(-1)
    token_ids = pa.array(padded.astype(np.int32), mask=padded < 0)
    columns = {
        "example": np.full(n * (k + 1), number, np.int32),
        "position": np.repeat(np.array(example.positions, np.int32), k + 1),
        "rank": np.tile(np.array([*range(1, k + 1), 0], np.int32), n),
        "token_id": token_ids,
        "token": tokens.take(token_ids),
        "logprob": np.concatenate([values, tail[:, None]], axis=1).reshape(-1).astype(np.float32),
    }
    return pa.table(columns, schema=SCHEMAS["soft_targets"])


def read_examples(schema: pa.Schema, path: Path) -> Iterator[dict[str, Any]]:
    """The examples that a file of soft targets holds. LarqlError for a file without."""
    stored = (schema.metadata or {}).get(EXAMPLES)
    if stored is None:
        raise LarqlError(f"{path}: holds no soft targets; write them with larql-duck soft-targets")
    yield from json.loads(stored)
