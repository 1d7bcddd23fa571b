"""Second moments of what a layer's feed-forward network reads in ordinary text: measured once, kept in the vindex."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from larql_duck.errors import LarqlError, VindexError
from larql_duck.vindex.manifest import OURS

if TYPE_CHECKING:
    from larql_duck.infer.engine import Engine
    from larql_duck.session.session import Session
    from larql_duck.vindex.store import Vindex

Kind = Literal["ffn_in", "ffn_act"]
"""ffn_in: the normed input of the FFN [hidden]; ffn_act: the input of W_down [features of the base]."""

Texts = str | Path | Sequence[str]
Progress = Callable[[str, float, float], None]

FOLDER = "second_moments"
# Positions measured, as a multiple of the hidden size; the seed of the text that the model writes; tokens a pass.
POSITIONS, SEED = 20, 0
_PASS = 2048
_WRITTEN = f"{FOLDER}/text.bin"
WRITTEN = f"written by the model, seed {SEED}"
"""The origin of a second moment over text that the model wrote itself."""


@dataclass(frozen=True)
class SecondMoment:
    """matrix f64 [d, d]: the mean of x x^T over n positions of `origin`. notice says why it could not be stored."""

    matrix: np.ndarray
    n: int
    origin: str
    notice: str | None = None


def second_moments(
    session: Session, layer: int, which: Kind = "ffn_in", texts: Texts | None = None
) -> SecondMoment:
    """The second moment of one layer of the vindex, without the session's edits; stored once it was measured.

    texts is a file or texts; None: what was measured before, else text that the model writes itself by seeded
    sampling. LarqlError for texts that are too short.
    """
    vindex = session.need()
    vindex.require("inference", "the second moments of a layer")
    kept: dict[tuple[str, int, str], SecondMoment] = session.__dict__.setdefault("_second_moments", {})
    name = f"{FOLDER}/{which}.L{layer}.bin"
    key = (str(vindex.path), layer, which)
    wanted = None if texts is None else _origin(texts)
    if key in kept and wanted in (None, kept[key].origin):
        return kept[key]
    found = _stored(vindex, name)
    if found is None or wanted not in (None, found.origin):
        from larql_duck.infer.patched import under

        with under(session.engine(), None) as engine:
            rows, origin, new = _rows(session, engine, vindex, texts)
            found = measured(engine, rows, layer, which, origin, session.progress)
        found = _publish(vindex, name, found, new)
    kept[key] = found
    return found


def measured(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    layer: int,
    which: Kind,
    origin: str,
    progress: Progress | None = None,
) -> SecondMoment:
    """The second moment over every position of rows of token ids."""
    import torch

    from larql_duck.patch.keys import layer_input

    width = engine.hidden if which == "ffn_in" else engine.n_features[layer]
    total = torch.zeros(width, width, dtype=torch.float64)
    n = 0
    per_pass = max(1, _PASS // max(map(len, rows)))
    with torch.no_grad():
        for length in sorted({len(row) for row in rows}):
            same = [row for row in rows if len(row) == length]
            for start in range(0, len(same), per_pass):
                x = layer_input(
                    engine, same[start : start + per_pass], layer, part="ffn" if which == "ffn_in" else "down"
                )
                # Sums in f64: W_down's inputs span many orders of magnitude.
                x = x.reshape(-1, width).double().cpu()
                total.addmm_(x.t(), x)
                n += len(x)
                if progress is not None:
                    progress(f"second moment of layer {layer}", n, sum(map(len, rows)))
    return SecondMoment((total / max(n, 1)).numpy(), n, origin)


# -- text -----------------------------------------------------------------------------------------------------


def is_file(text: str | Path) -> bool:
    """Whether a text is the name of a file; it may be longer than a file's name can be."""
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _origin(texts: Texts) -> str:
    import hashlib

    if isinstance(texts, str | Path) and is_file(texts):
        return f"file {Path(texts).name}"
    joined = (
        texts if isinstance(texts, str) else "\n".join(map(str, texts)) if not isinstance(texts, Path) else ""
    )
    if not joined:
        raise LarqlError(f"{texts}: no such file; give a text file, or leave it out")
    return f"texts {hashlib.sha256(joined.encode()).hexdigest()[:12]}"


