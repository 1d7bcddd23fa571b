"""Soft targets in the shapes that other trainers read: DistillKit's compressed log probabilities, prompts and completions for TRL."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from larql_duck.distillation.soft_targets import read_examples
from larql_duck.errors import LarqlError
from larql_duck.files import begins, check_output, replacing, with_parents, write_whole

_DISTILLKIT = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)
_CONFIG = "compression_config.json"
_DATA = "data_0.parquet"
# Examples of one row group.
_GROUP = 256


def write_distillkit(soft: str | Path, out: str | Path) -> Path:
    """The directory `out` with the soft targets of texts as DistillKit's offline data set: data_0.parquet, and
    compression_config.json, the values of its `logprob_compressor`.

    All k values of a position are stored exactly (f32); ids are packed into as few bits as the vocabulary needs, highest
    bit first. LarqlError for soft targets that do not stand behind every token, as those of prompts and facts, and for those
    of a teacher without token ids.
    """
    source, folder = _opened(soft), Path(out).expanduser()
    examples = list(read_examples(source.schema_arrow, Path(soft)))
    stored = source.schema_arrow.metadata.get(b"vocab")
    if stored is None or any(e["start"] != 1 or not e["ids"] for e in examples):
        raise LarqlError(
            f"{soft}: DistillKit reads distributions behind every token; make them with soft-targets --texts"
        )
    vocab = int(json.loads(stored))
    bits = max(1, math.ceil(math.log2(vocab)))
    check_output(folder / _CONFIG, begins(b"{"))
    check_output(folder / _DATA, begins(b"par1"))
    k = int(pc.max(source.read_row_group(0, ["rank"])["rank"]).as_py())
    with with_parents(folder / _DATA):
        with (
            replacing(folder / _DATA, replaces=begins(b"par1")) as path,
            pq.ParquetWriter(path, _DISTILLKIT, compression="zstd") as writer,
        ):
            rows: list[dict[str, Any]] = []
            for number, ids, values in _distributions(source, k):
                # A row for every token but the last, behind which nothing is learnt.
                rows.append(
                    {
                        "input_ids": examples[number]["ids"],
                        "compressed_logprobs": _bytes_of(values[:-1]),
                        "bytepacked_indices": _packed(ids[:-1], bits),
                    }
                )
                if len(rows) == _GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, schema=_DISTILLKIT))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema=_DISTILLKIT))
        config = {
            "d": vocab, "k": k, "exact_k": k, "exact_dtype": "float32",
            "polynomial_terms": None, "residual_bins": [], "delta_encoding": False,
        }  # fmt: skip
        write_whole(folder / _CONFIG, json.dumps(config, indent=1), replaces=begins(b"{"))
    return folder


def write_trl(soft: str | Path, out: str | Path) -> Path:
    """The path of `out`, JSON lines of what was asked and answered, as TRL's trainers read data sets.

    A prompt with its answer becomes prompt and completion (the answer, else the most probable tokens), a text becomes
    text. TRL asks its teacher while it trains: it reads no stored distributions.
    """
    source = _opened(soft)
    best = _best_texts(source)
    lines = []
    for number, example in enumerate(read_examples(source.schema_arrow, Path(soft))):
        prompt, completion = example["prompt"], example["completion"] or best.get(number, "")
        row = {"prompt": prompt, "completion": completion} if prompt else {"text": completion}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return write_whole(out, "".join(lines), replaces=begins(b"{"))


def _opened(soft: str | Path) -> pq.ParquetFile:
    path = Path(soft).expanduser()
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise LarqlError(
            f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}; "
            "write it with larql-duck soft-targets"
        ) from None


def _best_texts(source: pq.ParquetFile) -> dict[int, str]:
    """Example -> the most probable tokens of its positions, one behind the other."""
    rows = source.read(["example", "rank", "token"])
    first = rows.filter(pc.equal(rows["rank"], 1)).select(["example", "token"]).to_pydict()
    out: dict[int, str] = {}
    for example, token in zip(*first.values(), strict=True):
        out[example] = out.get(example, "") + (token or "")
    return out


def _distributions(source: pq.ParquetFile, k: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(example, ids [positions, k], log probabilities f32 [positions, k]) one after the other."""
    for group in range(source.num_row_groups):
        rows = source.read_row_group(group, ["example", "rank", "token_id", "logprob"])
        rows = rows.filter(pc.greater(rows["rank"], 0))
        numbers = rows["example"].to_numpy()
        ids, values = rows["token_id"].to_numpy(), rows["logprob"].to_numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            yield (
                int(numbers[start]),
                ids[start:end].reshape(-1, k),
                values[start:end].reshape(-1, k).astype(np.float32),
            )


def _bytes_of(values: np.ndarray) -> list[list[int]]:
    """The bytes of each row's f32 values, little-endian."""
    rows: list[list[int]] = np.ascontiguousarray(values, "<f4").view(np.uint8).tolist()
    return rows


def _packed(ids: np.ndarray, bits: int) -> list[list[int]]:
    """Each row's ids as a stream of so many bits each, highest first, filled up to whole bytes."""
    stream = (ids[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows: list[list[int]] = np.packbits(stream.reshape(len(ids), -1).astype(np.uint8), axis=1).tolist()
    return rows
