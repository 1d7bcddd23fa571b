"""What a forward pass holds inside, as Arrow tables: residuals and activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.catalog.forward_tables import SCHEMAS, as_table, vectors
from larql_duck.errors import LarqlError
from larql_duck.inference.interventions import Edit
from larql_duck.inference.logit_lens import States
from larql_duck.inference.predict import groups
from larql_duck.inference.targets import token_text, top_tokens

if TYPE_CHECKING:
    from larql_duck.inference.batch import Batch
    from larql_duck.inference.capture import Capture
    from larql_duck.inference.engine import Engine

# What a residual's state consists of, in the order in which arrays and files keep it, and what a capture needs for it.
STATES = ("residual", "attn_delta", "ffn_delta")
STATE_PARTS = frozenset({"residual", "deltas"})


def residual_table(
    engine: Engine,
    prompts: str | Sequence[str],
    *,
    layers: Iterable[int] | None = None,
    positions: str = "last",
    edits: Sequence[Edit] = (),
) -> pa.Table:
    """Residuals and what each branch added to them, with the columns of SCHEMAS['residuals'], prompt by prompt.

    layers (-1 is the embedding; None: all) limits the rows; positions is 'last' or 'all'.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    wanted = None if layers is None else pa.array(sorted(set(layers)), pa.int32())
    parts = []
    for text in texts:
        batch = engine.encode(text)
        with engine.intervene(*edits):
            capture = engine.capture(batch, STATE_PARTS, positions=positions)
        states = states_of(capture).arrays()
        at = range(batch.lengths[0] - len(states), batch.lengths[0])
        tokens = [token_text(engine.tokenizer, batch.row(0)[i]) for i in at]
        table = residual_rows(text, at, tokens, states)
        parts.append(table if wanted is None else table.filter(pc.is_in(table["layer"], value_set=wanted)))
    return pa.concat_tables(parts) if parts else SCHEMAS["residuals"].empty_table()


def states_of(capture: Capture) -> States:
    """The first prompt's captured positions as States."""
    parts = [capture.need(name)[:, :1] for name in STATES]
    return States(*(part if capture.positions == "last" else part[:, 0] for part in parts))


def residual_rows(
    prompt: str, positions: Sequence[int], tokens: Sequence[str], states: np.ndarray
) -> pa.Table:
    """States as arrays [positions, layers + 1, 3, hidden], with the columns of SCHEMAS['residuals'], by position and layer."""
    n, depth, _, hidden = states.shape
    rows = states.reshape(n * depth, 3, hidden)
    return as_table(
        "residuals",
        {
            "prompt": [prompt] * (n * depth),
            "position": np.repeat(np.asarray(positions, np.int32), depth),
            "token": [token for token in tokens for _ in range(depth)],
            "layer": np.tile(np.arange(-1, depth - 1, dtype=np.int32), n),
            **{name: vectors(np.ascontiguousarray(rows[:, i])) for i, name in enumerate(STATES)},
        },
    )


def activation_table(
    engine: Engine,
    prompts: str | Sequence[str],
    *,
    top: int | None = None,
    layers: Iterable[int] | None = None,
    positions: str = "last",
    edits: Sequence[Edit] = (),
) -> pa.Table:
    """Gate values and activations, with the columns of SCHEMAS['activations'], by prompt, position, layer, rank.

    top (None: every feature) keeps the features with the largest absolute activation per position and layer; layers
    (None: all) limits the rows; positions is 'last' or 'all'.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    shown = list(range(engine.n_layers)) if layers is None else sorted(set(layers))
    for layer in shown:
        if not 0 <= layer < engine.n_layers:
            raise LarqlError(
                f"layer {layer} is out of range; this model has layers 0 to {engine.n_layers - 1}"
            )
    parts: dict[int, pa.Table] = {}
    for rows in groups(engine, texts):
        batch = engine.encode([texts[i] for i in rows])
        with engine.intervene(*edits):
            capture = engine.capture(batch, ["gate", "activation"], positions=positions)
        for row, i in enumerate(rows):
            parts[i] = _of_prompt(engine, capture, batch, row, texts[i], shown, top)
    return (
        pa.concat_tables([parts[i] for i in range(len(texts))])
        if parts
        else SCHEMAS["activations"].empty_table()
    )


def _of_prompt(
    engine: Engine, capture: Capture, batch: Batch, row: int, text: str, shown: Sequence[int], top: int | None
) -> pa.Table:
    length, ids = batch.lengths[row], batch.row(row)
    gate, activation = capture.need("gate")[:, row], capture.need("activation")[:, row]
    if capture.positions == "last":
        gate, activation = gate[:, None], activation[:, None]
    first = length - min(length, gate.shape[1])
    slots: list[tuple[int, int]] = []
    features, gates, activations = [], [], []
    for position in range(first, length):
        # Rows are padded on the left: counted from the end, positions are the same in all of them.
        column = position - length
        for layer in shown:
            n = engine.n_features[layer]
            values = activation[layer, column, :n].float()
            best = top_tokens(values.abs(), n if top is None else top)
            slots.append((position, layer))
            features.append(best.cpu().numpy().astype(np.int32))
            gates.append(gate[layer, column][best].float().cpu().numpy())
            activations.append(values[best].cpu().numpy())
    counts = [len(part) for part in features]
    at = np.repeat(np.asarray([position for position, _ in slots], np.int32), counts)
    ranks = [np.arange(1, n + 1, dtype=np.int32) for n in counts]
    tokens = pa.array([token_text(engine.tokenizer, i) for i in ids], pa.string())
    return as_table(
        "activations",
        {
            "prompt": [text] * len(at),
            "position": at,
            "token": tokens.take(pa.array(at)),
            "layer": np.repeat(np.asarray([layer for _, layer in slots], np.int32), counts),
            "feature": np.concatenate([np.zeros(0, np.int32), *features]),
            "rank": np.concatenate([np.zeros(0, np.int32), *ranks]),
            "gate": np.concatenate([np.zeros(0, np.float32), *gates]),
            "activation": np.concatenate([np.zeros(0, np.float32), *activations]),
        },
    )
