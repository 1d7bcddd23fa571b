"""COMPILE and DIFF: edits written out, and what tells two vindexes apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larql_duck.files import write_whole
from larql_duck.lowering.checks import check_count, check_layer, fail
from larql_duck.lowering.types import Operation

if TYPE_CHECKING:
    from larql_duck.compilation.conflicts import Conflict
    from larql_duck.diffing import Difference, DiffSide
    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.patches.operations import Operation as Edit
    from larql_duck.patches.overlay import Overlay
    from larql_duck.result import Result
    from larql_duck.session import Session

COLUMNS = ("kind", "name", "layer", "feature", "bytes", "detail")
"""What COMPILE says: kind is output, file, slot, conflict, moved or cost."""

_SHOWN = 20


# -- COMPILE --------------------------------------------------------------------------------------------------


def compile(s: st.Compile, facts: Facts) -> Operation:
    """COMPILE CURRENT | "dir" INTO VINDEX | MODEL "out": a vindex, a Hugging Face directory or a GGUF file."""
    if not s.into.strip():
        raise fail(s, "the place to write to has no name", "into")
    if s.source is None and s.target == "model":
        facts.require("inference", "COMPILE INTO MODEL")
    return Operation(lambda session: _compile(session, s), s)


def _compile(session: Session, s: st.Compile) -> Result:
    with _source(session, s.source) as (origin, lists, names):
        vindex, out = origin.need(), Path(s.into).expanduser()
        if s.target == "vindex":
            return _into_vindex(session, origin, s, lists, names)
        from larql_duck.compilation import compile_model
        from larql_duck.compilation.slot_replacement import place

        overlay = origin.overlay
        rows: list[tuple[Any, ...]] = []
        notices: list[str] = []
        if s.slots:
            from larql_duck.compilation.staging import check_output
            from larql_duck.editing.background_corpus import background_text

            check_output(out, vindex.path)
            text = background_text(origin)
            placed = place(vindex, overlay, text.rows)
            overlay = placed.overlay
            rows = [
                ("moved", f"L{layer} F{feature}", layer, slot, None, f"took the place of F{slot}")
                for (layer, feature), slot in placed.moved.items()
            ]
            rows.append(
                ("cost", "perplexity", None, None, None, f"{placed.before:.6g} -> {placed.after:.6g}")
            )
            notices.append(
                f"{len(placed.moved)} least used features were overwritten: perplexity {placed.before:.4g} before, "
                f"{placed.after:.4g} after, on {placed.positions} tokens ({text.origin})"
            )
        made = compile_model(
            vindex,
            overlay,
            out,
            format=s.format or "safetensors",
            gguf_type=s.gguf_type,
            progress=session.progress,
        )
        title = f"{made.format}, {made.features} features a layer"
        return _result(made.path, title, made.files, _slots(overlay), rows, [*notices, *made.notices])


def _into_vindex(
    session: Session, origin: Session, s: st.Compile, lists: list[Sequence[Edit]], names: list[str]
) -> Result:
    from larql_duck.compilation import compile_vindex, resolve

    vindex, rule = origin.need(), s.conflict or "last_wins"
    kept, conflicts = resolve(lists, names, vindex.n_features, rule)
    changed = any(len(own) != len(before) for own, before in zip(kept, lists, strict=True))
    with _under(origin, kept if changed else None) as shown:
        made = compile_vindex(shown, shown.overlay, Path(s.into).expanduser(), session.progress)
        rows = [_conflict_row(c, names, rule) for c in conflicts]
        title = f"vindex, {made.appended} slots appended, {made.changed} changed, {made.knn} database facts"
        return _result(made.path, title, made.files, _slots(shown.overlay), rows, made.notices)


@contextmanager
def _source(session: Session, path: str | None) -> Iterator[tuple[Session, list[Sequence[Edit]], list[str]]]:
    """The session that shows what is compiled, its applied patches' operations, and their names."""
    if path is not None:
        from larql_duck.session import connect

        with connect(path) as other:
            yield other, [], []
        return
    applied = session.edits.applied
    names = [p.title for p in applied]
    yield session, [p.operations for p in applied], names


@contextmanager
def _under(session: Session, lists: list[list[Edit]] | None) -> Iterator[Session]:
    """A session on the same vindex whose patches hold these operations instead; None: the session itself."""
    if lists is None:
        yield session
        return
    from larql_duck.session import connect

    with connect(session.need().path) as other:
        other.edits.add([op for own in lists for op in own] + list(session.edits.live))
        yield other
        other.edits.rollback()


