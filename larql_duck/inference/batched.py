"""Many prompts at once: traces, contributing features and logit lenses of their last positions, in shared passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from larql_duck.inference.capture import FOR_ATTRIBUTION
from larql_duck.inference.captured import STATE_PARTS, STATES
from larql_duck.inference.lens import readings
from larql_duck.inference.logit_lens import Aim, Columns, States, read_out
from larql_duck.inference.predict import Prediction, groups, prediction
from larql_duck.inference.targets import find_target, top_tokens

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine


def traces(engine: Engine, prompts: Sequence[str], targets: Sequence[str | None]) -> list[Columns]:
    """Each prompt's trace: columns as `read_out` gives them, [layers + 1], the embedding first.

    A prompt whose target is None has token_rank, token_probability, attn_logit and ffn_logit of its own prediction.
    """
    shown = range(-1, engine.n_layers)
    out: dict[int, Columns] = {}
    for rows in groups(engine, prompts):
        capture = engine.capture([prompts[i] for i in rows], STATE_PARTS)
        states = States(*(capture.need(name) for name in STATES))
        tokens = _tokens(engine, capture.need("logits"), [targets[i] for i in rows])
        columns = read_out(engine, states, shown, Aim(engine, states, tokens))
        for row, i in enumerate(rows):
            out[i] = {name: values[row] for name, values in columns.items()}
    return [out[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class Contributors:
    """The features with the largest contribution to one prompt's token, best first; arrays [k]."""

    token_id: int
    layer: np.ndarray
    feature: np.ndarray
    gate: np.ndarray
    activation: np.ndarray
    contribution: np.ndarray


def contributors(
    engine: Engine, prompts: Sequence[str], targets: Sequence[str | None], top: Sequence[int]
) -> list[Contributors]:
    """Each prompt's `top` features over all layers, for its target or (None) for its prediction."""
    out: dict[int, Contributors] = {}
    for rows in groups(engine, prompts):
        capture = engine.capture([prompts[i] for i in rows], FOR_ATTRIBUTION | {"gate"})
        tokens = _tokens(engine, capture.need("logits"), [targets[i] for i in rows])
        found = engine.attribute(capture, tokens)
        width = found.features.shape[-1]
        gate, activation = capture.need("gate"), capture.need("activation")
        for row, i in enumerate(rows):
            flat = found.features[row].flatten()
            best = top_tokens(flat, top[i])
            layer, feature = best // width, best % width
            out[i] = Contributors(
                int(tokens[row]),
                layer.cpu().numpy().astype(np.int32),
                feature.cpu().numpy().astype(np.int32),
                gate[layer, row, feature].float().cpu().numpy(),
                activation[layer, row, feature].float().cpu().numpy(),
                flat[best].cpu().numpy(),
            )
    return [out[i] for i in range(len(prompts))]


def lenses(engine: Engine, prompts: Sequence[str], top: Sequence[int]) -> list[list[Prediction]]:
    """Each prompt's logit lens at its last position: a Prediction for every layer, the embedding first."""
    out: dict[int, list[Prediction]] = {}
    for rows in groups(engine, prompts):
        residual = engine.capture([prompts[i] for i in rows], ["residual"]).need("residual")
        for row, i in enumerate(rows):
            lens = (logits for block in readings(engine, residual[:, row]) for logits in block)
            out[i] = [prediction(logits, top[i]) for logits in lens]
    return [out[i] for i in range(len(prompts))]


def _tokens(engine: Engine, logits: torch.Tensor, targets: Sequence[str | None]) -> torch.Tensor:
    """One token id a row, int64: the target's, or the most probable one."""
    ids = [
        int(top_tokens(row, 1)[0]) if target is None else find_target(engine.tokenizer, target).token_id
        for row, target in zip(logits, targets, strict=True)
    ]
    return torch.tensor(ids, dtype=torch.int64, device=engine.device)
