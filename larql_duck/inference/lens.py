"""The logit lens: what the model would predict if the residual after each layer were the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from larql_duck.catalog.forward_tables import as_table
from larql_duck.errors import LarqlError
from larql_duck.inference.interventions import Edit
from larql_duck.inference.predict import prediction
from larql_duck.inference.targets import token_text

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.inference.engine import Engine

TOP = 5
# Rows of residuals that go through the head at a time hold at most this many logits.
_LOGITS = 1 << 24


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
    every = range(-1, engine.n_layers)
    shown = list(every) if layers is None else sorted(set(layers))
    for layer in shown:
        if layer not in every:
            raise LarqlError(
                f"layer {layer} is out of range; layers are -1 (embedding) to {engine.n_layers - 1}"
            )
    batch = engine.encode(prompt)
    with engine.intervene(*edits):
        residual = engine.capture(batch, ["residual"], positions=positions).need("residual")
    by_position = residual[:, 0][:, None] if positions == "last" else residual[:, 0]
    first = batch.lengths[0] - by_position.shape[1]
    columns: dict[str, list[object]] = {name: [] for name in ("position", "layer", "rank")}
    values: dict[str, list[object]] = {name: [] for name in ("token", "token_id", "probability", "logit")}
    for offset in range(by_position.shape[1]):
        rows = by_position[:, offset][torch.tensor([layer + 1 for layer in shown], dtype=torch.int64)]
        lens = (logits for block in readings(engine, rows) for logits in block)
        for layer, logits in zip(shown, lens, strict=True):
            found = prediction(logits, top)
            ids = found.ids.tolist()
            columns["position"] += [first + offset] * len(ids)
            columns["layer"] += [layer] * len(ids)
            columns["rank"] += range(1, len(ids) + 1)
            values["token_id"] += ids
            values["token"] += [token_text(engine.tokenizer, i) for i in ids]
            values["probability"] += found.probability.tolist()
            values["logit"] += found.logit.tolist()
    return as_table("lens", columns | values)


def readings(engine: Engine, residual: torch.Tensor) -> Iterator[torch.Tensor]:
    """The logits [rows, vocab], f32, of residuals [n, hidden], a block of rows at a time."""
    for block in residual.split(max(1, _LOGITS // engine.vocab)):
        yield engine.unembed(block)
