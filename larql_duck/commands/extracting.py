"""EXTRACT, AUTO_EXTRACT, SHOW MODELS and STATS of what the session has not opened as a vindex."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from larql_duck.commands.opening import connect
from larql_duck.commands.rows import BIG, FLOAT, INT, TEXT, result_of
from larql_duck.errors import LarqlError, VindexError
from larql_duck.extraction import extract as make_vindex
from larql_duck.files import size_on_disk
from larql_duck.lowering.types import Request
from larql_duck.models.checkpoint import ModelSource
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.store import Vindex


def extract(session: Session, request: Request) -> Result:
    """EXTRACT MODEL: makes a vindex and opens it."""
    s = request.statement
    began = time.perf_counter()
    notices: list[str] = []
    path = make_vindex(
        s.model,
        s.into,
        level=s.level,
        layers=request.arguments["layers"],
        device=session.options.settings.device,
        notice=notices.append,
    )
    session.use(path)
    columns = {"path": TEXT, "level": TEXT, "bytes": BIG, "seconds": FLOAT}
    row = (str(path), s.level, size_on_disk(path), time.perf_counter() - began)
    return result_of(columns, [row], notices)


def auto_extract(session: Session, request: Request) -> Result:
    """After USE MODEL ... AUTO_EXTRACT: NAME.vindex in the working directory, made or opened again; notices say which."""
    source: ModelSource = request.arguments["source"]
    out = Path(f"{source.name.rsplit('/', 1)[-1]}.vindex")
    if out.exists():
        vindex, sizes = Vindex.open(out), source.sizes()
        stored = (vindex.manifest.model, vindex.n_layers, vindex.hidden, vindex.vocab)
        if stored != (source.name, sizes.n_layers, sizes.hidden, sizes.vocab):
            raise VindexError.at(
                out,
                "exists already and is of another model; make a vindex yourself: EXTRACT MODEL ... INTO ...",
            )
        session.use(vindex)
        return result_of({}, [], [f"opened {out}, which was made from this model before"])
    notices: list[str] = []
    # Nothing of the model stays in memory beside the extraction.
    session.model.reload(session.options.settings)
    path = make_vindex(source.path, out, notice=notices.append)
    session.use(path)
    return result_of({}, [], [*notices, f"made {path} first (AUTO_EXTRACT)"])


def stats(session: Session, request: Request) -> Result:
    """STATS "path": the figures of another vindex; without a path, what the files of the open model say."""
    if request.statement.path is not None:
        with connect(request.statement.path) as other:
            return other.lql("STATS")
    source = session.model.source
    sizes = source.family.sizes(source.config)
    figures: list[tuple[str, str | int]] = [
        ("model", str(getattr(source, "name", source.path.name))),
        ("family", source.family.name),
        ("level", "model"),
        ("dtype", str(getattr(source, "dtype", ""))),
        ("hidden", sizes.hidden),
        ("layers", sizes.n_layers),
        ("features", sum(sizes.intermediate)),
        ("tokens", sizes.vocab),
    ]
    return result_of(
        {"section": TEXT, "name": TEXT, "value": TEXT, "number": FLOAT},
        [("model", name, str(value), value if isinstance(value, int) else None) for name, value in figures],
    )


def show_models(session: Session, request: Request) -> Result:
    """SHOW MODELS: the vindexes in the working directory and in the directories of LARQL_DUCK_PATH."""
    places = [Path(), *(Path(p) for p in os.environ.get("LARQL_DUCK_PATH", "").split(os.pathsep) if p)]
    columns = {
        "model": TEXT, "path": TEXT, "bytes": BIG, "layers": INT, "features": BIG, "level": TEXT, "dtype": TEXT,
        "status": TEXT,
    }  # fmt: skip
    paths: dict[Path, Path] = {}
    for place in places:
        for path in _vindexes(place):
            paths.setdefault(path.resolve(), path)
    return result_of(columns, [_model_row(path) for path in paths.values()])


def _vindexes(place: Path) -> list[Path]:
    try:
        children = sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
    return [p for p in (place, *children) if (p / INDEX).is_file()]


def _model_row(path: Path) -> tuple[Any, ...]:
    name, size = path.resolve().name, size_on_disk(path)
    try:
        v = Vindex.open(path)
    except LarqlError as error:
        return (name, str(path), size, None, None, None, None, str(error))
    status = "ready" if v.has_tables else "written by LARQL: no facts"
    return (name, str(path), size, v.n_layers, sum(v.n_features), v.level, v.dtype, status)
