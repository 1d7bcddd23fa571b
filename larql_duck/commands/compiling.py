"""COMPILE: edits written out as a vindex, a Hugging Face directory or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from larql_duck.commands.opening import connect
from larql_duck.commands.rows import BIG, FLOAT, INT, TEXT, result_of
from larql_duck.compilation.conflicts import Conflict, resolve
from larql_duck.compilation.model import GGUF_FILE, compile_model
from larql_duck.compilation.slot_replacement import place
from larql_duck.compilation.staging import check_free
from larql_duck.compilation.vindex import compile_vindex
from larql_duck.editing.background_corpus import background_of
from larql_duck.editing.shipped import ask_shipped, told
from larql_duck.errors import LarqlError
from larql_duck.files import real_place
from larql_duck.lowering.types import Request
from larql_duck.lql import statements as st
from larql_duck.patches.operations import Operation
from larql_duck.patches.overlay import Overlay
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.workspace import Workspace

COLUMNS = {
    "kind": TEXT, "name": TEXT, "layer": INT, "feature": INT, "bytes": BIG, "detail": TEXT, "p_before": FLOAT, "p_after": FLOAT,
}  # fmt: skip
"""What COMPILE says: kind is output, file, slot, conflict, moved, cost or fact; a fact has its probability in the session
and in what was written."""

# What to do about a fact that what was written lost.
_AGAIN = "INSERT it again at another layer"
ReportRow = tuple[Any, ...]
"""The first values of a row; those that are left out are NULL."""


def compile(session: Session, request: Request) -> Result:
    """COMPILE CURRENT | "dir" INTO VINDEX | MODEL "out"."""
    s: st.Compile = request.statement
    with nullcontext(session) if s.source is None else connect(s.source) as origin:
        origin.workspace.vindex.fetch_all()
        if s.target == "vindex":
            # The patches of another directory's session are none.
            return _into_vindex(session, origin, s)
        return _into_model(session, origin, s)


def _into_model(session: Session, origin: Session, s: st.Compile) -> Result:
    workspace, out = origin.workspace, real_place(s.into)
    vindex, overlay = workspace.vindex, workspace.overlay
    rows: list[ReportRow] = []
    notices: list[str] = []
    if s.slots:
        check_free(out, vindex.path)
        text = background_of(workspace).text()
        placed = place(vindex, overlay, text.rows)
        overlay = placed.overlay
        rows = [
            ("moved", f"L{layer} F{feature}", layer, slot, None, f"took the place of F{slot}")
            for (layer, feature), slot in placed.moved.items()
        ]
        rows.append(("cost", "perplexity", None, None, None, f"{placed.before:.6g} -> {placed.after:.6g}"))
        notices.append(
            f"{len(placed.moved)} least used features were overwritten: perplexity {placed.before:.4g} before, "
            f"{placed.after:.4g} after, on {placed.positions} tokens ({text.origin})"
        )
    format_ = s.format or "safetensors"
    made = compile_model(vindex, overlay, out, format=format_, gguf_type=s.gguf_type)
    title = f"{made.format}, {made.features} features a layer"
    weights = made.path / GGUF_FILE if format_ == "gguf" and made.path.is_dir() else made.path
    next_step = _AGAIN
    if made.format.startswith("Q"):
        next_step = "write a wider number type, such as F16"
    elif s.slots:
        next_step = "compile without INTO SLOTS"
    facts, said = _asked_again(workspace, workspace.overlay, weights, made.format, next_step)
    return _result(
        made.path, title, made.files, [*_slots(overlay), *rows, *facts], [*notices, *made.notices, *said]
    )


def _into_vindex(session: Session, origin: Session, s: st.Compile) -> Result:
    patches, rule = origin.patches.applied, s.conflict or "last_wins"
    lists, names = [p.operations for p in patches], [p.title for p in patches]
    chosen, conflicts = resolve(lists, names, origin.workspace.vindex.n_features, rule)
    changed = any(len(after) != len(before) for after, before in zip(chosen, lists, strict=True))
    with _under(origin, chosen if changed else None) as source:
        overlay = source.patches.overlay
        made = compile_vindex(source.workspace, overlay, real_place(s.into))
    rows = [*_slots(overlay), *(_conflict_row(c, names, rule) for c in conflicts)]
    title = f"vindex, {made.appended} slots appended, {made.changed} changed, {made.knn} database facts"
    facts: list[ReportRow] = []
    said: list[str] = []
    if origin.workspace.vindex.has_weights:
        facts, said = _asked_again(origin.workspace, overlay, made.path, origin.workspace.vindex.dtype)
    return _result(made.path, title, made.files, [*rows, *facts], said)


def _asked_again(
    workspace: Workspace,
    overlay: Overlay,
    written: Path,
    title: str,
    next_step: str = _AGAIN,
) -> tuple[list[ReportRow], list[str]]:
    """A row for each edited fact, asked in what was written, and what is to be said of them."""
    try:
        found = ask_shipped(workspace, overlay, written)
    except LarqlError as error:
        return [], [f"{written} is written, but its edited facts could not be asked: {error}"]
    rows: list[ReportRow] = [
        ("fact", f.name, f.fact.layer, f.fact.feature, None, f.outcome, f.p_before, f.p_after) for f in found
    ]
    return rows, told(found, title, next_step)


@contextmanager
def _under(session: Session, lists: Sequence[Sequence[Operation]] | None) -> Iterator[Session]:
    """A session on the same vindex whose patches hold these operations instead; None: the session itself."""
    if lists is None:
        yield session
        return
    with connect(session.workspace.vindex.path) as other:
        other.patches.append([op for operations in lists for op in operations] + list(session.patches.live))
        yield other
        other.patches.rollback()


def _conflict_row(c: Conflict, names: Sequence[str], rule: str) -> ReportRow:
    writers = ", ".join(names[n] for n in c.patches)
    return ("conflict", c.what, c.layer, c.feature, None, f"{writers}: {names[c.winner]} holds ({rule})")


def _slots(overlay: Overlay) -> list[ReportRow]:
    rows = []
    for layer, feature in overlay.slots():
        row = overlay.rows[layer][feature]
        what = "appended" if feature >= overlay.n_base[layer] else "deleted" if row.deleted else "changed"
        fact = "" if row.entity is None else f": {row.entity} {row.relation or ''}".rstrip()
        rows.append(("slot", f"L{layer} F{feature}", layer, feature, None, what + fact))
    return rows


def _result(
    path: Path, title: str, files: dict[str, int], rows: Sequence[ReportRow], notices: Sequence[str]
) -> Result:
    output: ReportRow = ("output", str(path), None, None, sum(files.values()), title)
    written: list[ReportRow] = [("file", name, None, None, size, None) for name, size in files.items()]
    whole = [(*row, *[None] * (len(COLUMNS) - len(row))) for row in (output, *written, *rows)]
    return result_of(COLUMNS, whole, notices)
