"""DIFF: what tells two vindexes apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from larql_duck.commands.opening import opened
from larql_duck.commands.over_texts import diff_over_texts
from larql_duck.diffing.compare import Difference, compare
from larql_duck.diffing.markdown import markdown_report
from larql_duck.diffing.sides import DiffSide, current_side, directory_side
from larql_duck.diffing.to_patch import as_patch
from larql_duck.files import begins, write_whole
from larql_duck.lowering.types import Request, fail
from larql_duck.lql import statements as st
from larql_duck.patches.patch_file import PatchFile
from larql_duck.patches.vlp import write_patch
from larql_duck.result import Result
from larql_duck.session import Session

# Rows shown without a LIMIT.
_ROWS = 20


def diff(session: Session, request: Request) -> Result:
    """DIFF a b: facts and slots that differ; INTO PATCH and INTO REPORT write them. With TEXTS see `diff_over_texts`."""
    s: st.Diff = request.statement
    if s.texts is not None:
        return diff_over_texts(session, s)
    a, b = _side(session, s.left), _side(session, s.right)
    for side in (a, b):
        if s.layer is not None and not 0 <= s.layer < side.vindex.n_layers:
            raise fail(
                s,
                f"layer {s.layer} is out of range: {side.name} has layers 0-{side.vindex.n_layers - 1}",
                "layer",
            )
    difference = compare(a, b, layer=s.layer, relation=s.relation, entity=s.entity)
    facts, slots = difference.count("fact"), difference.count("slot")
    notices = [
        f"facts: {difference.kept} kept, {_counts(facts, ('changed', 'lost', 'new'))}",
        f"slots: {_counts(slots, ('changed', 'added', 'removed'))}",
        *difference.notices,
    ]
    if s.into_patch is not None:
        notices.append(_into_patch(a, b, difference, s, Path(s.into_patch).expanduser()))
    if s.into_report is not None:
        text = markdown_report(a.name, b.name, difference)
        write_whole(s.into_report, text, replaces=begins(b"# differences"))
        notices.append(f"wrote {s.into_report}")
    rows = difference.rows
    limit = _ROWS if s.limit is None else s.limit
    if rows.num_rows > limit:
        notices.append(f"{rows.num_rows - limit} more rows: LIMIT {rows.num_rows} shows all")
    return Result(rows.slice(0, limit), notices=notices)


def _side(session: Session, path: str | None) -> DiffSide:
    return current_side(session.workspace) if path is None else directory_side(path, opened)


def _into_patch(a: DiffSide, b: DiffSide, difference: Difference, s: st.Diff, path: Path) -> str:
    """What was written, as a notice."""
    whole = s.layer is None and s.relation is None and s.entity is None
    operations = as_patch(a, b, difference, whole=whole)
    if not operations:
        return f"nothing differs, so {path} was not written"
    patch = PatchFile(tuple(operations), path.stem, path, description=f"Diff: {a.name} vs {b.name}")
    write_patch(path, patch, a.vindex)
    return f"wrote {path}: {len(operations)} operations that turn {a.name} into {b.name}"


def _counts(counts: dict[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{counts.get(name, 0)} {name}" for name in names)
