"""TRACE: how the residual becomes the prediction, layer by layer and position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from larql_duck.catalog.forward_tables import SCHEMAS, as_table
from larql_duck.errors import LarqlError
from larql_duck.inference.captured import STATE_PARTS, residual_rows, states_of
from larql_duck.inference.interventions import Edit
from larql_duck.inference.logit_lens import Aim, read_out
from larql_duck.inference.modules import linear_norm
from larql_duck.inference.targets import Target, find_target, token_text

if TYPE_CHECKING:
    from larql_duck.charts.trace_plot import Chart
    from larql_duck.inference.capture import Capture
    from larql_duck.inference.engine import Engine


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
        """The path, after the trace was written there: `.trace` and `.bin` in LARQL's TRAC format, else Parquet.

        TRAC keeps the vectors of every layer; Parquet keeps table and vectors, everything that `read_trace` needs to
        give this result again. LarqlError where the file cannot be written.
        """
        from larql_duck.inference.trace_file import save

        return save(self, path)

    def plot(self) -> Chart:
        """A chart of the last traced position: rank and probability over layers, attention against FFN.

        It shows itself in notebooks; `.save("x.html" | "x.svg" | "x.png")` writes it.
        """
        from larql_duck.charts.trace_plot import trace_chart

        return trace_chart(self)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


def trace(
    engine: Engine,
    prompt: str,
    *,
    target: str | None = None,
    decompose: bool = False,
    layers: Iterable[int] | None = None,
    positions: str = "last",
    edits: Sequence[Edit] = (),
) -> TraceResult:
    """The TraceResult of a prompt: a row per layer (and -1, the embedding) of the last position, or of 'all'.

    target fills rank, probability and additive logit contributions of that token; decompose adds attn_share and a row
    per head. layers limits the table's rows (the embedding's row goes too), not the vectors. LarqlError as for
    `infer_table`.
    """
    if positions not in ("last", "all"):
        raise LarqlError(f"positions {positions!r} is not known; use 'last' or 'all'")
    shown = _shown(engine, layers)
    wanted = None if target is None else find_target(engine.tokenizer, target)
    batch = engine.encode(prompt)
    parts = STATE_PARTS | ({"heads", "branches"} if decompose else set())
    with engine.intervene(*edits):
        capture = engine.capture(batch, parts, positions=positions)
    states = states_of(capture)
    n = states.residual.shape[1]
    aim = None
    if wanted is not None:
        aim = Aim(engine, states, torch.full((n,), wanted.token_id, dtype=torch.int64))
    ids = batch.row(0)
    at = tuple(range(len(ids) - n, len(ids)))
    columns = read_out(engine, states, shown, aim)
    table = _layer_table(engine, columns, at, shown)
    if decompose:
        table = _with_heads(engine, table, capture, aim, at, shown)
    tokens = tuple(token_text(engine.tokenizer, ids[i]) for i in at)
    notices = () if wanted is None else wanted.notices
    return TraceResult(table, states.arrays(), at, tokens, prompt, wanted, notices)


def _shown(engine: Engine, layers: Iterable[int] | None) -> list[int]:
    every = range(-1, engine.n_layers)
    shown = list(every) if layers is None else sorted(set(layers))
    for layer in shown:
        if layer not in every:
            raise LarqlError(
                f"layer {layer} is out of range; this model has layers 0 to {engine.n_layers - 1}"
            )
    return shown


def _layer_table(
    engine: Engine, columns: dict[str, np.ndarray], at: Sequence[int], shown: Sequence[int]
) -> pa.Table:
    """The rows of layers, by position and layer."""
    found: dict[str, Any] = {
        "position": np.repeat(np.asarray(at, np.int32), len(shown)),
        "layer": np.tile(np.asarray(shown, np.int32), len(at)),
        "top_token": [token_text(engine.tokenizer, int(i)) for i in columns["top_id"].reshape(-1)],
    }
    found |= {name: column.reshape(-1) for name, column in columns.items() if name != "top_id"}
    return as_table("trace", found)


def _with_heads(
    engine: Engine,
    table: pa.Table,
    capture: Capture,
    aim: Aim | None,
    at: Sequence[int],
    shown: Sequence[int],
) -> pa.Table:
    """The table with attn_share and a row per head behind each layer's own."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        whole = row["attn_norm"] + row["ffn_norm"]
        row["attn_share"] = row["attn_norm"] / whole if whole > 0 else None
    for layer in (layer for layer in shown if layer >= 0):
        written = _heads(engine, capture, layer)
        norms = written.norm(dim=-1)
        shares = norms / norms.sum(-1, keepdim=True)
        logits = None if aim is None else torch.einsum("rnh,rh->rn", written, aim.direction).tolist()
        lists = zip(at, norms.tolist(), shares.tolist(), strict=True)
        for i, (position, own_norms, own_shares) in enumerate(lists):
            for head, (norm, share) in enumerate(zip(own_norms, own_shares, strict=True)):
                row = {
                    "position": position,
                    "layer": layer,
                    "head": head,
                    "attn_norm": norm,
                    "attn_share": share,
                }
                rows.append(row if logits is None else row | {"attn_logit": logits[i][head]})
    rows.sort(key=lambda r: (r["position"], r["layer"], -1 if r.get("head") is None else r["head"]))
    return as_table("trace", {name: [row.get(name) for row in rows] for name in SCHEMAS["trace"].names})


@torch.inference_mode()
def _heads(engine: Engine, capture: Capture, layer: int) -> torch.Tensor:
    """What each head adds to the first prompt's residual, f32 [positions, heads, hidden], without the output bias."""

    def of(name: str) -> torch.Tensor:
        value = capture.need(name)[layer, :1].float()
        return value if capture.positions == "last" else value[0]

    anatomy = engine.anatomy
    parts = anatomy.layers[layer]
    inputs = of("heads").unflatten(-1, (anatomy.n_heads, -1))
    weights = parts.out_rows().float().unflatten(0, (anatomy.n_heads, -1))
    written = torch.einsum("pnd,ndh->pnh", inputs, weights)
    if parts.attn_post is not None:
        written = linear_norm(parts.attn_post, of("attn_branch")).push(written)
    return written * anatomy.residual_scale