def _conflict_row(c: Conflict, names: list[str], rule: str) -> tuple[Any, ...]:
    writers = ", ".join(names[n] for n in c.patches)
    return ("conflict", c.what, c.layer, c.feature, None, f"{writers}: {names[c.kept]} holds ({rule})")


def _slots(overlay: Overlay) -> list[tuple[Any, ...]]:
    rows = []
    for layer, feature in overlay.slots():
        row = overlay.rows[layer][feature]
        what = "appended" if feature >= overlay.n_base[layer] else "deleted" if row.deleted else "changed"
        fact = "" if row.entity is None else f": {row.entity} {row.relation or ''}".rstrip()
        rows.append(("slot", f"L{layer} F{feature}", layer, feature, None, what + fact))
    return rows


def _result(
    path: Path,
    title: str,
    files: dict[str, int],
    slots: list[tuple[Any, ...]],
    rows: list[tuple[Any, ...]],
    notices: Sequence[str],
) -> Result:
    import pyarrow as pa

    from larql_duck.result import Result

    whole: list[tuple[Any, ...]] = [("output", str(path), None, None, sum(files.values()), title)]
    whole += [("file", name, None, None, size, None) for name, size in files.items()]
    whole += [*slots, *rows]
    types = (pa.string(), pa.string(), pa.int32(), pa.int32(), pa.int64(), pa.string())
    arrays = [pa.array([row[i] for row in whole], kind) for i, kind in enumerate(types)]
    return Result(pa.table(dict(zip(COLUMNS, arrays, strict=True))), notices=tuple(notices))


# -- DIFF -----------------------------------------------------------------------------------------------------


def diff(s: st.Diff, facts: Facts) -> Operation:
    """DIFF a b: facts and slots that differ; INTO PATCH and INTO REPORT write them."""
    check_count(s, s.limit, "LIMIT", "limit")
    if s.layer is not None and None in (s.left, s.right):
        check_layer(s, facts, s.layer)
    return Operation(lambda session: _diff(session, s), s)


def _diff(session: Session, s: st.Diff) -> Result:
    from larql_duck.diffing import compare
    from larql_duck.diffing.markdown import markdown_report
    from larql_duck.result import Result

    a, b = _side(session, s.left), _side(session, s.right)
    for side in (a, b):
        if s.layer is not None and not 0 <= s.layer < side.vindex.n_layers:
            raise fail(
                s,
                f"layer {s.layer} is out of range: {side.name} has layers 0-{side.vindex.n_layers - 1}",
                "layer",
            )
    found = compare(a, b, layer=s.layer, relation=s.relation, entity=s.entity)
    facts, slots = found.count("fact"), found.count("slot")
    notices = [
        f"facts: {found.kept} kept, {_counts(facts, ('changed', 'lost', 'new'))}",
        f"slots: {_counts(slots, ('changed', 'added', 'removed'))}",
        *found.notices,
    ]
    if s.into_patch is not None:
        notices.append(_into_patch(a, b, found, s))
    if s.into_report is not None:
        write_whole(s.into_report, markdown_report(a.name, b.name, found))
        notices.append(f"wrote {s.into_report}")
    limit = _SHOWN if s.limit is None else s.limit
    if found.rows.num_rows > limit:
        notices.append(f"{found.rows.num_rows - limit} more rows: LIMIT {found.rows.num_rows} shows all")
    return Result(found.rows.slice(0, limit), notices=tuple(notices))


def _side(session: Session, path: str | None) -> DiffSide:
    from larql_duck.diffing import current_side, directory_side

    if path is not None:
        return directory_side(path)
    session.need()
    edits = session.edits
    return current_side(session, session.overlay, [*(p.operations for p in edits.applied), edits.live])


def _into_patch(a: DiffSide, b: DiffSide, found: Difference, s: st.Diff) -> str:
    """What was written, as a notice."""
    from larql_duck.diffing import as_patch
    from larql_duck.patches.edit_log import PatchFile

    path = Path(str(s.into_patch)).expanduser()
    whole = s.layer is None and s.relation is None and s.entity is None
    operations = as_patch(a, b, found, whole=whole)
    if not operations:
        return f"nothing differs, so {path} was not written"
    from larql_duck.patches.vlp import write_patch

    patch = PatchFile(tuple(operations), path.stem, path, description=f"Diff: {a.name} vs {b.name}")
    write_patch(path, patch, a.vindex)
    return f"wrote {path}: {len(operations)} operations that turn {a.name} into {b.name}"


def _counts(found: dict[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{found.get(name, 0)} {name}" for name in names)
