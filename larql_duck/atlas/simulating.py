"""Names tested by the model itself: it says from a name and a context whether the feature fires there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from larql_duck.atlas.clusters import Atlas
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import next_token_probabilities

# Features with fewer contexts say nothing.
_LEAST = 8
_ASKED = (
    'Topic: {name}\nText: "{context}"\nIs the last word of the text about {name}? Answer yes or no.\nAnswer:'
)


@dataclass(frozen=True)
class Simulated:
    """A named feature with the correlation of predicted and true activations over n contexts of all bands."""

    layer: int
    feature: int
    name: str
    score: float
    correlation: float
    n: int


def simulate(engine: Engine, atlas: Atlas, names: pa.Table, count: int) -> list[Simulated]:
    """The Simulated of the `count` best-scored of `names` (the table feature_names) whose held-out contexts suffice.

    A prediction is the model's log-odds of " yes" against " no" behind a prompt that states the name and the context.
    Activations are counted along the feature's usual sign; a context with the same activation everywhere gives no row.
    """
    ordered = sorted(names.to_pylist(), key=lambda r: (-r["score"], -r["n_scored"], r["layer"], r["feature"]))
    yes, no = (engine.tokenizer.encode(f" {word}", special=False)[0] for word in ("yes", "no"))
    out: list[Simulated] = []
    firings = atlas.firings
    for row in ordered:
        if len(out) == count:
            break
        own = np.flatnonzero((firings.layer == row["layer"]) & (firings.feature == row["feature"]))
        # What named it is not asked about.
        own = own[~atlas.contexts.naming()[firings.context[own]]]
        true = np.abs(firings.activation[own])
        if len(own) < _LEAST or np.ptp(true) == 0:
            continue
        texts = [atlas.contexts.texts[i] for i in firings.context[own]]
        told = _log_odds(engine, row["name"], texts, yes, no)
        correlation = float(np.corrcoef(told, true)[0, 1]) if np.ptp(told) else 0.0
        out.append(Simulated(row["layer"], row["feature"], row["name"], row["score"], correlation, len(own)))
    return out


def _log_odds(engine: Engine, name: str, contexts: Sequence[str], yes: int, no: int) -> np.ndarray:
    prompts = [_ASKED.format(name=name, context=context.strip()) for context in contexts]
    log_p = torch.log(next_token_probabilities(engine, prompts).clamp_min(1e-30))
    return (log_p[:, yes] - log_p[:, no]).numpy()