def _rows(
    session: Session, engine: Engine, vindex: Vindex, texts: Texts | None
) -> tuple[list[list[int]], str, dict[str, bytes]]:
    """Rows of token ids, where they are from, and the files that hold them if they are new."""
    need = POSITIONS * engine.hidden
    if texts is not None:
        return _given(engine, texts, need), _origin(texts), {}
    from larql_duck.patch.text import written_ids

    origin = WRITTEN
    kept = session.__dict__.setdefault("_written_text", {})
    if str(vindex.path) in kept:
        return kept[str(vindex.path)], origin, {}
    section = vindex.manifest.raw.get(OURS, {}).get(FOLDER, {}).get(_WRITTEN)
    if section and section.get("seed") == SEED and (vindex.path / _WRITTEN).is_file():
        ids = np.fromfile(vindex.path / _WRITTEN, "<i4")
        if len(ids) == section["rows"] * section["length"] and len(ids) >= need:
            rows: list[list[int]] = ids.reshape(section["rows"], section["length"]).tolist()
            return rows, origin, {}

    def progress(done: int, total: int) -> None:
        if session.progress is not None:
            session.progress("text for second moments", done, total)

    rows = written_ids(engine, need, seed=SEED, progress=progress)
    kept[str(vindex.path)] = rows
    return rows, origin, {_WRITTEN: np.array(rows, "<i4").tobytes()}


def written_text(session: Session) -> list[list[int]]:
    """Rows of token ids that the model wrote itself: those of its second moments where there are any, else new ones."""
    vindex = session.need()
    return _rows(session, session.engine(), vindex, None)[0]


def _given(engine: Engine, texts: Texts, need: int) -> list[list[int]]:
    from larql_duck.patch.text import LENGTH

    if isinstance(texts, str | Path) and is_file(texts):
        texts = Path(texts).expanduser().read_text(encoding="utf-8", errors="replace")
    parts = [str(texts)] if isinstance(texts, str | Path) else list(texts)
    length = min(LENGTH, engine.context or LENGTH)
    rows: list[list[int]] = []
    for part in parts:
        ids = engine.tokenizer.encode(part) if part else []
        rows += [ids[i : i + length] for i in range(0, len(ids), length)]
    have = sum(map(len, rows))
    if have < need:
        raise LarqlError(
            f"the texts have {have} tokens, and second moments need at least {need}; "
            "give more text, or none (the model then writes it)"
        )
    # More than enough is enough: twice as much changes nothing that one could measure.
    out, n = [], 0
    for row in rows:
        if n >= 2 * need:
            break
        out.append(row)
        n += len(row)
    return out


# -- files ----------------------------------------------------------------------------------------------------


def _stored(vindex: Vindex, name: str) -> SecondMoment | None:
    section = vindex.manifest.raw.get(OURS, {}).get(FOLDER, {}).get(name)
    if not section or not (vindex.path / name).is_file():
        return None
    width = int(section["width"])
    values = np.fromfile(vindex.path / name, "<f8")
    if len(values) != width * width:
        raise VindexError(
            f"{vindex.path / name}: {len(values)} numbers instead of {width * width}; "
            "delete second_moments, it is measured again",
            path=vindex.path,
        )
    return SecondMoment(values.reshape(width, width), int(section["positions"]), section["origin"])


def _publish(vindex: Vindex, name: str, found: SecondMoment, new: dict[str, bytes]) -> SecondMoment:
    """`found` after it was stored, with a notice where that is not possible."""
    from larql_duck.vindex.manifest import load_manifest
    from larql_duck.vindex.publish import commit_tables

    why = "written by LARQL"
    if vindex.ours:
        try:
            commit_tables(
                vindex.path,
                {},
                lambda section: _noted(section, name, found, new),
                {name: found.matrix.astype("<f8").tobytes(), **new},
            )
            vindex.manifest = load_manifest(vindex.path)
            return found
        except (VindexError, OSError) as error:
            why = str(error).removeprefix(f"{vindex.path}: ").split(";")[0]
    notice = f"second moments are kept for this session only: {vindex.path}: {why}"
    return SecondMoment(found.matrix, found.n, found.origin, notice)


def _noted(section: dict[str, Any], name: str, found: SecondMoment, new: dict[str, bytes]) -> None:
    from larql_duck.patch.text import LENGTH

    own = section.setdefault(FOLDER, {})
    own[name] = {
        "width": len(found.matrix),
        "dtype": "f64",
        "positions": found.n,
        "origin": found.origin,
    }
    if _WRITTEN in new:
        n = len(new[_WRITTEN]) // 4
        length = LENGTH if n % LENGTH == 0 else n
        own[_WRITTEN] = {"rows": n // length, "length": length, "dtype": "i32", "seed": SEED}
