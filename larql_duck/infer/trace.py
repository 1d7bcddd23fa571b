"""TRACE: how the residual becomes the prediction, layer by layer and position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from larql_duck.errors import LarqlError
from larql_duck.infer.anatomy import LinearNorm, linear_norm
from larql_duck.infer.captured import STATE_PARTS, residual_rows, states_of
from larql_duck.infer.interventions import Edit
from larql_duck.infer.lens import readings
from larql_duck.infer.schemas import as_table
from larql_duck.infer.targets import Target, find_target

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.infer.capture import Capture
    from larql_duck.infer.engine import Engine
    from larql_duck.infer.trace_plot import Chart


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
        from larql_duck.infer.trace_file import save

        return save(self, path)

    def plot(self) -> Chart:
        """A chart of the last traced position: rank and probability over layers, attention against FFN.

        It shows itself in notebooks; `.save("x.html" | "x.svg" | "x.png")` writes it.
        """
        from larql_duck.infer.trace_plot import trace_chart

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
    tracer = _Tracer(engine, capture, wanted)
    ids = batch.row(0)
    first = len(ids) - tracer.residual.shape[1]
    rows = tracer.layer_rows(shown, first)
    if decompose:
        rows += tracer.head_rows(shown, first)
        rows.sort(key=lambda r: (r["position"], r["layer"], -1 if r["head"] is None else r["head"]))
    names = [
        "position", "layer", "top_token", "probability", "attn_norm", "ffn_norm", "residual_norm", "token_rank",
        "token_probability", "attn_logit", "ffn_logit", "attn_share", "head",
    ]  # fmt: skip
    if decompose:
        _fill_shares(rows)
    table = as_table("trace", {name: [row.get(name) for row in rows] for name in names})
    at = tuple(range(first, len(ids)))
    tokens = tuple(engine.tokenizer.token(ids[i]) for i in at)
    notices = () if wanted is None else wanted.notices
    return TraceResult(table, states_of(capture), at, tokens, prompt, wanted, notices)


def _shown(engine: Engine, layers: Iterable[int] | None) -> list[int]:
    every = range(-1, engine.n_layers)
    shown = list(every) if layers is None else sorted(set(layers))
    for layer in shown:
        if layer not in every:
            raise LarqlError(
                f"layer {layer} is out of range; this model has layers 0 to {engine.n_layers - 1}"
            )
    return shown


class _Tracer:
    """Rows of a trace from one capture. Tensors are [layers, positions, hidden], f32."""

    def __init__(self, engine: Engine, capture: Capture, target: Target | None) -> None:
        self.engine = engine
        self.capture = capture
        self.target = target
        self.residual = self._of("residual")
        zero = torch.zeros_like(self.residual[:1])
        # A row of zeros for the embedding, so that index layer + 1 serves all three.
        self.attn = torch.cat([zero, self._of("attn_delta")])
        self.ffn = torch.cat([zero, self._of("ffn_delta")])
        self.before: torch.Tensor | None = None
        if target is not None:
            self._aim(target.token_id)

    def _of(self, name: str) -> torch.Tensor:
        value = self.capture.need(name)[:, 0].float()
        return value[:, None] if self.capture.positions == "last" else value

    @torch.inference_mode()
    def _aim(self, token: int) -> None:
        """before [positions, hidden]: what a unit of residual adds to the token's centred logit; constant: biases."""
        engine = self.engine
        anatomy = engine.anatomy
        final = linear_norm(anatomy.final_norm, self.residual[-1])
        direction = (engine.head_weight[token].float() - engine.head_mean) * anatomy.logit_scale
        rows = direction.expand(self.residual.shape[1], -1)
        self.before = final.pull(rows)
        self.constant = final.constant(rows)
        bias = getattr(anatomy.head, "bias", None)
        if isinstance(bias, torch.Tensor):
            self.constant = self.constant + (bias[token] - bias.mean()).float() * anatomy.logit_scale

    # -- rows ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def layer_rows(self, shown: Sequence[int], first: int) -> list[dict[str, Any]]:
        index = torch.tensor([layer + 1 for layer in shown], dtype=torch.int64, device=self.residual.device)
        picked = self.residual[index].transpose(0, 1)
        n_positions = picked.shape[0]
        norms = {
            name: value[index].norm(dim=-1).transpose(0, 1).tolist()
            for name, value in (("attn", self.attn), ("ffn", self.ffn), ("residual", self.residual))
        }
        logits: dict[str, list[list[float]]] = {}
        if self.before is not None:
            ffn = torch.einsum("lph,ph->pl", self.ffn[index], self.before)
            if shown and shown[0] == -1:
                ffn[:, 0] = (self.residual[0] * self.before).sum(-1) + self.constant
            attn = torch.einsum("lph,ph->pl", self.attn[index], self.before)
            logits = {"attn": attn.tolist(), "ffn": ffn.tolist()}
        rows: list[dict[str, Any]] = []
        lens = self._lens(picked.reshape(-1, picked.shape[-1]))
        for position in range(n_positions):
            for column, layer in enumerate(shown):
                at = position * len(shown) + column
                row = {
                    "position": first + position,
                    "layer": layer,
                    "attn_norm": norms["attn"][position][column],
                    "ffn_norm": norms["ffn"][position][column],
                    "residual_norm": norms["residual"][position][column],
                    "head": None,
                } | {name: values[at] for name, values in lens.items()}
                if logits:
                    row["attn_logit"] = logits["attn"][position][column]
                    row["ffn_logit"] = logits["ffn"][position][column]
                rows.append(row)
        return rows

    def _lens(self, residual: torch.Tensor) -> dict[str, list[Any]]:
        """What each residual [rows, hidden] would predict if it were the last one: columns of the trace."""
        found: dict[str, list[Any]] = {"top_token": [], "probability": []}
        if self.target is not None:
            found |= {"token_rank": [], "token_probability": []}
        for logits in readings(self.engine, residual):
            whole = torch.logsumexp(logits, dim=-1)
            highest = logits.max(dim=-1).values
            found["top_token"] += [self.engine.tokenizer.token(i) for i in best(logits, highest)]
            found["probability"] += (highest - whole).double().exp().tolist()
            if self.target is not None:
                own = logits[:, self.target.token_id]
                found["token_rank"] += (1 + (logits > own[:, None]).sum(-1)).tolist()
                found["token_probability"] += (own - whole).double().exp().tolist()
        return found

    @torch.inference_mode()
    def head_rows(self, shown: Sequence[int], first: int) -> list[dict[str, Any]]:
        rows = []
        for layer in (layer for layer in shown if layer >= 0):
            written = self._heads(layer)
            norms = written.norm(dim=-1)
            logits = None if self.before is None else torch.einsum("pnh,ph->pn", written, self.before)
            for position in range(written.shape[0]):
                for head in range(written.shape[1]):
                    row: dict[str, Any] = {
                        "position": first + position,
                        "layer": layer,
                        "head": head,
                        "attn_norm": float(norms[position, head]),
                    }
                    if logits is not None:
                        row["attn_logit"] = float(logits[position, head])
                    rows.append(row)
        return rows

    def _heads(self, layer: int) -> torch.Tensor:
        """What each head adds to the residual, f32 [positions, heads, hidden], without the output bias."""
        anatomy = self.engine.anatomy
        parts = anatomy.layers[layer]
        inputs = self._of("heads")[layer].unflatten(-1, (anatomy.n_heads, -1))
        weights = parts.out_rows().float().unflatten(0, (anatomy.n_heads, -1))
        written = torch.einsum("pnd,ndh->pnh", inputs, weights)
        if parts.attn_post is not None:
            post: LinearNorm = linear_norm(parts.attn_post, self._of("attn_branch")[layer])
            written = post.push(written)
        return written * anatomy.residual_scale


def best(logits: torch.Tensor, highest: torch.Tensor) -> list[int]:
    """The id of each row's largest logit, `highest` [n] of logits [n, vocab]; the lowest id among equals."""
    ids: list[int] = logits.argmax(dim=-1).tolist()
    # argmax leaves open which of several equal values it names.
    for row in ((logits == highest[:, None]).sum(-1) > 1).nonzero().flatten().tolist():
        ids[row] = int((logits[row] == highest[row]).nonzero()[0])
    return ids


def _fill_shares(rows: Sequence[dict[str, Any]]) -> None:
    """attn_share of every row, in place."""
    heads: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["head"] is not None:
            key = (row["position"], row["layer"])
            heads[key] = heads.get(key, 0.0) + row["attn_norm"]
    for row in rows:
        whole = (
            row["attn_norm"] + row["ffn_norm"]
            if row["head"] is None
            else heads[row["position"], row["layer"]]
        )
        row["attn_share"] = row["attn_norm"] / whole if whole > 0 else None
