"""Many prompts at once: traces, contributing features and logit lenses of their last positions, in shared passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from larql_duck.inference.attribution import LogitDirection, attribute, require_parts
from larql_duck.inference.capture import FOR_ATTRIBUTION, FOR_STATES
from larql_duck.inference.engine import Engine
from larql_duck.inference.logit_lens import Columns, layer_readings, unembedded
from larql_duck.inference.predict import Prediction, prediction, prompt_groups
from larql_duck.inference.targets import target_or_prediction, top_tokens


def traces(engine: Engine, prompts: Sequence[str], targets: Sequence[str | None]) -> list[Columns]:
    """Each prompt's trace: columns as `layer_readings` gives them, [layers + 1], the embedding first.

    A prompt whose target is None has token_rank, token_probability, attn_logit and ffn_logit of its own prediction.
    """
    require_parts(engine)
    out: dict[int, Columns] = {}
    for rows in prompt_groups(engine, prompts):
        capture = engine.capture([prompts[i] for i in rows], FOR_STATES)
        states = capture.states()
        tokens = _tokens(engine, capture.need("logits"), [targets[i] for i in rows])
        direction = LogitDirection(engine, states.residual[-1], tokens)
        columns = layer_readings(engine, states, range(-1, engine.n_layers), direction)
        for row, i in enumerate(rows):
            out[i] = {name: values[row] for name, values in columns.items()}
    return [out[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class TopContributions:
    """The features with the largest contribution to one prompt's token, best first; arrays [k]."""

    token_id: int
    layer: np.ndarray
    feature: np.ndarray
    gate: np.ndarray
    activation: np.ndarray
    contribution: np.ndarray


def top_contributions(
    engine: Engine, prompts: Sequence[str], targets: Sequence[str | None], top: Sequence[int]
) -> list[TopContributions]:
    """Each prompt's `top` features over all layers, for its target or (None) for its prediction."""
    require_parts(engine)
    out: dict[int, TopContributions] = {}
    for rows in prompt_groups(engine, prompts):
        capture = engine.capture([prompts[i] for i in rows], FOR_ATTRIBUTION | {"gate"})
        tokens = _tokens(engine, capture.need("logits"), [targets[i] for i in rows])
        parts = attribute(engine, capture, tokens)
        width = parts.features.shape[-1]
        gate, activation = capture.need("gate"), capture.need("activation")
        for row, i in enumerate(rows):
            flat = parts.features[row].flatten()
            best = top_tokens(flat, top[i])
            layer, feature = best // width, best % width
            out[i] = TopContributions(
                int(tokens[row]),
                layer.cpu().numpy().astype(np.int32),
                feature.cpu().numpy().astype(np.int32),
                gate[layer, row, feature].float().cpu().numpy(),
                activation[layer, row, feature].float().cpu().numpy(),
                flat[best].cpu().numpy(),
            )
    return [out[i] for i in range(len(prompts))]


def logit_lenses(engine: Engine, prompts: Sequence[str], top: Sequence[int]) -> list[list[Prediction]]:
    """Each prompt's logit lens at its last position: a Prediction for every layer, the embedding first."""
    out: dict[int, list[Prediction]] = {}
    for rows in prompt_groups(engine, prompts):
        residual = engine.capture([prompts[i] for i in rows], ["residual"]).need("residual")
        for row, i in enumerate(rows):
            lens = (logits for block in unembedded(engine, residual[:, row]) for logits in block)
            out[i] = [prediction(logits, top[i]) for logits in lens]
    return [out[i] for i in range(len(prompts))]


def _tokens(engine: Engine, logits: torch.Tensor, targets: Sequence[str | None]) -> torch.Tensor:
    """One token id a row, int64: the target's, or the most probable one."""
    ids = [
        target_or_prediction(engine.tokenizer, target, row).token_id
        for row, target in zip(logits, targets, strict=True)
    ]
    return torch.tensor(ids, dtype=torch.int64, device=engine.device)
