"""Forward passes in SQL: functions over columns of prompts, batched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.session.udfs.arrow import Function, answered, struct_list_type, struct_lists

if TYPE_CHECKING:
    from larql_duck.inference.model import Model
    from larql_duck.workspace import Workspace

_I32, _F32, _F64, _S = pa.int32(), pa.float32(), pa.float64(), pa.string()

_TOP = {"rank": _I32, "token": _S, "token_id": _I32, "probability": _F64, "logit": _F64}
_TRACE = {
    "layer": _I32, "top_token": _S, "probability": _F64, "attn_norm": _F32, "ffn_norm": _F32, "residual_norm": _F32,
    "token_rank": _I32, "token_probability": _F64, "attn_logit": _F64, "ffn_logit": _F64,
}  # fmt: skip
_FEATURES = {
    "rank": _I32, "layer": _I32, "feature": _I32, "gate": _F32, "activation": _F32, "contribution": _F32,
    "predicted": _S,
}  # fmt: skip

_PASSES: dict[str, tuple[list[str], dict[str, pa.DataType], tuple[int, ...]]] = {
    "infer_top": (["VARCHAR", "INTEGER"], {**_TOP, "source": _S}, (0, 1)),
    "trace": (["VARCHAR", "VARCHAR"], _TRACE, (0,)),
    "features": (["VARCHAR", "VARCHAR", "INTEGER"], _FEATURES, (0, 2)),
    "logit_lens": (["VARCHAR", "INTEGER"], {"layer": _I32, **_TOP}, (0, 1)),
}
"""Function of `pass_rows` -> SQL types of its parameters, fields of its result, which parameters must not be NULL.

A parameter's default is NULL too, where the macro hands it on."""


# Parameters: the prompt, how many rows, and the dictionary or NULL.
_DICTIONARY: dict[str, dict[str, pa.DataType]] = {
    "dictionary_features": {
        "dictionary": _S, "rank": _I32, "feature": _I32, "activation": _F32, "contribution": _F32, "effect": _F32, "predicted": _S,
    },
    "dictionary_walk": {
        "dictionary": _S, "position": _I32, "token": _S, "rank": _I32, "feature": _I32, "activation": _F32,
    },
}  # fmt: skip
"""Function of `dictionary_rows` -> fields of its result."""


def dictionary_functions(workspace: Callable[[], Workspace], tell: Callable[[str], None]) -> list[Function]:
    """The functions; `workspace` gives the vindex that is open at the time, `tell` hears why a row has no answer."""

    def function(name: str, fields: dict[str, pa.DataType]) -> Callable[..., pa.Array]:
        def call(*columns: Any) -> pa.Array:
            run = getattr(import_module("larql_duck.session.udfs.dictionary_rows"), name)
            passes = import_module("larql_duck.session.udfs.pass_rows")
            opened = workspace()
            rows = answered(
                columns, (0, 1),
                lambda *given: passes.where_it_runs(opened.engine(), partial(run, opened), given, tell),
            )  # fmt: skip
            return struct_lists(rows, fields)

        return call

    parameters = ["VARCHAR", "INTEGER", "VARCHAR"]
    return [
        (name, function(name, fields), parameters, struct_list_type(fields))
        for name, fields in _DICTIONARY.items()
    ]


def pass_functions(model: Callable[[], Model], tell: Callable[[str], None]) -> list[Function]:
    """The functions; `model` gives the model that is open at the time, `tell` hears why a row has no answer."""
    return [
        (name, _function(name, model, fields, needed, tell), parameters, struct_list_type(fields))
        for name, (parameters, fields, needed) in _PASSES.items()
    ]


def _function(
    name: str,
    model: Callable[[], Model],
    fields: dict[str, pa.DataType],
    needed: tuple[int, ...],
    tell: Callable[[str], None],
) -> Callable[..., pa.Array]:
    def call(*columns: Any) -> pa.Array:
        # What runs passes needs torch.
        passes = import_module("larql_duck.session.udfs.pass_rows")
        run = partial(getattr(passes, name), model())
        rows = answered(
            columns, needed, lambda *given: passes.where_it_runs(model().engine, run, given, tell)
        )
        return struct_lists(rows, fields)

    return call
