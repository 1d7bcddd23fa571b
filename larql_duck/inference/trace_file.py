"""A traced prompt, in memory and on disk: LARQL's TRAC format (vectors alone) and Parquet (everything)."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from larql_duck.catalog.forward_tables import SCHEMAS, as_table
from larql_duck.catalog.sql_files import sql_query
from larql_duck.charts.figures import trace_chart
from larql_duck.charts.saving import svg
from larql_duck.databases import in_memory
from larql_duck.errors import LarqlError
from larql_duck.files import begins, first_bytes, open_replacing, replacing
from larql_duck.inference.capture import STATES
from larql_duck.inference.capture_tables import residual_rows
from larql_duck.inference.targets import Target

if TYPE_CHECKING:
    import altair as alt

TRAC_SUFFIXES = (".trace", ".bin")
# Little-endian: magic, version, hidden, layers, tokens; zeros up to 64 bytes. Then f32, a token after the other, per
# token layers -1, 0, ... and per layer residual, attention delta, FFN delta.
_MAGIC, _VERSION, _HEADER = b"TRAC", 1, 64
_HEAD = struct.Struct("<4s4I")
_META = b"larql_duck.trace"


@dataclass(frozen=True)
class TraceResult:
    """A traced prompt.

    table has the columns of SCHEMAS['trace'], by position, layer and head. states holds the vectors behind it, f32
    [positions, layers + 1, 3, hidden]: residual, attention delta, FFN delta; row 0 of the second axis is the
    embedding (layer -1). positions and tokens name the traced positions; target is the FOR token, if any.
    """

    table: pa.Table
    states: np.ndarray
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    prompt: str = ""
    target: Target | None = None
    notices: tuple[str, ...] = field(default=())

    @property
    def n_layers(self) -> int:
        """How many layers the model has."""
        return self.states.shape[1] - 1

    @property
    def residuals(self) -> pa.Table:
        """The vectors as an Arrow table with the columns of SCHEMAS['residuals'], by position and layer."""
        return residual_rows(self.prompt, self.positions, self.tokens, self.states)

    def save(self, path: str | Path) -> Path:
        """The path, with the trace written there: `.trace` and `.bin` in LARQL's TRAC format, else Parquet.

        TRAC keeps the vectors of every layer; Parquet keeps table and vectors, everything that `read_trace` needs to
        give this result again. LarqlError where the file cannot be written.
        """
        if Path(path).suffix.lower() in TRAC_SUFFIXES:
            with open_replacing(path, replaces=begins(_MAGIC.lower())) as file:
                _write_trac(self, file)
        else:
            with replacing(path, replaces=begins(b"par1")) as temporary:
                _write_parquet(self, temporary)
        return Path(path).expanduser()

    def chart(self) -> alt.VConcatChart:
        """A chart of the traced position: rank and probability over layers, attention against FFN; of several a heat map.

        `.save("x.svg")`, `.save("x.png")` and `.save("x.html", inline=True)` write it.
        """
        token = None if self.target is None else self.target.token
        tokens = dict(zip(self.positions, self.tokens, strict=False))
        return trace_chart(self.table, prompt=self.prompt, token=token, tokens=tokens)

    def _repr_html_(self) -> str:
        return svg(self.chart())


def read_trace(path: str | Path) -> TraceResult:
    """The TraceResult that was saved at `path`, here or (TRAC) by LARQL; which format it is, the file says itself.

    TRAC keeps vectors alone: tokens are empty and the table has norms but no readings. LarqlError for a file that is
    neither, or damaged.
    """
    file = Path(path).expanduser()
    start = first_bytes(file, 4)
    if start == _MAGIC:
        return _read_trac(file)
    if start == b"PAR1":
        return _read_parquet(file)
    raise LarqlError(f"{file}: no trace: neither TRAC nor Parquet; write one with TRACE ... SAVE")


# -- TRAC ----------------------------------------------------------------------------------------------------


def _write_trac(result: TraceResult, file: BinaryIO) -> None:
    n, depth, _, hidden = result.states.shape
    file.write(_HEAD.pack(_MAGIC, _VERSION, hidden, depth - 1, n).ljust(_HEADER, b"\0"))
    file.write(np.ascontiguousarray(result.states, "<f4").tobytes())


def _read_trac(path: Path) -> TraceResult:
    data = path.read_bytes()
    if len(data) < _HEADER:
        raise LarqlError(f"{path}: truncated inside the header; trace the prompt again")
    _, version, hidden, layers, n = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise LarqlError(f"{path}: TRAC version {version}; this version reads {_VERSION}")
    shape = (n, layers + 1, len(STATES), hidden)
    expected = _HEADER + 4 * int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        word = "truncated" if len(data) < expected else "too long"
        raise LarqlError(
            f"{path}: {word}: {len(data)} bytes where the header says {expected}; trace the prompt again"
        )
    states = np.frombuffer(data, "<f4", offset=_HEADER).reshape(shape).astype(np.float32)
    norms = np.linalg.norm(states, axis=-1)
    table = as_table(
        "trace",
        {
            "position": np.repeat(np.arange(n, dtype=np.int32), layers + 1),
            "layer": np.tile(np.arange(-1, layers, dtype=np.int32), n),
            **{f"{name.split('_')[0]}_norm": norms[:, :, i].reshape(-1) for i, name in enumerate(STATES)},
        },
    )
    return TraceResult(table, states, tuple(range(n)), ("",) * n)


# -- Parquet -------------------------------------------------------------------------------------------------


def _write_parquet(result: TraceResult, path: Path) -> None:
    with in_memory() as con:
        con.register("trace", result.table)
        con.register("vectors", result.residuals)
        whole = con.sql(sql_query("trace_rows")).to_arrow_table()
    meta: dict[str, Any] = {
        "prompt": result.prompt,
        "notices": list(result.notices),
        "target": None if result.target is None else [result.target.token_id, result.target.token],
    }
    whole = whole.replace_schema_metadata({_META: json.dumps(meta).encode()})
    pq.write_table(whole, path, compression="zstd")


def _read_parquet(path: Path) -> TraceResult:
    try:
        whole = pq.read_table(path)
        meta = json.loads((whole.schema.metadata or {})[_META])
    except (KeyError, ValueError, pa.ArrowException, OSError):
        raise LarqlError(f"{path}: a Parquet file, but no trace; write one with TRACE ... SAVE") from None
    rows = whole.filter(pc.is_valid(whole["residual"]))
    positions = sorted(set(rows["position"].to_pylist()))
    depth = len(rows) // max(len(positions), 1)
    parts = [rows[name].combine_chunks() for name in STATES]
    stacked = [np.asarray(part.flatten(), np.float32).reshape(len(positions), depth, -1) for part in parts]
    tokens = rows["token"].to_pylist()[::depth] if depth else []
    target = meta["target"]
    # Rows that were not asked for (LAYERS) carry vectors alone.
    table = whole.filter(pc.or_(pc.is_valid(whole["attn_norm"]), pc.is_valid(whole["head"])))
    return TraceResult(
        table.select(SCHEMAS["trace"].names).replace_schema_metadata(None).cast(SCHEMAS["trace"]),
        np.stack(stacked, axis=2),
        tuple(positions),
        tuple(tokens),
        meta["prompt"],
        None if target is None else Target(target[0], target[1]),
        tuple(meta["notices"]),
    )
