"""Python functions that SQL calls, `<schema>_udf_<name>`: the macros of sql/ are written with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.session.udfs.arrow import Function, struct_list_type, struct_lists
from larql_duck.session.udfs.passes import dictionary_functions, pass_functions
from larql_duck.session.udfs.search import search_functions

if TYPE_CHECKING:
    from larql_duck.inference.model import Model
    from larql_duck.session.connection import Connection
    from larql_duck.session.mount import Mount
    from larql_duck.workspace import Workspace

# What lq_describe gives of each fact.
_DESCRIBED = {
    "relation": pa.string(),
    "object": pa.string(),
    "p": pa.float64(),
    "confidence": pa.float64(),
    "source": pa.string(),
}


def register_functions(
    mount: Mount, connection: Connection, model: Callable[[], Model], workspace: Callable[[], Workspace]
) -> None:
    """Add all functions to a mount. model and workspace give what is open when SQL calls a function."""
    for name, function, parameters, returns in (
        *search_functions(workspace),
        *pass_functions(model, connection.failures.tell),
        *dictionary_functions(workspace, connection.failures.tell),
        *_answer_functions(workspace, connection),
    ):
        mount.add_function(name, connection.failures.watched(function, len(parameters)), parameters, returns)


def _answer_functions(workspace: Callable[[], Workspace], connection: Connection) -> list[Function]:
    @cache
    def answers() -> Any:
        # What asks the model needs torch.
        return import_module("larql_duck.session.udfs.answers").Answers(
            workspace, connection.rows, connection.failures.tell
        )

    def ask(subject: Any, relation: Any) -> pa.Array:
        kind = pa.struct({"object": pa.string(), "p": pa.float64()})
        return pa.array(answers().ask(subject, relation), kind)

    def complete(prompt: Any, n: Any) -> pa.Array:
        return pa.array(answers().complete(prompt, n), pa.string())

    def describe(name: Any) -> pa.Array:
        return struct_lists(answers().describe(name), _DESCRIBED)

    return [
        ("describe", describe, ["VARCHAR"], struct_list_type(_DESCRIBED)),
        ("ask", ask, ["VARCHAR", "VARCHAR"], "STRUCT(object VARCHAR, p DOUBLE)"),
        ("complete", complete, ["VARCHAR", "INTEGER"], "VARCHAR"),
    ]
