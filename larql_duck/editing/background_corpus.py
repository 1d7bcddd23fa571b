"""Ordinary text: what edits are kept apart from. A user's texts, or text that the model writes itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from larql_duck.errors import LarqlError, VindexError

if TYPE_CHECKING:
    import torch

    from larql_duck.inference.engine import Engine
    from larql_duck.session.session import Session
    from larql_duck.vindex.store import Vindex

Texts = str | Path | Sequence[str]

FOLDER = "second_moments"
FILE = f"{FOLDER}/text.bin"
"""Its token ids, i32, each row of them ended by -1."""
# Tokens, as a multiple of the hidden size; the seed of the text that the model writes.
POSITIONS, SEED = 20, 0


@dataclass(frozen=True)
class Text:
    """rows of token ids from `origin`."""

    rows: list[list[int]]
    origin: str


@dataclass(frozen=True)
class Inputs:
    """x f32 [n, hidden]: what the FFN of a layer reads at the n positions of `rows`, one row after the other."""

    x: torch.Tensor
    rows: list[list[int]]

    def up_to(self, i: int, n: int) -> list[int]:
        """The last n token ids up to position i, of its row."""
        for row in self.rows:
            if i < len(row):
                return row[max(0, i + 1 - n) : i + 1]
            i -= len(row)
        raise IndexError(i)


def background_text(session: Session, texts: Texts | None = None) -> Text:
    """At least POSITIONS x hidden tokens: of `texts` (a file or texts), else of `session.texts`, else what the vindex
    holds, else what the model writes by seeded sampling, without the session's edits. LarqlError for texts that are too short.
    """
    vindex, engine = session.need(), session.engine()
    need = POSITIONS * engine.hidden
    texts = session.texts if texts is None else texts
    if texts is not None:
        return Text(_given(engine, texts, need), origin_of(texts))
    key = ("text", str(vindex.path))
    if key not in session.kept:
        found = _stored(vindex, need, engine.vocab)
        if found is None:
            found = _written(session, need)
            publish(vindex, *text_file(found))
        session.kept[key] = found
    kept: Text = session.kept[key]
    return kept


def background_inputs(session: Session, layer: int) -> Inputs:
    """What the layer's FFN reads in that text, without the session's edits; the last layer that was asked for is kept."""
    key = ("inputs", str(session.need().path))
    kept: tuple[int, Texts | None, Inputs] | None = session.kept.get(key)
    if kept is None or kept[:2] != (layer, session.texts):
        from larql_duck.editing.keys import every_input

        rows = sorted(background_text(session).rows, key=len)
        with session.engine().under(None) as engine:
            x = every_input(engine, rows, layer)
        kept = session.kept[key] = (layer, session.texts, Inputs(x, rows))
    return kept[2]


def is_file(text: str | Path) -> bool:
    """Whether a text is the name of a file; it may be longer than a file's name can be."""
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def origin_of(texts: Texts) -> str:
    """How the origin of texts is named; LarqlError for a file that is not there."""
    if isinstance(texts, str | Path) and is_file(texts):
        return f"file {Path(texts).name}"
    joined = (
        texts if isinstance(texts, str) else "\n".join(map(str, texts)) if not isinstance(texts, Path) else ""
    )
    if not joined:
        raise LarqlError(f"{texts}: no such file; give a text file, or leave it out")
    return f"texts {hashlib.sha256(joined.encode()).hexdigest()[:12]}"


def text_file(text: Text) -> tuple[dict[str, bytes], dict[str, Any]]:
    """FILE with its content, and what the index says of it."""
    ids = np.array([i for row in text.rows for i in (*row, -1)], "<i4")
    return {FILE: ids.tobytes()}, {FILE: {"rows": len(text.rows), "dtype": "i32", "origin": text.origin}}


def publish(vindex: Vindex, files: dict[str, bytes], entries: dict[str, Any]) -> str | None:
    """None after the files and their entries became part of the vindex; where it cannot be written: why."""
    from larql_duck.vindex.manifest import load_manifest
    from larql_duck.vindex.publish import commit_tables

    if not vindex.has_tables:
        return "written by LARQL"
    try:
        commit_tables(vindex.path, {}, lambda section: section.setdefault(FOLDER, {}).update(entries), files)
        vindex.manifest = load_manifest(vindex.path)
    except (VindexError, OSError) as error:
        return str(error).removeprefix(f"{vindex.path}: ").split(";")[0]
    return None


def _stored(vindex: Vindex, need: int, vocab: int) -> Text | None:
    from larql_duck.inference.sampling import LENGTH

    section = vindex.manifest.section.get(FOLDER, {}).get(FILE)
    if not section or not (vindex.path / FILE).is_file():
        return None
    data = (vindex.path / FILE).read_bytes()
    ids = np.frombuffer(data[: len(data) // 4 * 4], "<i4")
    ends = np.flatnonzero(ids == -1)
    rows = [part[part >= 0].tolist() for part in np.split(ids, ends)]
    rows = [row for row in rows if row]
    fits = len(ids) - len(ends) >= need and ids.min(initial=-1) >= -1 and ids.max(initial=-1) < vocab
    fits = fits and max(map(len, rows)) <= LENGTH
    return Text(rows, str(section.get("origin"))) if fits else None


def _written(session: Session, need: int) -> Text:
    from larql_duck.inference.sampling import written_ids

    def progress(done: int, total: int) -> None:
        if session.progress is not None:
            session.progress("text for second moments", done, total)

    with session.engine().under(None) as engine:
        rows = written_ids(engine, need, seed=SEED, progress=progress)
    return Text(rows, f"written by the model, seed {SEED}")


def _given(engine: Engine, texts: Texts, need: int) -> list[list[int]]:
    from larql_duck.inference.sampling import LENGTH

    name = "the texts"
    if isinstance(texts, str | Path) and is_file(texts):
        name = str(texts)
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
            f"{name}: {have} tokens, and second moments need at least {need}; "
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
