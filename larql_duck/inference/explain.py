"""EXPLAIN INFER: which features and heads, layer by layer, wrote the logit of the predicted token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from larql_duck.aliases import Slot
from larql_duck.catalog.forward_tables import SCHEMAS, as_table
from larql_duck.errors import LarqlError
from larql_duck.inference.attribution import Attribution, attribute, require_parts
from larql_duck.inference.batch import Batch
from larql_duck.inference.capture import FOR_ATTRIBUTION, Capture
from larql_duck.inference.engine import Engine
from larql_duck.inference.feature_labels import Labels, example, no_labels, promoted_tokens
from larql_duck.inference.interventions import Edit
from larql_duck.inference.targets import Target, target_or_prediction, top_tokens

TOP = 3
TOP_VERBOSE = 10
# Attended positions shown a head.
POSITIONS = 3


@dataclass(frozen=True)
class Explanation:
    """An explained prediction: table has the columns of SCHEMAS['explain'], by layer, then features, heads, attention.

    target is the explained token, probability the model's for it; total its centred logit before soft-caps, of which
    the contributions of all features, heads, biases and the embedding are the parts.
    """

    table: pa.Table
    target: Target
    probability: float
    total: float

    @property
    def notices(self) -> tuple[str, ...]:
        """Remarks: which token was explained and how probable it is."""
        line = f"explains {self.target.token!r}: probability {self.probability:.4f}, centred logit {self.total:.3f}"
        return (*self.target.notices, line)


def explain_infer(
    engine: Engine,
    prompt: str,
    *,
    target: str | None = None,
    top: int = TOP,
    layers: Iterable[int] | None = None,
    labels: Labels = no_labels,
    relations_only: bool = False,
    attention: bool = False,
    edits: Sequence[Edit] = (),
) -> Explanation:
    """The Explanation of the predicted token, or of `target`: per layer the `top` features by contribution.

    layers (None: all) limits the rows; relations_only keeps features that `labels` knows. attention adds, per layer,
    the `top` heads by contribution (kind 'head') and for each the positions it attends to most (kind 'attention');
    attention is then computed in the form that shows its weights, and what stands in its place in a layer is one row (kind
    'mixer'). LarqlError as for `infer_table`.
    """
    selected = engine.select_layers(layers)
    if top < 0:
        raise LarqlError(f"TOP {top} is out of range; it must be at least 0")
    require_parts(engine)
    batch = engine.encode(prompt)
    names = set(FOR_ATTRIBUTION) | {"gate"} | ({"heads", "attention"} if attention else set())
    with engine.intervene(*edits):
        capture = engine.capture(batch, names)
    logits = capture.need("logits")[0]
    explained = target_or_prediction(engine.tokenizer, target, logits)
    parts = attribute(engine, capture, [explained.token_id], heads=attention)
    known = _known(engine, labels) if relations_only else None
    slots = [
        s for layer in selected for s in _best_features(parts, layer, engine.n_features[layer], top, known)
    ]
    rows = _feature_rows(capture, parts, slots, labels)
    if attention:
        for layer in selected:
            rows += _attention_rows(engine, batch, capture, parts, layer, top)
    if not relations_only:
        rows += _bias_rows(parts, selected, final=layers is None)
    rows.sort(key=lambda row: row["layer"])
    columns = {name: [row.get(name) for row in rows] for name in SCHEMAS["explain"].names}
    probability = float((logits[explained.token_id] - torch.logsumexp(logits, 0)).exp())
    return Explanation(as_table("explain", columns), explained, probability, float(parts.total[0]))


def _known(engine: Engine, labels: Labels) -> list[torch.Tensor]:
    """For each layer, which features have a known label, bool [features]."""
    masks = [torch.zeros(n, dtype=torch.bool, device=engine.device) for n in engine.n_features]
    table = labels(None)
    for layer, feature in zip(table["layer"].to_pylist(), table["feature"].to_pylist(), strict=True):
        if layer < len(masks) and feature < len(masks[layer]):
            masks[layer][feature] = True
    return masks


def _best_features(
    parts: Attribution, layer: int, n_features: int, top: int, known: list[torch.Tensor] | None
) -> list[Slot]:
    values = parts.features[0, layer, :n_features]
    if known is None:
        return [(layer, feature) for feature in top_tokens(values, top).tolist()]
    candidates = torch.nonzero(known[layer]).flatten()
    return [(layer, int(candidates[i])) for i in top_tokens(values[candidates], top).tolist()]


def _feature_rows(
    capture: Capture, parts: Attribution, slots: Sequence[Slot], labels: Labels
) -> list[dict[str, Any]]:
    gate, activation = capture.need("gate"), capture.need("activation")
    named = {(row["layer"], row["feature"]): row for row in labels(slots).to_pylist()} if slots else {}
    rows = []
    for layer, feature in slots:
        row: dict[str, Any] = {
            "kind": "feature",
            "layer": layer,
            "feature": feature,
            "gate": float(gate[layer, 0, feature]),
            "activation": float(activation[layer, 0, feature]),
            "contribution": float(parts.features[0, layer, feature]),
        }
        if label := named.get((layer, feature)):
            row["token"], row["down_tokens"] = promoted_tokens(label, row["activation"])
            row |= {name: label[name] for name in ("relation", "activates_on")}
            row["example"] = example(label, row["activation"])
        rows.append(row)
    return rows


def _bias_rows(parts: Attribution, layers: Sequence[int], *, final: bool) -> list[dict[str, Any]]:
    """What the biases of each layer's branches add, and (final, layer -1) those of final norm and head; none for 0."""
    added = {layer: float(parts.ffn_bias[0, layer] + parts.attn_bias[0, layer]) for layer in layers}
    if final:
        added[-1] = float(parts.bias[0])
    return [
        {"kind": "bias", "layer": layer, "contribution": value}
        for layer, value in added.items()
        if value != 0
    ]


def _attention_rows(
    engine: Engine, batch: Batch, capture: Capture, parts: Attribution, layer: int, top: int
) -> list[dict[str, Any]]:
    assert parts.heads is not None
    values = parts.heads[0, layer]
    if not engine.modules.layers[layer].attends:
        mixes = bool(len(engine.modules.layers[layer].attn_out_rows()))
        return [{"kind": "mixer", "layer": layer, "contribution": float(values[0])}] if mixes else []
    heads = top_tokens(values, top).tolist()
    rows: list[dict[str, Any]] = [
        {"kind": "head", "layer": layer, "head": head, "contribution": float(values[head])} for head in heads
    ]
    weights = capture.need("attention")[layer][0]
    ids = batch.row(0)
    for head in heads:
        for position in top_tokens(weights[head], POSITIONS).tolist():
            # A sliding window hides positions altogether.
            if weights[head, position] == 0:
                continue
            rows.append(
                {
                    "kind": "attention",
                    "layer": layer,
                    "head": head,
                    "token": engine.tokenizer.token(ids[position]),
                    "position": position,
                    "weight": float(weights[head, position]),
                }
            )
    return rows
