"""The logit lens: what the model would predict if the residual after each layer were the last, and a trace's readings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from larql_duck.catalog.forward_tables import as_table
from larql_duck.inference.attribution import LogitDirection
from larql_duck.inference.capture import ResidualStates
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import Edit
from larql_duck.inference.predict import prediction

TOP = 5
# Rows of residuals that go through the head at a time hold at most this many logits.
_LOGITS = 1 << 24

Columns = dict[str, np.ndarray]


def logit_lens(
    engine: Engine,
    prompt: str,
    *,
    top: int = TOP,
    layers: Iterable[int] | None = None,
    positions: str = "last",
    edits: Sequence[Edit] = (),
) -> pa.Table:
    """The `top` tokens of every layer's reading, with the columns of SCHEMAS['lens'], by position, layer, rank.

    layers (None: all and the embedding, -1) limits the rows; positions is 'last' or 'all'. LarqlError as for
    `infer_table`.
    """
    selected = engine.select_layers(layers, embedding=True)
    batch = engine.encode(prompt)
    with engine.intervene(*edits):
        residual = engine.capture(batch, ["residual"], positions=positions).need("residual")
    # [layers + 1, positions, hidden]: with 'last', the prompt's axis is the only position's.
    rows = residual if positions == "last" else residual[:, 0]
    index = torch.tensor([layer + 1 for layer in selected], dtype=torch.int64)
    first = batch.lengths[0] - rows.shape[1]
    columns: dict[str, list[Any]] = defaultdict(list)
    for offset in range(rows.shape[1]):
        lens = (logits for block in unembedded(engine, rows[index, offset]) for logits in block)
        for layer, logits in zip(selected, lens, strict=True):
            values = prediction(logits, top).columns(engine.tokenizer)
            n = len(values["rank"])
            for name, column in {"position": [first + offset] * n, "layer": [layer] * n, **values}.items():
                columns[name] += column
    return as_table("lens", columns)


def unembedded(engine: Engine, residual: torch.Tensor) -> Iterator[torch.Tensor]:
    """The logits [rows, vocab], f32, of residuals [n, hidden], a block of rows at a time."""
    for block in residual.split(max(1, _LOGITS // engine.vocab)):
        yield engine.unembed(block)


@torch.inference_mode()
def layer_readings(
    engine: Engine, states: ResidualStates, layers: Sequence[int], direction: LogitDirection | None = None
) -> Columns:
    """Columns of a trace, each [rows, len(layers)]: norms, the lens's top token (top_id) and its probability.

    layers lists layers, -1 for the embedding. With a direction also token_rank (from 1), token_probability and the
    logits that attention and FFN add; the embedding's part and the constant stand under ffn_logit of layer -1.
    """
    index = torch.tensor([layer + 1 for layer in layers], dtype=torch.int64, device=states.residual.device)
    parts = {"attn": states.attn[index], "ffn": states.ffn[index], "residual": states.residual[index]}
    columns = {f"{name}_norm": _array(part.norm(dim=-1).t()) for name, part in parts.items()}
    if direction is not None:
        for name in ("attn", "ffn"):
            logit = torch.einsum("lrh,rh->rl", parts[name], direction.before)
            if name == "ffn" and layers and layers[0] == -1:
                logit[:, 0] = (states.residual[0] * direction.before).sum(-1) + direction.constant
            columns[f"{name}_logit"] = _array(logit)
    rows = parts["residual"].transpose(0, 1)
    tokens = None if direction is None else direction.tokens.repeat_interleave(len(layers))
    lens = _lens(engine, rows.reshape(-1, rows.shape[-1]), tokens)
    return columns | {name: column.reshape(rows.shape[0], len(layers)) for name, column in lens.items()}


def _lens(engine: Engine, residual: torch.Tensor, tokens: torch.Tensor | None) -> Columns:
    """What each residual [rows, hidden] would predict if it were the last one, and how it ranks its token of `tokens`."""
    names = ["top_id", "probability"] + ([] if tokens is None else ["token_rank", "token_probability"])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    start = 0
    for logits in unembedded(engine, residual):
        total = torch.logsumexp(logits, dim=-1)
        highest = logits.max(dim=-1).values
        parts["top_id"].append(_argmax(logits, highest))
        parts["probability"].append(_array((highest - total).double().exp()))
        if tokens is not None:
            values = logits.gather(1, tokens[start : start + len(logits), None])
            parts["token_rank"].append(_array(1 + (logits > values).sum(-1)))
            parts["token_probability"].append(_array((values[:, 0] - total).double().exp()))
        start += len(logits)
    return {name: np.concatenate(values) if values else np.zeros(0) for name, values in parts.items()}


def _argmax(logits: torch.Tensor, highest: torch.Tensor) -> np.ndarray:
    """The id of each row's largest logit, `highest` [n] of logits [n, vocab], int64; the lowest id among equals."""
    ids = _array(logits.argmax(dim=-1))
    # argmax leaves open which of several equal values it names.
    for row in ((logits == highest[:, None]).sum(-1) > 1).nonzero().flatten().tolist():
        ids[row] = int((logits[row] == highest[row]).nonzero()[0])
    return ids


def _array(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.cpu().numpy())
