"""What a student reads while it is taught: prompts with answers, rationales and texts, as token ids."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from larql_duck.atlas.texts import Corpus, windows
from larql_duck.distillation.losses import IGNORED
from larql_duck.distillation.probes import PromptAnswer
from larql_duck.errors import LarqlError
from larql_duck.files import read_regular
from larql_duck.inference.scoring import answer_ids
from larql_duck.models.tokenizer import Tokenizer

# What stands before a prompt whose rationale is asked for (Hsieh et al. 2023 mark their second task so).
_EXPLAIN = "Explain: "
PROMPT_COLUMNS = ("prompt", "answer")


@dataclass(frozen=True)
class TrainingExample:
    """Token ids, of which those from `start` on are the answer.

    Every position from the one before the answer on counts: there the student is compared with its teacher, and the
    next token, where there is one, is its hard label. weight is its part in a batch's loss; stored its number in a table
    of soft targets.
    """

    ids: tuple[int, ...]
    start: int
    weight: float = 1.0
    stored: int | None = None


def asked_examples(asked: Iterable[PromptAnswer]) -> list[TrainingExample]:
    """Prompts with their answers."""
    return [TrainingExample((*prompt, *answer), len(prompt)) for prompt, answer in asked]


def text_examples(corpus: Corpus, tokenizer: Tokenizer, size: int) -> list[TrainingExample]:
    """The corpus in pieces of at most `size` tokens, each of which counts from its second token on."""
    return [TrainingExample(w.ids, 1) for w in windows(corpus, tokenizer, size) if len(w.ids) > 1]


def prompt_examples(
    path: Path, tokenizer: Tokenizer, *, rationale: str | None = None, share: float = 0.5
) -> list[TrainingExample]:
    """The prompts of a file (.csv, .tsv, .jsonl, .parquet) with columns prompt and, where it has one, answer.

    A prompt without an answer counts at its end alone. With `rationale`, the column of that name gives every row a second
    example, which weighs `share` as much: the reasons, behind the prompt with a word that asks for them (distilling step
    by step). LarqlError names the file and the column or line that is wrong.
    """
    out = []
    for row in _rows(path, (PROMPT_COLUMNS[0], *([rationale] if rationale else []))):
        prompt, answer = str(row["prompt"] or ""), str(row.get("answer") or "").strip()
        ids = tokenizer.encode(prompt)
        if not ids:
            continue
        own = answer_ids(tokenizer, prompt, answer) if answer else ()
        out.append(TrainingExample((*ids, *own), len(ids)))
        if rationale and (reasons := str(row[rationale] or "").strip()):
            asking = _EXPLAIN + prompt
            ids = tokenizer.encode(asking)
            out.append(
                TrainingExample((*ids, *answer_ids(tokenizer, asking, reasons)), len(ids), weight=share)
            )
    if not out:
        raise LarqlError(f"{path}: holds no prompt; give a file with a column prompt")
    return out


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            rows: Iterable[Mapping[str, Any]] = pq.read_table(path).to_pylist()
        elif kind in (".csv", ".tsv"):
            lines = read_regular(path).decode("utf-8-sig").splitlines(keepends=True)
            rows = csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")
        elif kind in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in read_regular(path).decode().splitlines() if line.strip()]
        else:
            raise LarqlError(f"{path}: prompts come from a .csv, .tsv, .jsonl or .parquet file")
        for number, row in enumerate(rows, start=1):
            missing = [name for name in columns if name not in row]
            if missing:
                known = ", ".join(map(str, row))
                raise LarqlError(f"{path}: row {number} has no column {missing[0]}; columns here: {known}")
            yield row
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise LarqlError(f"{path}: cannot be read: {why}") from None


def fitting(examples: Iterable[TrainingExample], context: int | None, vocab: int) -> list[TrainingExample]:
    """The examples that both models can read: no longer than `context`, no token beyond `vocab`."""
    return [e for e in examples if (context is None or len(e.ids) <= context) and max(e.ids) < vocab]


def collate(examples: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
    """The examples as one batch, padded on the right: input_ids, attention_mask and labels int64 [n, t], counts bool
    [n, t], weights f32 [n].

    labels are those of the next token, at the position that predicts it, IGNORED elsewhere.
    """
    n, t = len(examples), max(len(e.ids) for e in examples)
    ids = torch.zeros(n, t, dtype=torch.int64)
    mask = torch.zeros(n, t, dtype=torch.int64)
    labels = torch.full((n, t), IGNORED)
    counts = torch.zeros(n, t, dtype=torch.bool)
    for i, e in enumerate(examples):
        size, first = len(e.ids), max(e.start - 1, 0)
        ids[i, :size] = torch.tensor(e.ids)
        mask[i, :size] = 1
        labels[i, first : size - 1] = ids[i, first + 1 : size]
        counts[i, first:size] = True
    weights = torch.tensor([e.weight for e in examples], dtype=torch.float32)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "counts": counts, "weights": weights}
