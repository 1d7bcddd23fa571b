"""The atlas written as Neuronpedia's exports are: features, activations and explanations as JSON lines.

The fields are those of Neuron, Activation and Explanation in Neuronpedia's schema (apps/webapp/prisma/schema.prisma), the
names of sources those of apps/webapp/lib/utils/source.ts, both in github.com/hijohnnylin/neuronpedia, as of 2026.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from larql_duck.catalog import quoted
from larql_duck.catalog.sql_files import sql_query
from larql_duck.errors import LarqlError
from larql_duck.files import begins, check_output, replacing, with_parents
from larql_duck.models.source import WeightSource, final_norm_multiplier, head_matrix
from larql_duck.progress import Progress, report

if TYPE_CHECKING:
    import duckdb

# Plain neurons: their sources are named by the number of the layer alone.
NEURONS = "neurons"
FILES = ("features", "activations", "explanations")
TOP = 5
# What neuronpedia_features.sql calls the table of `_head_lengths`.
_LENGTHS = "head_lengths"
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written: how many lines it has, and its bytes."""

    path: Path
    lines: int
    bytes: int


def write_export(
    con: duckdb.DuckDBPyConnection,
    schema: str,
    source: WeightSource,
    out: str | Path,
    *,
    model_id: str,
    source_set: str = NEURONS,
    top: int = TOP,
    progress: Progress | None = None,
) -> list[WrittenFile]:
    """The files features.jsonl, activations.jsonl and explanations.jsonl, written into the directory `out` from the tables
    in `schema` and the output head of `source`: all features, the `top` strongest tokens of each sign, and names where there
    are any.

    DuckDB streams each of them to disk; none appears before all are whole. LarqlError where there is no atlas yet, for
    ids that are none and for files that cannot be written.
    """
    for what, value in (("model id", model_id), ("source set", source_set)):
        if not _ID.fullmatch(value):
            raise LarqlError(f"{what} {value!r}: use letters, digits, '-', '_' and '.' alone")
    if top < 1:
        raise LarqlError(f"top {top} is out of range; it must be at least 1")
    [(stats,)] = con.execute(f"SELECT count(*) FROM {schema}.feature_stats").fetchall()
    if not stats:
        raise LarqlError(
            "nothing is known yet of what fires the features; run: larql-duck activations X.vindex"
        )
    directory = Path(out).expanduser()
    targets = [directory / f"{name}.jsonl" for name in FILES]
    with with_parents(targets[0]):
        for target in targets:
            check_output(target, _ours)
        with ExitStack() as open_files:
            places = [open_files.enter_context(replacing(target, replaces=_ours)) for target in targets]
            values = {"model_id": model_id, "source_set": source_set}
            con.register(_LENGTHS, _head_lengths(source))
            open_files.callback(con.unregister, _LENGTHS)
            written = []
            for i, (name, place) in enumerate(zip(_queries(con, schema), places, strict=True)):
                (progress or report)("export", i, len(targets))
                given = values | ({"top": top} if name == "neuronpedia_activations" else {})
                copy = f"COPY ({sql_query(name, schema)}) TO {quoted(str(place))} (FORMAT json)"
                [(lines,)] = con.execute(copy, given).fetchall()
                written.append(WrittenFile(targets[i], lines, place.stat().st_size))
    return written


def _head_lengths(source: WeightSource) -> pa.Table:
    """What a cosine with a token's row of the output head is multiplied by to be a logit, by token_id: the row's length, centred
    over the vocabulary, behind the final norm's weight.
    """
    head = head_matrix(source).float()
    rows = (head - head.mean(0)).mul_(final_norm_multiplier(source))
    return pa.table({"token_id": np.arange(len(rows), dtype=np.int32), "length": rows.norm(dim=1).numpy()})


def _queries(con: duckdb.DuckDBPyConnection, schema: str) -> Iterator[str]:
    """The queries of FILES; explanations are the names of features where the vindex has such, else relation labels."""
    yield "neuronpedia_features"
    yield "neuronpedia_activations"
    [(names,)] = con.execute(f"SELECT count(*) FROM {schema}.feature_names").fetchall()
    yield "neuronpedia_names" if names else "neuronpedia_explanations"


_ours: Callable[[bytes], bool] = begins(b'{"modelid":')


def model_id_of(name: str) -> str:
    """An id for the model of this name, as Neuronpedia writes ids: lower case, other characters than letters, digits, '-',
    '_' and '.' replaced by '-'.
    """
    return re.sub(r"[^a-z0-9_.-]+", "-", Path(name).name.lower()).strip("-.") or "model"
