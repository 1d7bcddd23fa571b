"""The Python functions of the sql files numbered 60 and up: Arrow arrays in, Arrow arrays out."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    from larql_duck.inference.gate_search import GateSearch
    from larql_duck.inference.query_vectors import QueryVectors
    from larql_duck.session.mount import Mount

_HIT = "STRUCT(layer INTEGER, feature INTEGER, gate FLOAT, activation FLOAT)[]"
_DISTANCE = "STRUCT(feature INTEGER, distance FLOAT)[]"
_HIT_FIELDS = [
    pa.field("layer", pa.int32()),
    pa.field("feature", pa.int32()),
    pa.field("gate", pa.float32()),
    pa.field("activation", pa.float32()),
]
_DISTANCE_FIELDS = [pa.field("feature", pa.int32()), pa.field("distance", pa.float32())]


class Failures:
    """The error that a function raised last, per thread: DuckDB passes on its text only."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._latest: dict[str, LarqlError] = {}
        self._lock = threading.Lock()

    def keep(self, error: LarqlError) -> None:
        with self._lock:
            if len(self._latest) > 100:
                self._latest.clear()
            self._latest[str(error)] = error

    def behind(self, message: str) -> LarqlError | None:
        """The error whose text stands in DuckDB's message, taken out; None where no function failed."""
        with self._lock:
            for text in sorted(self._latest, key=len, reverse=True):
                if text in message:
                    return self._latest.pop(text)
        return None


def register(
    mount: Mount,
    search: Callable[[], GateSearch],
    vectors: Callable[[], QueryVectors],
    failures: Failures,
) -> None:
    """Adds all functions to a mount. search and vectors give those of the vindex that is shown at the time."""

    def topk(layers: Any, query: Any, k: Any, order: Any) -> pa.Array:
        found: list[list[pa.Array] | None] = []
        for row in zip(layers.to_pylist(), _floats(query), k.to_pylist(), order.to_pylist(), strict=True):
            if any(value is None for value in row):
                found.append(None)
                continue
            hits = search().search(*row)
            activation = pa.nulls(len(hits.layer), pa.float32())
            if hits.activation is not None:
                activation = pa.array(hits.activation, pa.float32())
            found.append([pa.array(hits.layer), pa.array(hits.feature), pa.array(hits.gate), activation])
        return _lists(found, _HIT_FIELDS)

    def distances(layer: Any, query: Any) -> pa.Array:
        found: list[list[pa.Array] | None] = []
        for one_layer, one_query in zip(layer.to_pylist(), _floats(query), strict=True):
            if one_layer is None or one_query is None:
                found.append(None)
            else:
                found.append([pa.array(part) for part in search().distances(one_layer, one_query)])
        return _lists(found, _DISTANCE_FIELDS)

    def prompt_vectors(prompt: Any, basis: Any, layers: Any) -> pa.Array:
        return _vectors(vectors().prompt, prompt, basis, layers)

    def entity_vectors(entity: Any, basis: Any, layers: Any) -> pa.Array:
        return _vectors(vectors().entity, entity, basis, layers)

    def last_token(prompt: Any) -> pa.Array:
        texts = [None if p is None else vectors().last_token(p) for p in prompt.to_pylist()]
        return pa.array(texts, pa.string())

    table: list[tuple[str, Callable[..., pa.Array], list[str], str]] = [
        ("topk", topk, ["INTEGER[]", "FLOAT[]", "INTEGER", "VARCHAR"], _HIT),
        ("distances", distances, ["INTEGER", "FLOAT[]"], _DISTANCE),
        ("prompt_vectors", prompt_vectors, ["VARCHAR", "VARCHAR", "INTEGER[]"], "FLOAT[]"),
        ("entity_vectors", entity_vectors, ["VARCHAR", "VARCHAR", "INTEGER[]"], "FLOAT[]"),
        ("last_token", last_token, ["VARCHAR"], "VARCHAR"),
    ]
    for name, function, parameters, returns in table:
        mount.add_function(name, watched(function, failures), parameters, returns)


def watched(function: Callable[..., pa.Array], failures: Failures) -> Callable[..., pa.Array]:
    """`function`, whose errors `failures` keeps: DuckDB passes on their text only."""

    def call(*columns: Any) -> pa.Array:
        try:
            return function(*columns)
        except LarqlError as error:
            failures.keep(error)
            raise

    # DuckDB counts the parameters.
    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return call


def _vectors(of: Callable[[str, str, Sequence[int]], Any], text: Any, basis: Any, layers: Any) -> pa.Array:
    found = []
    for row in zip(text.to_pylist(), basis.to_pylist(), layers.to_pylist(), strict=True):
        found.append(None if any(value is None for value in row) else of(*row).reshape(-1))
    return pa.array(found, pa.list_(pa.float32()))


def _floats(column: Any) -> list[Any]:
    """Each row's list as a float32 array (a view of Arrow's memory), None where it is NULL."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [scalar.values.to_numpy() if scalar.is_valid else None for chunk in chunks for scalar in chunk]


def _lists(rows: list[list[pa.Array] | None], fields: list[pa.Field]) -> pa.Array:
    """A column of lists of structs; each row gives its structs' fields as arrays, or is NULL."""
    offsets, length = [0], 0
    for row in rows:
        length += 0 if row is None else len(row[0])
        offsets.append(length)
    given = [row for row in rows if row is not None]
    columns = [
        pa.concat_arrays([row[i] for row in given]) if given else pa.nulls(0, field.type)
        for i, field in enumerate(fields)
    ]
    structs = pa.StructArray.from_arrays(columns, fields=fields)
    # A NULL row is a NULL offset at its start.
    starts = pa.array(
        [None if row is None else o for row, o in zip(rows, offsets, strict=False)] + [offsets[-1]],
        pa.int32(),
    )
    return pa.ListArray.from_arrays(starts, structs)
