"""Second moments of what a layer's feed-forward network reads in ordinary text: measured once, kept in the vindex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from larql_duck.editing.background_corpus import (
    FOLDER,
    Text,
    Texts,
    background_text,
    origin_of,
    publish,
    text_file,
)
from larql_duck.progress import Progress

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.session.session import Session
    from larql_duck.vindex.store import Vindex

Kind = Literal["ffn_in", "ffn_act"]
"""ffn_in: the normed input of the FFN [hidden]; ffn_act: the input of W_down [features of the base]."""


# Tokens a pass.
_PASS = 2048


@dataclass(frozen=True)
class SecondMoment:
    """matrix f64 [d, d]: the mean of x x^T over n positions of `origin`; mean f64 [d]: that of x. notice says why it
    could not be stored.
    """

    matrix: np.ndarray
    mean: np.ndarray
    n: int
    origin: str
    notice: str | None = None


def second_moments(
    session: Session, layer: int, which: Kind = "ffn_in", texts: Texts | None = None
) -> SecondMoment:
    """The second moment of one layer of the vindex, without the session's edits; stored once it was measured.

    texts is a file or texts; None: the session's own (`session.texts`), else what was measured before, else text that
    the model writes itself. LarqlError for texts that are too short.
    """
    vindex = session.need()
    vindex.require("inference", "the second moments of a layer")
    texts = session.texts if texts is None else texts
    name = f"{FOLDER}/{which}.L{layer}.bin"
    key = (name, str(vindex.path))
    wanted = None if texts is None else origin_of(texts)
    found: SecondMoment | None = session.kept.get(key)
    if found is not None and wanted in (None, found.origin):
        return found
    found = _stored(vindex, name)
    if found is None or wanted not in (None, found.origin):
        text = background_text(session, texts)
        with session.engine().under(None) as engine:
            found = measured(engine, text.rows, layer, which, text.origin, session.progress)
        found = _publish(vindex, name, found, text)
    session.kept[key] = found
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

    from larql_duck.editing.keys import layer_input

    width = engine.hidden if which == "ffn_in" else engine.n_features[layer]
    total, sums = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
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
                sums += x.sum(0)
                n += len(x)
                if progress is not None:
                    progress(f"second moment of layer {layer}", n, sum(map(len, rows)))
    return SecondMoment((total / max(n, 1)).numpy(), (sums / max(n, 1)).numpy(), n, origin)


# -- files ----------------------------------------------------------------------------------------------------


def _stored(vindex: Vindex, name: str) -> SecondMoment | None:
    """What the vindex holds; None where there is nothing that can be used, so that it is measured again."""
    section = vindex.manifest.section.get(FOLDER, {}).get(name)
    if not section or not (vindex.path / name).is_file():
        return None
    width = int(section["width"])
    data = (vindex.path / name).read_bytes()
    if len(data) != 8 * (width + 1) * width:
        return None
    rows = np.frombuffer(data, "<f8").reshape(width + 1, width)
    if not np.isfinite(rows).all():
        return None
    return SecondMoment(rows[:-1].copy(), rows[-1].copy(), int(section["positions"]), section["origin"])


def _publish(vindex: Vindex, name: str, found: SecondMoment, text: Text) -> SecondMoment:
    """`found` after it was stored, its text too, with a notice where that is not possible."""
    files, entries = text_file(text)
    # The matrix row by row, then the mean.
    files[name] = np.vstack([found.matrix, found.mean]).astype("<f8").tobytes()
    width, origin = len(found.matrix), found.origin
    entries[name] = {"width": width, "dtype": "f64", "positions": found.n, "origin": origin}
    why = publish(vindex, files, entries)
    if why is None:
        return found
    return replace(found, notice=f"second moments are kept for this session only: {vindex.path}: {why}")
