"""The edit log: patches that are applied, what was edited since, and the overlay that all of them make."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larql_duck.errors import PatchError
from larql_duck.files import alone_in, check_output, read_regular
from larql_duck.patches.knn_store import stored_facts
from larql_duck.patches.operations import (
    DeleteKnnOp,
    DeleteOp,
    InsertKnnOp,
    InsertOp,
    Operation,
    UpdateOp,
    check_operations,
    fact_key,
)
from larql_duck.patches.overlay import Overlay
from larql_duck.patches.patch_file import PatchFile, place
from larql_duck.patches.vlp import edits_in, read_patch, write_patch

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex


Savepoint = tuple[tuple[PatchFile, ...], tuple[Operation, ...], Path | None]


class EditLog:
    """The edits of one vindex: operations are appended, and make a new immutable overlay each time.

    applied are saved patches in order, live what was edited since; recording is the file that BEGIN PATCH named.
    stored are the database facts that the vindex holds itself. overlay is what all of them make of the vindex.
    Subscribers are told of every change; where one fails, nothing changes.
    """

    def __init__(self, vindex: Vindex) -> None:
        self._vindex = vindex
        self._subscribers: list[Callable[[EditLog], None]] = []
        self.applied: list[PatchFile] = []
        self.live: list[Operation] = []
        self.recording: Path | None = None
        # Place of a file -> sha256 of what it held when this log read or wrote it.
        self._seen: dict[str, str | None] = {}
        self.stored = stored_facts(vindex)
        self.overlay = self._fold([], [])

    def subscribe(self, subscriber: Callable[[EditLog], None]) -> None:
        """Call `subscriber` with this log after every change of its patches; its overlay may be the same as before."""
        self._subscribers.append(subscriber)

    def __repr__(self) -> str:
        names = ", ".join(patch.title for patch in self.applied) or "none"
        return f"<EditLog: patches applied: {names}; edits not saved: {len(self.live)}>"

    # -- operations ---------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether there are edits that no file holds."""
        return bool(self.live)

    def append(self, operations: Sequence[Operation]) -> None:
        """Append operations to the live patch. PatchError for ones that do not fit."""
        self.check(operations)
        self._become(self.applied, [*self.live, *operations], self.recording)

    def preview(self, operations: Sequence[Operation]) -> Overlay:
        """The overlay that adding these operations would give; nothing changes."""
        self.check(operations)
        return self._fold(self.applied, [*self.live, *operations])

    def next_feature(self, layer: int, behind: Sequence[Operation] = ()) -> int:
        """The number, local to the live patch, of the feature appended next in `layer` once `behind` is appended."""
        base = self._vindex.n_features[layer]
        used = [op.feature for op in (*self.live, *behind) if isinstance(op, InsertOp) and op.layer == layer]
        return max([base - 1, *used]) + 1

    def check(
        self, operations: Sequence[Operation], where: str = "", before: Sequence[Operation] | None = None
    ) -> None:
        """Raise PatchError for a layer, a feature or a vector that this vindex cannot have.

        before are the operations that stand before these in their patch; None: the live ones.
        """
        check_operations(self._vindex, operations, where, self.live if before is None else before)

    # -- taking back --------------------------------------------------------------------------------------

    def savepoint(self) -> Savepoint:
        """The state to which `rollback_to` returns."""
        return tuple(self.applied), tuple(self.live), self.recording

    def rollback_to(self, savepoint: Savepoint) -> None:
        """Make the patches those of `savepoint` again."""
        applied, live, recording = savepoint
        # By identity: operations hold arrays, which have no one answer to "are you equal".
        now = [*map(id, self.applied), None, *map(id, self.live), self.recording]
        if now != [*map(id, applied), None, *map(id, live), recording]:
            self._become(list(applied), list(live), recording)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A context that takes back what was added inside it when it ends with an error or Ctrl-C."""
        savepoint = self.savepoint()
        try:
            yield
        except BaseException:
            self.rollback_to(savepoint)
            raise

    def rollback(self) -> int:
        """How many operations of the live patch were taken back (ROLLBACK PATCH)."""
        n = len(self.live)
        if n or self.recording is not None:
            self._become(self.applied, [], None)
        return n

    # -- patches ------------------------------------------------------------------------------------------

    def begin(self, path: str | Path) -> None:
        """Note that edits, also those made already without a name, belong to the patch file `path` until it is saved."""
        if self.recording is not None:
            raise PatchError.at(self.recording, "a patch is open already; SAVE PATCH or ROLLBACK PATCH first")
        target = Path(path).expanduser()
        self._check_target(target)
        self.recording = target
        self._tell()

    def save(self, path: str | Path | None = None, overwrite: bool = False) -> PatchFile:
        """The live patch after it was written to `path` (None: the file that BEGIN PATCH named), now an applied one.

        PatchError where it cannot be written; a file that is no patch, or that holds edits which this log neither read
        nor wrote, is only replaced with `overwrite`.
        """
        target = self.recording if path is None else Path(path).expanduser()
        if not self.live:
            raise PatchError(
                "there is nothing to save: no edits were made since the last SAVE PATCH", path=target
            )
        if target is None:
            raise PatchError('these edits have no file yet; write SAVE PATCH "file.vlp"')
        self._check_target(target)
        made = PatchFile(tuple(self.live), target.stem, target)
        # Of two that save at a time, the second sees what the first wrote.
        with alone_in(target.parent):
            if not overwrite and (found := self.unseen(target)):
                raise PatchError.at(
                    target, f"{found}; save to another file, or write SAVE PATCH ... OVERWRITE"
                )
            patch = write_patch(target, made, self._vindex, overwrite=overwrite)
            self._seen[place(target)] = _content(target)
        # The same operations in the same order: the overlay is what it was.
        self.applied, self.live, self.recording = [*self.applied, patch], [], None
        self._tell()
        return patch

    def unseen(self, path: Path) -> str | None:
        """What the patch file at `path` holds that this log neither read nor wrote, as a message says it; None for nothing.

        What is no patch is none of its business.
        """
        now, before = _content(path), self._seen.get(place(path))
        if now is None or now == before or (n := edits_in(path)) == 0:
            return None
        held = "a patch that cannot be read" if n is None else f"{n} edit{'s' * (n > 1)}"
        if before is not None:
            return f"changed since this session read or wrote it, and holds {held}"
        return f"holds {held} that this session neither read nor wrote"

    def apply(self, path: str | Path, force: bool = False) -> PatchFile:
        """The patch of a file, which holds from now on, behind those applied before and before the live edits.

        PatchError for a damaged file, another base (unless force), or a patch that is applied already.
        """
        seen = _content(Path(path).expanduser())
        patch = read_patch(Path(path).expanduser(), self._vindex, force=force)
        if any(p.at(path) for p in self.applied):
            raise PatchError(f"{path}: is applied already; REMOVE PATCH first", path=patch.path)
        self.hold(patch)
        self._seen[place(path)] = seen
        return patch

    def hold(self, patch: PatchFile) -> None:
        """Let a patch hold from now on, as `apply` does, wherever it came from. PatchError for one that does not fit."""
        self.check(patch.operations, f"{patch.title}: ", ())
        self._become([*self.applied, patch], self.live, self.recording)

    def remove(self, name: str) -> PatchFile:
        """The patch of that path or name, which holds no more; everything else is as if it had never been applied.

        PatchError where none is called so, and where a later patch changes what this one made.
        """
        found = [i for i, p in enumerate(self.applied) if p.at(name)]
        found = found or [i for i, p in enumerate(self.applied) if p.called(name)]
        if not found:
            known = ", ".join(p.title for p in self.applied) or "none"
            raise PatchError(f"no patch {name!r} is applied; applied: {known}")
        if len(found) > 1:
            titles = ", ".join(self.applied[i].title for i in found)
            raise PatchError(f"{name!r} names several patches ({titles}); write the path of one")
        at = found[0]
        patch = self.applied[at]
        later = [(p.title, p.operations) for p in self.applied[at + 1 :]]
        later.append(("the edits that are not saved yet", tuple(self.live)))
        for title, operations in later:
            if shared := _shared(self._touched(patch.operations), self._touched(operations)):
                raise PatchError(
                    f"{patch.title}: {title} changes what it made ({_named(min(shared, key=str))}); "
                    "remove the later one first",
                    path=patch.path,
                )
        self._become([*self.applied[:at], *self.applied[at + 1 :]], self.live, self.recording)
        return patch

    def patch_rows(self) -> list[dict[str, Any]]:
        """One row a patch, as the table PATCHES has it; the live one last, recording true, where it has edits or a file."""
        rows = [
            {
                "name": p.name,
                "path": None if p.path is None else str(p.path),
                "description": p.description,
                "recording": False,
            }
            | _counts(p.operations)
            for p in self.applied
        ]
        if self.live or self.recording is not None:
            file, said = self.recording, "not saved yet"
            if file is not None:
                said = f"not saved yet; SAVE PATCH writes {file}"
            name = None if file is None else file.stem
            rows.append(
                {"name": name, "path": None, "description": said, "recording": True} | _counts(self.live)
            )
        return [{"position": i} | row for i, row in enumerate(rows, 1)]

    # -- inside -------------------------------------------------------------------------------------------

    def _fold(self, applied: Sequence[PatchFile], live: Sequence[Operation]) -> Overlay:
        lists = [*(p.operations for p in applied), live]
        return Overlay.of(self._vindex.n_features, self._vindex.hidden, lists, self.stored)

    def _become(
        self, applied: Sequence[PatchFile], live: Sequence[Operation], recording: Path | None
    ) -> None:
        """Hold these patches, or what was held before where a subscriber fails."""
        before = (self.applied, self.live, self.recording, self.overlay)
        overlay = self._fold(applied, live)
        self.applied, self.live, self.recording, self.overlay = list(applied), list(live), recording, overlay
        try:
            self._tell()
        except BaseException:
            self.applied, self.live, self.recording, self.overlay = before
            self._tell()
            raise

    def _tell(self) -> None:
        for subscriber in self._subscribers:
            subscriber(self)

    def _touched(self, operations: Sequence[Operation]) -> set[tuple[object, ...]]:
        """What operations change that others might too: slots of the base, and facts by name."""
        out: set[tuple[object, ...]] = set()
        for op in operations:
            if (
                isinstance(op, InsertOp | UpdateOp | DeleteOp)
                and op.feature < self._vindex.n_features[op.layer]
            ):
                out.add(("slot", op.layer, op.feature))
            if isinstance(op, InsertOp | InsertKnnOp):
                out.add(("fact", *fact_key(op.entity, op.relation)))
            if isinstance(op, DeleteKnnOp):
                every = op.relation is None
                out.add(("entity" if every else "fact", *fact_key(op.entity, op.relation)))
        return out

    def _check_target(self, target: Path) -> None:
        if any(p.at(target) for p in self.applied):
            raise PatchError.at(
                target, "this patch is applied, and a saved patch never changes; save to another file"
            )
        if not target.parent.is_dir():
            raise PatchError.at(target, f"there is no folder {target.parent}; make it first")
        check_output(target, error=PatchError)


def _content(path: Path) -> str | None:
    """The sha256 of a file's bytes; None where there is no file to read."""
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except OSError:
        return None


def _shared(one: set[tuple[object, ...]], other: set[tuple[object, ...]]) -> set[tuple[object, ...]]:
    """What both change; the deletion of all facts of an entity meets each of them."""
    found = one & other
    for left, right in ((one, other), (other, one)):
        entities = {entry[1] for entry in left if entry[0] == "entity"}
        found |= {entry for entry in right if entry[0] == "fact" and entry[1] in entities}
    return found


def _counts(operations: Sequence[Operation]) -> dict[str, int]:
    kinds = {"inserts": InsertOp | InsertKnnOp, "updates": UpdateOp, "deletes": DeleteOp | DeleteKnnOp}
    return {name: sum(isinstance(op, kind) for op in operations) for name, kind in kinds.items()}


def _named(what: tuple[object, ...]) -> str:
    if what[0] == "slot":
        return f"layer {what[1]}, feature {what[2]}"
    return f"{what[1]} {what[2]}".rstrip()
