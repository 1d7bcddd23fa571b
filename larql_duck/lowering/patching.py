"""Patches as statements: BEGIN, SAVE, ROLLBACK, APPLY, REMOVE, SHOW; and MERGE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from larql_duck.lowering.checks import fail
from larql_duck.lowering.types import Operation, Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.patches.edit_log import PatchFile
    from larql_duck.result import Result
    from larql_duck.session import Session


# Updates without vectors that a statement names one by one.
_NAMED = 5


def begin(s: st.BeginPatch, facts: Facts) -> Operation:
    """BEGIN PATCH "f": edits from now on, and those not saved yet, are for this file."""
    _named(s, s.path, "path")

    def run(session: Session) -> Result:
        edits = session.edits
        edits.begin(s.path)
        n = len(edits.live)
        notices = [f"{n} edits made before belong to it"] if n else []
        return _result(session, edits.shown()[-1:], notices)

    return Operation(run, s)


def save(s: st.SavePatch, facts: Facts) -> Operation:
    """SAVE PATCH ["f"]: the edits that are not saved yet become a file and an applied patch."""
    if s.path is not None:
        _named(s, s.path, "path")

    def run(session: Session) -> Result:
        patch = session.edits.save(s.path)
        return _result(session, session.edits.shown()[-1:], [f"wrote {patch.path}"])

    return Operation(run, s)


def rollback(s: st.RollbackPatch, facts: Facts) -> Operation:
    """ROLLBACK PATCH: the edits that are not saved yet are taken back."""

    def run(session: Session) -> Result:
        edits = session.edits
        rows = edits.shown()[len(edits.applied) :]
        n = edits.rollback()
        return _result(
            session, rows, [f"{n} edits were taken back" if n else "there were no edits to take back"]
        )

    return Operation(run, s)


def apply(s: st.ApplyPatch, facts: Facts) -> Operation:
    """APPLY PATCH "f" [FORCE]: a file's edits hold from now on."""
    _named(s, s.path, "path")

    def run(session: Session) -> Result:
        edits = session.edits
        patch = edits.apply(s.path, s.force)
        at = next(i for i, p in enumerate(edits.applied) if p is patch)
        return _result(
            session, edits.shown()[at : at + 1], [*remarks(session, patch), *session.edited.notices]
        )

    return Operation(run, s)


def remarks(session: Session, patch: PatchFile) -> list[str]:
    """What the user should know about a patch that was just applied."""
    from larql_duck.patches.checksum import base_checksum
    from larql_duck.patches.operations import UpdateOp
    from larql_duck.patches.vlp import excerpt

    said = []
    model = excerpt(patch.base_model) or "an unnamed model"
    vindex = session.need()
    if patch.base_checksum is None and patch.base_model != vindex.manifest.model:
        said.append(f"{patch.title} was made for {model} and carries no checksum; its shapes fit")
    elif patch.base_checksum is not None and patch.base_checksum != base_checksum(vindex):
        said.append(f"{patch.title} was made for another base ({model}) and was applied by FORCE")
    bare = [
        op
        for op in patch.operations
        if isinstance(op, UpdateOp) and op.meta is not None and op.gate is op.up is op.down is None
    ]
    for op in bare[:_NAMED]:
        assert op.meta is not None
        said.append(
            f"layer {op.layer}, feature {op.feature}: the update to {excerpt(op.meta.token)} carries no vectors; "
            "it changes the token that is shown, nothing that the model computes"
        )
    if len(bare) > _NAMED:
        said.append(f"{len(bare) - _NAMED} more updates carry no vectors")
    return said


def remove(s: st.RemovePatch, facts: Facts) -> Operation:
    """REMOVE PATCH "f": a patch holds no more, everything else is as if it had never been applied."""
    _named(s, s.name, "name")

    def run(session: Session) -> Result:
        edits = session.edits
        rows = {row["position"]: row for row in edits.shown()}
        before = list(edits.applied)
        patch = edits.remove(s.name)
        at = next(i for i, p in enumerate(before, 1) if p is patch)
        return _result(session, [rows[at]], [f"{patch.title} holds no more"])

    return Operation(run, s)


def show(s: st.ShowPatches, facts: Facts) -> Query:
    """SHOW PATCHES: the applied patches in order, then the edits that are not saved yet."""
    return Query(f"SELECT * FROM {facts.schema}.patches ORDER BY position")


def merge(s: st.Merge, facts: Facts) -> Operation:
    """MERGE "source" [INTO "target"]: what another vindex knows becomes edits of the one in use."""
    _named(s, s.source, "source")

    def run(session: Session) -> Result:
        from larql_duck.editing.merge import merge as carry_over

        if s.into is not None:
            here = session.need().path
            if not _same(here, s.into):
                raise fail(
                    s,
                    f'INTO "{s.into}": MERGE works on the vindex in use, which is {here}; USE that one first',
                    "into",
                )
        return carry_over(session, s.source, rule=s.conflict or "keep_source", dry_run=s.dry_run)

    return Operation(run, s)


def _same(one: Any, other: Any) -> bool:
    import os

    return os.path.realpath(one) == os.path.realpath(os.path.expanduser(other))


def _named(s: st.Statement, text: str, field: str) -> None:
    if not text.strip() or "\0" in text:
        raise fail(s, "the name of the file is empty or malformed", field)


def _result(session: Session, rows: Sequence[dict[str, Any]], notices: Sequence[str]) -> Result:
    import pyarrow as pa

    from larql_duck.catalog import VIEWS, arrow_schema
    from larql_duck.result import Result

    return Result(
        pa.Table.from_pylist(list(rows), schema=arrow_schema(VIEWS["patches"].columns)), notices=list(notices)
    )
