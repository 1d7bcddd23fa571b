"""Statements that Python carries out, and those that this version only reads."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larql_duck.errors import LarqlError, VindexError
from larql_duck.lowering.checks import fail
from larql_duck.lowering.types import Operation

if TYPE_CHECKING:
    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.result import Result
    from larql_duck.session import Session


def _result(columns: dict[str, tuple[str, list[Any]]], notices: tuple[str, ...] = ()) -> Result:
    """A Result from column name -> (Arrow type's name, values)."""
    import pyarrow as pa

    from larql_duck.result import Result

    arrays = [pa.array(values, pa.type_for_alias(kind)) for kind, values in columns.values()]
    return Result(pa.Table.from_arrays(arrays, names=list(columns)), notices=notices)


def use(s: st.Use, facts: Facts) -> Operation:
    """USE "path": opens a vindex, the session's statements then speak of it."""
    return Operation(lambda session: _use(session, s.target), s)


def _use(session: Session, path: str) -> Result:
    vindex = session.use(path)
    relations = session.run_sql(f"SELECT count(*) FROM {session.schema}.relations").one()
    return _result(
        {
            "path": ("string", [str(vindex.path)]),
            "model": ("string", [vindex.manifest.model]),
            "level": ("string", [vindex.level]),
            "layers": ("int32", [vindex.n_layers]),
            "features": ("int64", [sum(vindex.n_features)]),
            "relations": ("int64", [relations]),
        }
    )


def extract(s: st.Extract, facts: Facts) -> Operation:
    """EXTRACT MODEL: makes a vindex and opens it."""
    if s.components:
        raise fail(
            s,
            "COMPONENTS is not used: write WITH BROWSE, WITH INFERENCE or WITH ALL to say what is stored",
            "components",
        )
    layers = None
    if s.layers is not None:
        layers = (s.layers[0][0], s.layers[0][1])
        if len(s.layers) > 1:
            raise fail(s, "EXTRACT takes one range of layers, as in LAYERS 4-11", "layers")
    return Operation(lambda session: _extract(session, s, layers), s)


def _extract(session: Session, s: st.Extract, layers: tuple[int, int] | None) -> Result:
    from larql_duck.extraction import extract as run

    began = time.perf_counter()
    notices: list[str] = []
    path = run(
        s.model, s.into, level=s.level, layers=layers, progress=session.progress, notice=notices.append
    )
    session.use(path)
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return _result(
        {
            "path": ("string", [str(path)]),
            "level": ("string", [s.level]),
            "bytes": ("int64", [size]),
            "seconds": ("float64", [time.perf_counter() - began]),
        },
        tuple(notices),
    )


def stats_of(s: st.Stats, facts: Facts) -> Operation:
    """STATS "path": the figures of another vindex."""
    assert s.path is not None
    return Operation(lambda session: _stats_of(session, str(s.path)), s)


def _stats_of(session: Session, path: str) -> Result:
    from larql_duck.session import connect

    with connect(path) as other:
        return other.lql("STATS")


def show_models(s: st.ShowModels, facts: Facts) -> Operation:
    """SHOW MODELS: the vindexes in the working directory and in the directories of LARQL_DUCK_PATH."""
    return Operation(lambda session: _show_models(), s)


def _show_models() -> Result:
    places = [Path(), *(Path(p) for p in os.environ.get("LARQL_DUCK_PATH", "").split(os.pathsep) if p)]
    rows: dict[Path, tuple[Any, ...]] = {}
    for place in places:
        for path in _vindexes(place):
            rows.setdefault(path.resolve(), _model_row(path))
    columns: dict[str, tuple[str, list[Any]]] = {
        name: (kind, [row[i] for row in rows.values()])
        for i, (name, kind) in enumerate(
            [
                ("model", "string"), ("path", "string"), ("bytes", "int64"), ("layers", "int32"),
                ("features", "int64"), ("level", "string"), ("dtype", "string"), ("status", "string"),
            ]
        )
    }  # fmt: skip
    return _result(columns)


def _vindexes(place: Path) -> list[Path]:
    try:
        children = sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
    return [p for p in (place, *children) if (p / "index.json").is_file()]


def _model_row(path: Path) -> tuple[Any, ...]:
    from larql_duck.vindex.store import Vindex

    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    name = path.resolve().name
    try:
        v = Vindex.open(path)
    except LarqlError as error:
        return (name, str(path), size, None, None, None, None, str(error))
    status = "ready" if v.has_tables else "written by LARQL: no facts"
    return (name, str(path), size, v.n_layers, sum(v.n_features), v.level, v.dtype, status)


def need_vindex(facts: Facts) -> None:
    """Nothing; VindexError where no vindex is open."""
    if facts.has_model and not facts.opened:
        raise VindexError(
            "this needs a vindex and a model alone is open: make one with EXTRACT MODEL ... INTO ..., "
            "or open the model with USE MODEL ... AUTO_EXTRACT"
        )
    if not facts.opened:
        raise VindexError('no vindex is open: begin with USE "x.vindex", or give its path to connect()')
