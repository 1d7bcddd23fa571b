"""Patches: BEGIN, SAVE, ROLLBACK, APPLY, REMOVE; and MERGE."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.catalog import VIEWS, arrow_schema
from larql_duck.commands.opening import opened
from larql_duck.commands.rows import BIG, FACTS, FLOAT, INT, TEXT, appended
from larql_duck.editing.merge import merge as merge_vindex
from larql_duck.editing.resolve import resolve
from larql_duck.lowering.types import Request, fail
from larql_duck.patches.operations import FactEdits, UpdateOp
from larql_duck.patches.patch_file import PatchFile
from larql_duck.patches.vlp import excerpt, read_facts
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.vindex.store import Vindex, base_checksum

_MERGED = {
    "kind": TEXT, "entity": TEXT, "relation": TEXT, "layer": INT, "feature": BIG, "target": TEXT, "source": TEXT,
    "target_confidence": FLOAT, "source_confidence": FLOAT, "conflict": pa.bool_(), "action": TEXT,
}  # fmt: skip
# Updates without vectors that a statement names one by one.
_NAMED = 5


def begin(session: Session, request: Request) -> Result:
    """BEGIN PATCH "f": edits from now on, and those not saved yet, are for this file."""
    edits = session.patches
    edits.begin(request.statement.path)
    n = len(edits.live)
    notices = [f"{n} edits made before belong to it"] if n else []
    if edits.recording is not None and (found := edits.unseen(edits.recording)):
        notices.append(
            f"{edits.recording} {found}: SAVE PATCH will not replace it; "
            'write SAVE PATCH "another file", or SAVE PATCH OVERWRITE'
        )
    return _result(edits.patch_rows()[-1:], notices)


def save(session: Session, request: Request) -> Result:
    """SAVE PATCH ["f"] [OVERWRITE]: the edits that are not saved yet become a file and an applied patch."""
    patch = session.patches.save(request.statement.path, request.statement.overwrite)
    return _result(session.patches.patch_rows()[-1:], [f"wrote {patch.path}"])


def rollback(session: Session, request: Request) -> Result:
    """ROLLBACK PATCH: the edits that are not saved yet are taken back."""
    edits = session.patches
    rows = edits.patch_rows()[len(edits.applied) :]
    n = edits.rollback()
    return _result(
        rows,
        [f"{n} edit{'s were' if n > 1 else ' was'} taken back" if n else "there were no edits to take back"],
    )


def apply(session: Session, request: Request) -> Result:
    """APPLY PATCH "f" [FORCE | RESOLVE]: a file's edits hold from now on; with RESOLVE its facts, solved again here."""
    edits = session.patches
    if request.statement.resolve:
        return _resolved(session, Path(request.statement.path).expanduser())
    patch = edits.apply(request.statement.path, request.statement.force)
    at = next(i for i, p in enumerate(edits.applied) if p is patch)
    return _result(edits.patch_rows()[at : at + 1], remarks(patch, session.workspace.vindex))


def _resolved(session: Session, path: Path) -> Result:
    """The patch's facts as edits of this session, a row each with what was measured; none of them after an error."""
    log, patch = session.patches, read_facts(path)
    solved = FactEdits()
    with log.transaction():
        for part in resolve(session.workspace, patch):
            if part.operations:
                log.append(part.operations)
            solved = solved.and_also(part)
    n = len(patch.facts)
    said = (
        f"{n} fact{'s' * (n != 1)} of {path} (made for {patch.base_model or 'an unnamed model'}) solved again here; they are "
        'edits that are not saved yet: SAVE PATCH "another file" keeps them for this model'
    )
    return Result(
        pa.Table.from_pylist(list(solved.rows), schema=pa.schema(FACTS)), notices=[said, *solved.notices]
    )


def remarks(patch: PatchFile, vindex: Vindex) -> list[str]:
    """What the user should know about a patch that was just applied to this vindex."""
    notices = []
    model = excerpt(patch.base_model) or "an unnamed model"
    if patch.base_checksum is None and patch.base_model != vindex.manifest.model:
        notices.append(f"{patch.title} was made for {model} and carries no checksum; its shapes fit")
    elif patch.base_checksum is not None and patch.base_checksum != base_checksum(vindex):
        notices.append(f"{patch.title} was made for another base ({model}) and was applied by FORCE")
    bare = [
        op
        for op in patch.operations
        if isinstance(op, UpdateOp) and op.meta is not None and op.gate is op.up is op.down is None
    ]
    for op in bare[:_NAMED]:
        assert op.meta is not None
        notices.append(
            f"layer {op.layer}, feature {op.feature}: the update to {excerpt(op.meta.token)} carries no vectors; "
            "it changes the token that is shown, nothing that the model computes"
        )
    if len(bare) > _NAMED:
        notices.append(f"{len(bare) - _NAMED} more updates carry no vectors")
    return notices


def remove(session: Session, request: Request) -> Result:
    """REMOVE PATCH "f": a patch holds no more, everything else is as if it had never been applied."""
    edits = session.patches
    rows, before = edits.patch_rows(), list(edits.applied)
    patch = edits.remove(request.statement.name)
    at = next(i for i, p in enumerate(before) if p is patch)
    return _result([rows[at]], [f"{patch.title} holds no more"])


def merge(session: Session, request: Request) -> Result:
    """MERGE "source" [INTO "target"]: what another vindex knows becomes edits of the one in use."""
    s = request.statement
    here = session.workspace.vindex.path
    if s.into is not None and os.path.realpath(here) != os.path.realpath(Path(s.into).expanduser()):
        raise fail(
            s,
            f'INTO "{s.into}": MERGE works on the vindex in use, which is {here}; USE that one first',
            "into",
        )
    session.workspace.vindex.fetch_all()
    rule = s.conflict or "keep_source"
    edits = merge_vindex(session.workspace, s.source, opened, rule=rule, dry_run=s.dry_run)
    return appended(session.patches, edits, _MERGED)


def _result(rows: Sequence[dict[str, Any]], notices: Sequence[str]) -> Result:
    return Result(
        pa.Table.from_pylist(list(rows), schema=arrow_schema(VIEWS["patches"].columns)), notices=notices
    )
