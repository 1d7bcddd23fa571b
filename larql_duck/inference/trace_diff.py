"""TRACE ... DIFF: one prompt beside another, or beside itself under the session's edits, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from larql_duck.catalog.forward_tables import SCHEMAS, as_table
from larql_duck.errors import LarqlError
from larql_duck.inference.attribution import LogitDirection, attribute, require_parts
from larql_duck.inference.capture import FOR_ATTRIBUTION, FOR_STATES, Capture, ResidualStates
from larql_duck.inference.engine import Engine
from larql_duck.inference.feature_labels import Labels, no_labels, promoted_tokens
from larql_duck.inference.logit_lens import Columns, layer_readings
from larql_duck.inference.targets import Target, find_target, known_target, target_or_prediction

_Under = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class TraceDiff:
    """Two passes compared: table has the columns of SCHEMAS['trace_diff'], by layer, then token, then feature.

    answers are the most probable tokens of both, tokens those that are followed.
    """

    table: pa.Table
    answers: tuple[Target, Target]
    tokens: tuple[Target, ...]
    notices: tuple[str, ...]


def trace_diff(
    engine: Engine,
    prompt: str,
    other: str | None = None,
    *,
    target: str | None = None,
    layers: Iterable[int] | None = None,
    top: int = 0,
    labels: Labels = no_labels,
) -> TraceDiff:
    """The last positions of `prompt` (a) and `other` (b) side by side, a row per layer (-1: the embedding) and token.

    other None: a is the prompt without the session's edits, b the same with them. The tokens followed are the answers
    to a and b, or `target` alone. top: so many features of each layer whose part in the token's logit differs most, a
    row each. layers limits the rows. LarqlError as for `infer_table`, and without edits where other is None.
    """
    with engine.modules.pass_lock:
        return _compared(engine, prompt, other, target, layers, top, labels)


def _compared(
    engine: Engine,
    prompt: str,
    other: str | None,
    target: str | None,
    layers: Iterable[int] | None,
    top: int,
    labels: Labels,
) -> TraceDiff:
    edits = engine.overlay
    if other is None and edits is None:
        raise LarqlError(
            "there are no edits that change the model, so there is nothing to compare: INSERT, UPDATE, DELETE or "
            'APPLY PATCH first, or write TRACE "prompt" DIFF "another prompt"'
        )
    require_parts(engine)
    selected = engine.select_layers(layers, embedding=True)
    prompts = (prompt, prompt if other is None else other)
    under: tuple[_Under, _Under] = (nullcontext, nullcontext)
    if other is None:
        under = (partial(engine.under, None), partial(engine.under, edits))
    parts = FOR_ATTRIBUTION if top else FOR_STATES
    captures = []
    for text, context in zip(prompts, under, strict=True):
        with context():
            captures.append(engine.capture(text, parts))
    answers = tuple(target_or_prediction(engine.tokenizer, None, c.need("logits")[0]) for c in captures)
    ids = dict.fromkeys(answer.token_id for answer in answers)
    tokens = [known_target(engine.tokenizer, i) for i in ids]
    if target is not None:
        tokens = [find_target(engine.tokenizer, target)]
    sides = []
    for capture, context in zip(captures, under, strict=True):
        with context():
            sides.append(_read(engine, capture, tokens, selected, features=bool(top)))
    a, b = sides
    rows = []
    for n, layer in enumerate(selected):
        whole = _difference(a, b, layer)
        for i, token in enumerate(tokens):
            rows.append({"layer": layer, "token": token.token, **whole, **_readings(engine, a, b, i, n)})
            if top and layer >= 0:
                rows += _features(a, b, layer, i, token, top)
    _label(rows, labels)
    table = as_table(
        "trace_diff", {name: [row.get(name) for row in rows] for name in SCHEMAS["trace_diff"].names}
    )
    return TraceDiff(
        table, (answers[0], answers[1]), tuple(tokens), _notices(engine, prompts, captures, answers, tokens)
    )


@dataclass(frozen=True)
class _Side:
    """What one pass says of the tokens: columns as of a trace, [tokens, layers]; residual f32 [layers + 1, hidden]; and,
    where features are compared, contributions f32 [tokens, L, features] and activations f32 [L, features]."""

    columns: Columns
    residual: torch.Tensor
    contributions: torch.Tensor | None = None
    activations: torch.Tensor | None = None


def _read(
    engine: Engine, capture: Capture, tokens: Sequence[Target], layers: Sequence[int], *, features: bool
) -> _Side:
    states = capture.states()
    ids = torch.tensor([token.token_id for token in tokens])
    # The one position once for every token.
    residual, attn, ffn = (
        part.expand(-1, len(ids), -1) for part in (states.residual, states.attn[1:], states.ffn[1:])
    )
    columns = layer_readings(
        engine, ResidualStates(residual, attn, ffn), layers, LogitDirection(engine, residual[-1], ids)
    )
    if not features:
        return _Side(columns, states.residual[:, 0])
    parts = attribute(engine, capture, ids, rows=[0] * len(ids))
    return _Side(columns, states.residual[:, 0], parts.features, capture.need("activation")[:, 0].float())


def _difference(a: _Side, b: _Side, layer: int) -> dict[str, float]:
    """How far apart the residuals after a layer are."""
    first, second = a.residual[layer + 1].double(), b.residual[layer + 1].double()
    return {
        "difference_norm": float((second - first).norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(first, second, dim=0)),
    }


def _readings(engine: Engine, a: _Side, b: _Side, token: int, n: int) -> dict[str, Any]:
    """What both sides say of a token after the n-th of the selected layers."""
    row: dict[str, Any] = {}
    for name, side in (("a", a), ("b", b)):
        row[f"top_token_{name}"] = engine.tokenizer.token(int(side.columns["top_id"][token, n]))
        for column in ("token_rank", "token_probability", "residual_norm"):
            row[f"{column}_{name}"] = side.columns[column][token, n].item()
    for part in ("attn", "ffn"):
        change = b.columns[f"{part}_logit"][token, n] - a.columns[f"{part}_logit"][token, n]
        row[f"{part}_change"] = float(change)
    return row


def _features(a: _Side, b: _Side, layer: int, token: int, followed: Target, top: int) -> list[dict[str, Any]]:
    """The features of a layer whose parts in the token's logit differ most."""
    width = max(_width(a), _width(b))
    parts = [_padded(side.contributions, width)[token, layer] for side in (a, b)]
    change = parts[1] - parts[0]
    best = change.abs().sort(descending=True, stable=True).indices[:top]
    fired = [_padded(side.activations, width)[layer] for side in (a, b)]
    return [
        {
            "layer": layer,
            "token": followed.token,
            "feature": feature,
            "activation_a": float(fired[0][feature]),
            "activation_b": float(fired[1][feature]),
            "ffn_change": float(change[feature]),
        }
        for feature in best.tolist()
        if change[feature] != 0
    ]


