"""The rows of the functions of `passes`: one a prompt, each field's values as a list or array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from larql_duck.errors import LarqlError
from larql_duck.inference.batched import logit_lenses, top_contributions, traces
from larql_duck.inference.engine import Engine
from larql_duck.inference.model import Model
from larql_duck.inference.predict import predictions
from larql_duck.inference.targets import find_target

PassRows = list[dict[str, Any]]


def where_it_runs(
    engine: Engine, run: Callable[..., PassRows], columns: Sequence[list[Any]], tell: Callable[[str], None]
) -> list[dict[str, Any] | None]:
    """What `run` gives for the rows (prompt, and perhaps target, first) on which the model can run; None for the others,
    and `tell` hears why."""
    rows = list(zip(*columns, strict=True))
    good = []
    for row in rows:
        try:
            engine.encode(row[0])
            if isinstance(row[1], str):
                find_target(engine.tokenizer, row[1])
            good.append(row)
        except LarqlError as error:
            tell(f"no answer to {row[0][:40]!r}: {error}")
    made = dict(zip(good, run(*map(list, zip(*good, strict=True))), strict=True)) if good else {}
    return [made.get(row) for row in rows]


def infer_top(model: Model, prompts: Sequence[str], tops: Sequence[int]) -> PassRows:
    """The most probable next tokens with their source 'dense', and the database facts behind them with 'patch'."""
    engine = model.engine
    rows = []
    for p, k, facts in zip(
        predictions(engine, prompts, max(tops)), tops, model.database(prompts), strict=True
    ):
        row = {name: column[:k] for name, column in p.columns(engine.tokenizer).items()}
        row["source"] = ["dense"] * len(row["rank"]) + ["patch"] * len(facts)
        row["token"] += [fact.target for fact in facts]
        for name in ("rank", "token_id", "probability", "logit"):
            row[name] += [None] * len(facts)
        rows.append(row)
    return rows


def trace(model: Model, prompts: Sequence[str], targets: Sequence[str | None]) -> PassRows:
    """Layer by layer, the embedding as layer -1: the first token, norms, and the target's (else prediction's) figures."""
    engine = model.engine
    rows = []
    for columns in traces(engine, prompts, targets):
        tokens = [_token(engine, int(i)) for i in columns.pop("top_id")]
        rows.append({"layer": list(range(-1, engine.n_layers)), "top_token": tokens, **columns})
    return rows


def features(
    model: Model, prompts: Sequence[str], targets: Sequence[str | None], tops: Sequence[int]
) -> PassRows:
    """The features that contribute most to the target, else to the prediction."""
    engine = model.engine
    return [
        {
            "rank": list(range(1, len(c.layer) + 1)),
            "layer": c.layer,
            "feature": c.feature,
            "gate": c.gate,
            "activation": c.activation,
            "contribution": c.contribution,
            "predicted": [_token(engine, c.token_id)] * len(c.layer),
        }
        for c in top_contributions(engine, prompts, targets, tops)
    ]


def logit_lens(model: Model, prompts: Sequence[str], tops: Sequence[int]) -> PassRows:
    """The most probable tokens after each layer, the embedding as layer -1."""
    engine = model.engine
    rows = []
    for readings in logit_lenses(engine, prompts, tops):
        row: dict[str, Any] = {}
        for layer, reading in enumerate(readings, -1):
            part = reading.columns(engine.tokenizer)
            for name, values in (part | {"layer": [layer] * len(part["rank"])}).items():
                row.setdefault(name, []).extend(values)
        rows.append(row)
    return rows


def _token(engine: Engine, token_id: int) -> str:
    return engine.tokenizer.token(token_id)
