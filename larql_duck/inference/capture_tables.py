"""What a forward pass holds inside, as Arrow tables: residuals and activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.catalog.forward_tables import SCHEMAS, as_table, vectors
from larql_duck.inference.batch import Batch
from larql_duck.inference.capture import FOR_STATES, STATES, Capture
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import Edit
from larql_duck.inference.predict import prompt_groups
from larql_duck.inference.targets import top_tokens


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
    selected = None if layers is None else pa.array(sorted(set(layers)), pa.int32())
    parts = []
    for text in texts:
        batch = engine.encode(text)
        with engine.intervene(*edits):
            states = engine.capture(batch, FOR_STATES, positions=positions).states().arrays()
        at = range(batch.lengths[0] - len(states), batch.lengths[0])
        tokens = [engine.tokenizer.token(batch.row(0)[i]) for i in at]
        table = residual_rows(text, at, tokens, states)
        parts.append(
            table if selected is None else table.filter(pc.is_in(table["layer"], value_set=selected))
        )
    return pa.concat_tables([SCHEMAS["residuals"].empty_table(), *parts])


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
    selected = engine.select_layers(layers)
    parts: dict[int, pa.Table] = {}
    for rows in prompt_groups(engine, texts):
        batch = engine.encode([texts[i] for i in rows])
        with engine.intervene(*edits):
            capture = engine.capture(batch, ["gate", "activation"], positions=positions)
        for row, i in enumerate(rows):
            parts[i] = _of_prompt(engine, capture, batch, row, texts[i], selected, top)
    return pa.concat_tables([SCHEMAS["activations"].empty_table(), *(parts[i] for i in range(len(texts)))])


def _of_prompt(
    engine: Engine,
    capture: Capture,
    batch: Batch,
    row: int,
    text: str,
    layers: Sequence[int],
    top: int | None,
) -> pa.Table:
    length = batch.lengths[row]
    gate, activation = capture.need("gate")[:, row], capture.need("activation")[:, row]
    if capture.positions == "last":
        gate, activation = gate[:, None], activation[:, None]
    tokens = [engine.tokenizer.token(i) for i in batch.row(row)]
    parts = []
    for position in range(length - min(length, gate.shape[1]), length):
        # Rows are padded on the left: counted from the end, positions are the same in all of them.
        column = position - length
        for layer in layers:
            n = engine.n_features[layer]
            values = activation[layer, column, :n].float()
            best = top_tokens(values.abs(), n if top is None else top)
            k = len(best)
            columns = {
                "prompt": [text] * k,
                "position": [position] * k,
                "token": [tokens[position]] * k,
                "layer": [layer] * k,
                "feature": best.cpu().numpy().astype(np.int32),
                "rank": np.arange(1, k + 1, dtype=np.int32),
                "gate": gate[layer, column][best].float().cpu().numpy(),
                "activation": values[best].cpu().numpy(),
            }
            parts.append(as_table("activations", columns))
    return pa.concat_tables([SCHEMAS["activations"].empty_table(), *parts]).combine_chunks()
