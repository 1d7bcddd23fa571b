"""TRACE: how the residual becomes the prediction, layer by layer and position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from larql_duck.catalog.forward_tables import SCHEMAS, as_table
from larql_duck.inference.attribution import LogitDirection, require_parts
from larql_duck.inference.capture import FOR_STATES, Capture
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import Edit
from larql_duck.inference.logit_lens import layer_readings
from larql_duck.inference.modules import linear_norm
from larql_duck.inference.targets import find_target
from larql_duck.inference.trace_file import TraceResult


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
    require_parts(engine)
    selected = engine.select_layers(layers, embedding=True)
    followed = None if target is None else find_target(engine.tokenizer, target)
    batch = engine.encode(prompt)
    parts = FOR_STATES | ({"heads", "branches"} if decompose else set())
    with engine.intervene(*edits):
        capture = engine.capture(batch, parts, positions=positions)
    states = capture.states()
    n = states.residual.shape[1]
    direction = None
    if followed is not None:
        tokens = torch.full((n,), followed.token_id, dtype=torch.int64)
        direction = LogitDirection(engine, states.residual[-1], tokens)
    ids = batch.row(0)
    at = tuple(range(len(ids) - n, len(ids)))
    columns = layer_readings(engine, states, selected, direction)
    table = _layer_table(engine, columns, at, selected)
    if decompose:
        table = _with_heads(engine, table, capture, direction, at, selected)
    names = tuple(engine.tokenizer.token(ids[i]) for i in at)
    notices = (*engine.tokenizer.remarks(ids), *(() if followed is None else followed.notices))
    return TraceResult(table, states.arrays(), at, names, prompt, followed, notices)


def _layer_table(
    engine: Engine, columns: dict[str, np.ndarray], at: Sequence[int], layers: Sequence[int]
) -> pa.Table:
    """The rows of layers, by position and layer."""
    values: dict[str, Any] = {
        "position": np.repeat(np.asarray(at, np.int32), len(layers)),
        "layer": np.tile(np.asarray(layers, np.int32), len(at)),
        "top_token": [engine.tokenizer.token(int(i)) for i in columns["top_id"].reshape(-1)],
    }
    values |= {name: column.reshape(-1) for name, column in columns.items() if name != "top_id"}
    return as_table("trace", values)


def _with_heads(
    engine: Engine,
    table: pa.Table,
    capture: Capture,
    direction: LogitDirection | None,
    at: Sequence[int],
    layers: Sequence[int],
) -> pa.Table:
    """The table with attn_share and a row per head behind each layer's own."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        total = row["attn_norm"] + row["ffn_norm"]
        row["attn_share"] = row["attn_norm"] / total if total > 0 else None
    attending = [i for i, parts in enumerate(engine.modules.layers) if parts.attends]
    for layer in (layer for layer in layers if layer in attending):
        written = _heads(engine, capture, layer)
        norms = written.norm(dim=-1)
        columns = {"attn_norm": norms, "attn_share": norms / norms.sum(-1, keepdim=True)}
        if direction is not None:
            columns["attn_logit"] = torch.einsum("rnh,rh->rn", written, direction.before)
        lists = {name: column.tolist() for name, column in columns.items()}
        rows += [
            {"position": position, "layer": layer, "head": head}
            | {name: column[i][head] for name, column in lists.items()}
            for i, position in enumerate(at)
            for head in range(norms.shape[1])
        ]
    rows.sort(key=lambda r: (r["position"], r["layer"], -1 if r.get("head") is None else r["head"]))
    return as_table("trace", {name: [row.get(name) for row in rows] for name in SCHEMAS["trace"].names})


@torch.inference_mode()
def _heads(engine: Engine, capture: Capture, layer: int) -> torch.Tensor:
    """What each head adds to the first prompt's residual, f32 [positions, heads, hidden], without the output bias."""

    def of(name: str) -> torch.Tensor:
        value = capture.need(name)[layer, :1].float()
        return value if capture.positions == "last" else value[0]

    modules = engine.modules
    parts = modules.layers[layer]
    width = len(parts.attn_out_rows())
    inputs = of("heads")[..., :width].unflatten(-1, (modules.n_heads, -1))
    weights = parts.attn_out_rows().float().unflatten(0, (modules.n_heads, -1))
    written = torch.einsum("pnd,ndh->pnh", inputs, weights)
    if parts.attn_post is not None:
        written = linear_norm(parts.attn_post, of("attn_branch")).push(written)
    return written * modules.residual_scale
