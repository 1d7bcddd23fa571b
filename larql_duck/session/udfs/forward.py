"""The Python functions of sql/70_model.sql: forward passes over columns of prompts, batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from larql_duck.inference.model import Model
    from larql_duck.patches.overlay import EditedFact

_I32, _F32, _F64, _S = pa.int32(), pa.float32(), pa.float64(), pa.string()
_SQL = {_I32: "INTEGER", _F32: "FLOAT", _F64: "DOUBLE", _S: "VARCHAR"}

_TOP = {"rank": _I32, "token": _S, "token_id": _I32, "probability": _F64, "logit": _F64}
_TRACE = {
    "layer": _I32, "top_token": _S, "probability": _F64, "attn_norm": _F32, "ffn_norm": _F32, "residual_norm": _F32,
    "token_rank": _I32, "token_probability": _F64, "attn_logit": _F64, "ffn_logit": _F64,
}  # fmt: skip
_FEATURES = {
    "rank": _I32, "layer": _I32, "feature": _I32, "gate": _F32, "activation": _F32, "contribution": _F32,
    "predicted": _S,
}  # fmt: skip
_LENS = {"layer": _I32, **_TOP}
_INFER = {**_TOP, "source": _S}

Rows = list[dict[str, Any] | None]
Function = tuple[str, Callable[..., pa.Array], list[str], str]


def model_functions(model: Callable[[], Model]) -> list[Function]:
    """(name, function over Arrow arrays, parameter types, result type); `model` gives the model that is open."""

    def infer_top(prompt: Any, k: Any) -> pa.Array:
        from larql_duck.inference.predict import predictions

        def run(live: Model, prompts: list[str], tops: list[int]) -> Rows:
            tokenizer = live.engine.tokenizer
            most = predictions(live.engine, prompts, max(tops))
            return [
                _with_facts({name: column[:k] for name, column in p.columns(tokenizer).items()}, facts)
                for p, k, facts in zip(most, tops, live.database(prompts), strict=True)
            ]

        return _answers(model, run, _INFER, prompt, k)

    def trace(prompt: Any, target: Any) -> pa.Array:
        from larql_duck.inference.batched import traces

        def run(live: Model, prompts: list[str], targets: list[str | None]) -> Rows:
            engine = live.engine
            rows: Rows = []
            for found in traces(engine, prompts, targets):
                tokens = [_token(engine, int(i)) for i in found.pop("top_id")]
                rows.append({"layer": list(range(-1, engine.n_layers)), "top_token": tokens, **found})
            return rows

        return _answers(model, run, _TRACE, prompt, target, needed=1)

    def features(prompt: Any, target: Any, k: Any) -> pa.Array:
        from larql_duck.inference.batched import top_contributions

        def run(live: Model, prompts: list[str], targets: list[str | None], tops: list[int]) -> Rows:
            engine = live.engine
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

        return _answers(model, run, _FEATURES, prompt, target, k, needed=1)

    def lens(prompt: Any, k: Any) -> pa.Array:
        from larql_duck.inference.batched import logit_lenses

        def run(live: Model, prompts: list[str], tops: list[int]) -> Rows:
            engine = live.engine
            rows: Rows = []
            for per_layer in logit_lenses(engine, prompts, tops):
                parts = [p.columns(engine.tokenizer) for p in per_layer]
                row = {name: [v for part in parts for v in part[name]] for name in _TOP}
                row["layer"] = [i - 1 for i, part in enumerate(parts) for _ in part["rank"]]
                rows.append(row)
            return rows

        return _answers(model, run, _LENS, prompt, k)

    return [
        ("infer_top", infer_top, ["VARCHAR", "INTEGER"], _type(_INFER)),
        ("trace", trace, ["VARCHAR", "VARCHAR"], _type(_TRACE)),
        ("features", features, ["VARCHAR", "VARCHAR", "INTEGER"], _type(_FEATURES)),
        ("logit_lens", lens, ["VARCHAR", "INTEGER"], _type(_LENS)),
    ]


def _type(fields: dict[str, pa.DataType]) -> str:
    return "STRUCT(" + ", ".join(f'"{name}" {_SQL[kind]}' for name, kind in fields.items()) + ")[]"


def _token(engine: Any, token_id: int) -> str:
    from larql_duck.inference.targets import token_text

    return token_text(engine.tokenizer, token_id)


def _with_facts(row: dict[str, Any], facts: Sequence[EditedFact]) -> dict[str, Any]:
    """A prediction with the source of its tokens, and database facts behind them."""
    row["source"] = ["dense"] * len(row["rank"]) + ["patch"] * len(facts)
    row["token"] = row["token"] + [fact.target for fact in facts]
    for name in ("rank", "token_id", "probability", "logit"):
        row[name] = row[name] + [None] * len(facts)
    return row


def _answers(
    model: Callable[[], Model],
    run: Callable[..., Rows],
    fields: dict[str, pa.DataType],
    *columns: Any,
    needed: int | None = None,
) -> pa.Array:
    """A list of structs a row. Equal rows are computed once; a row with NULL in one of its first `needed` (None: any)
    columns is NULL."""
    given = list(zip(*(column.to_pylist() for column in columns), strict=True))
    keys = list(dict.fromkeys(row for row in given if all(v is not None for v in row[:needed])))
    # A column's default is NULL too, where the macro hands it on.
    found = run(model(), *(list(column) for column in zip(*keys, strict=True))) if keys else []
    answers = dict(zip(keys, found, strict=True))
    rows = [answers.get(row) for row in given]
    lengths = [0 if row is None else len(row["layer" if "layer" in fields else "rank"]) for row in rows]
    starts, total = [], 0
    for row, length in zip(rows, lengths, strict=True):
        starts.append(None if row is None else total)
        total += length
    arrays = [
        pa.concat_arrays(
            [pa.array([], kind), *(pa.array(row[name], kind) for row in rows if row is not None)]
        )
        for name, kind in fields.items()
    ]
    structs = pa.StructArray.from_arrays(arrays, fields=[pa.field(n, k) for n, k in fields.items()])
    return pa.ListArray.from_arrays(pa.array([*starts, total], pa.int32()), structs)