def _width(side: _Side) -> int:
    assert side.activations is not None
    return side.activations.shape[-1]


def _padded(values: torch.Tensor | None, width: int) -> torch.Tensor:
    """The values with zeros for features that the other side alone has."""
    assert values is not None
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]))


def _label(rows: Sequence[dict[str, Any]], labels: Labels) -> None:
    """Say of the rows of features which token each promotes, with its stronger activation of the two."""
    slots = list(dict.fromkeys((row["layer"], row["feature"]) for row in rows if "feature" in row))
    if not slots:
        return
    known = {(row["layer"], row["feature"]): row for row in labels(slots).to_pylist()}
    for row in rows:
        if "feature" in row and (label := known.get((row["layer"], row["feature"]))):
            stronger = max(row["activation_a"], row["activation_b"], key=abs)
            row["feature_token"] = promoted_tokens(label, stronger)[0]


def _notices(
    engine: Engine,
    prompts: tuple[str, str],
    captures: Sequence[Capture],
    answers: Sequence[Target],
    tokens: Sequence[Target],
) -> tuple[str, ...]:
    same = prompts[0] == prompts[1]
    names = ("a, without the edits", "b, with them") if same else ("a", "b")
    said = []
    for name, capture, answer in zip(names, captures, answers, strict=True):
        p = capture.need("logits")[0].softmax(-1)[answer.token_id]
        said.append(f"{name}: {answer.token!r} (p {float(p):.3g})")
    remarks = [
        remark
        for text in dict.fromkeys(prompts)
        for remark in engine.tokenizer.remarks(engine.tokenizer.encode(text))
    ]
    return (
        *dict.fromkeys(remarks),
        *(notice for token in tokens for notice in token.notices),
        "; ".join(said),
    )
