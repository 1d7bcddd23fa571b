"""What a dictionary's features do in one prompt: which fire, what they add to the prediction, what happens without them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from larql_duck.atlas.dictionary import Dictionary
from larql_duck.inference.attribution import LogitDirection
from larql_duck.inference.effects import log_probability
from larql_duck.inference.engine import Engine
from larql_duck.inference.hook_points import HookPoint, adding, watch_points
from larql_duck.inference.modules import starting_at

# Rows of one pass.
_ROWS = 32


@dataclass(frozen=True)
class FiringFeatures:
    """Features that fire at a prompt's last position, arrays [k]: strongest contribution first.

    token_id is the predicted token. contribution: what the feature's decoder row, times its activation, adds directly to
    that token's centred logit (before soft-caps); NaN where the dictionary writes nothing into the residual. effect: how far
    the token's log p falls, in nats, when the row times the activation is taken out where the dictionary writes.
    """

    token_id: int
    feature: np.ndarray
    activation: np.ndarray
    contribution: np.ndarray
    effect: np.ndarray


@torch.inference_mode()
def firing_features(engine: Engine, dictionary: Dictionary, prompt: str, k: int) -> FiringFeatures:
    """The k features of `dictionary` that add most, in absolute value, to the logit of what the model predicts."""
    batch = engine.encode(prompt)
    found: dict[int, torch.Tensor] = {}
    start = HookPoint(dictionary.out.layer, "hook_resid_pre")
    with watch_points(engine.modules, (dictionary.point, start), found.__setitem__):
        capture = engine.capture(batch, ["residual"])
    logits = capture.need("logits")
    token = logits.argmax(-1)
    codes = dictionary.encode(found[0][:, -1].float())
    firing = torch.nonzero(codes.activation[0]).flatten()
    activation = codes.activation[0, firing]
    written = activation[:, None] * codes.scale[0] * dictionary.decoder[firing]
    before = LogitDirection(engine, capture.need("residual")[-1].float(), token).before[0]
    direct = written @ before
    order = torch.argsort(
        direct.abs() if dictionary.out.direct else activation, descending=True, stable=True
    )[:k]
    log_p = log_probability(logits, token)
    after = [
        _without(engine, dictionary.out, batch.ids, batch.positions, found[1], rows, int(token[0]))
        for rows in written[order].split(_ROWS)
    ]
    effect = log_p - torch.cat(after) if len(order) else torch.zeros(0)
    nothing = torch.full_like(direct, float("nan"))
    return FiringFeatures(
        int(token[0]),
        firing[order].cpu().numpy().astype(np.int32),
        activation[order].cpu().numpy(),
        (direct if dictionary.out.direct else nothing)[order].cpu().numpy(),
        effect.cpu().numpy(),
    )


def _without(
    engine: Engine,
    out: HookPoint,
    ids: torch.Tensor,
    positions: torch.Tensor,
    entering: torch.Tensor,
    written: torch.Tensor,
    token: int,
) -> torch.Tensor:
    """log p of the token with each row of written [n, hidden] taken out at the last position, f32 [n].

    Passes begin at the layer of `out`, which the prompt enters as entering [1, t, hidden].
    """
    n = len(written)
    with (
        starting_at(engine.modules, out.layer, entering.expand(n, -1, -1)),
        adding(engine.modules, out, -written),
    ):
        logits = engine.run(ids.expand(n, -1), None, positions.expand(n, -1))
    return log_probability(logits, torch.full((n,), token, device=logits.device))


@dataclass(frozen=True)
class WalkedFeatures:
    """The features that fire at each position of a text, strongest first; arrays with an entry a position and rank."""

    position: np.ndarray
    rank: np.ndarray
    feature: np.ndarray
    activation: np.ndarray
    tokens: list[str]


@torch.inference_mode()
def walk_dictionary(engine: Engine, dictionary: Dictionary, text: str, k: int) -> WalkedFeatures:
    """At every position of `text`, from 0, the k features of `dictionary` with the largest activation."""
    batch = engine.encode(text)
    found: dict[int, torch.Tensor] = {}
    with watch_points(engine.modules, (dictionary.point,), found.__setitem__):
        engine.logits(batch)
    activation = dictionary.encode(found[0][0].float()).activation
    values, features = torch.sort(activation, dim=1, descending=True, stable=True)
    values, features = values[:, :k].cpu(), features[:, :k].cpu()
    positions, places = (values > 0).nonzero(as_tuple=True)
    ids = batch.row(0)
    return WalkedFeatures(
        positions.numpy().astype(np.int32),
        places.numpy().astype(np.int32) + 1,
        features[positions, places].numpy().astype(np.int32),
        values[positions, places].numpy(),
        [engine.tokenizer.token(ids[p]) for p in positions.tolist()],
    )
