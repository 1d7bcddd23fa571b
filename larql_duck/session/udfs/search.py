"""Gate search in SQL: features near a vector, distances, and the vectors of prompts and entities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from larql_duck.session.udfs.arrow import Function, StructRow, struct_list_type, struct_lists
from larql_duck.workspace import Workspace

_HIT = {"layer": pa.int32(), "feature": pa.int32(), "gate": pa.float32(), "activation": pa.float32()}
_DISTANCE = {"feature": pa.int32(), "distance": pa.float32()}


def search_functions(workspace: Callable[[], Workspace]) -> list[Function]:
    """The functions; `workspace` gives the vindex that is open at the time."""

    def topk(layers: Any, query: Any, k: Any, order: Any) -> pa.Array:
        def hits(*row: Any) -> StructRow:
            found = workspace().search().search(*row)
            activation = pa.nulls(len(found.layer), pa.float32())
            if found.activation is not None:
                activation = pa.array(found.activation, pa.float32())
            return dict(zip(_HIT, (found.layer, found.feature, found.gate, activation), strict=True))

        return struct_lists(
            _each(hits, layers.to_pylist(), _floats(query), k.to_pylist(), order.to_pylist()), _HIT
        )

    def distances(layer: Any, query: Any) -> pa.Array:
        def measured(*row: Any) -> StructRow:
            return dict(zip(_DISTANCE, workspace().search().distances(*row), strict=True))

        return struct_lists(_each(measured, layer.to_pylist(), _floats(query)), _DISTANCE)

    def prompt_vectors(prompt: Any, basis: Any, layers: Any) -> pa.Array:
        return _vectors(workspace().vectors().prompt, prompt, basis, layers)

    def entity_vectors(entity: Any, basis: Any, layers: Any) -> pa.Array:
        return _vectors(workspace().vectors().entity, entity, basis, layers)

    def last_token(prompt: Any) -> pa.Array:
        return pa.array(_each(workspace().vectors().last_token, prompt.to_pylist()), pa.string())

    return [
        ("topk", topk, ["INTEGER[]", "FLOAT[]", "INTEGER", "VARCHAR"], struct_list_type(_HIT)),
        ("distances", distances, ["INTEGER", "FLOAT[]"], struct_list_type(_DISTANCE)),
        ("prompt_vectors", prompt_vectors, ["VARCHAR", "VARCHAR", "INTEGER[]"], "FLOAT[]"),
        ("entity_vectors", entity_vectors, ["VARCHAR", "VARCHAR", "INTEGER[]"], "FLOAT[]"),
        ("last_token", last_token, ["VARCHAR"], "VARCHAR"),
    ]


def _each(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """`function` of each row; None for a row with a NULL."""
    return [None if any(v is None for v in row) else function(*row) for row in zip(*columns, strict=True)]


def _vectors(of: Callable[..., Any], *columns: Any) -> pa.Array:
    rows = _each(lambda *row: of(*row).reshape(-1), *(column.to_pylist() for column in columns))
    return pa.array(rows, pa.list_(pa.float32()))


def _floats(column: Any) -> list[Any]:
    """Each row's list as a float32 array (a view of Arrow's memory), None where it is NULL."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [scalar.values.to_numpy() if scalar.is_valid else None for chunk in chunks for scalar in chunk]
