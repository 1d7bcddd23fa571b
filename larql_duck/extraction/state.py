"""Work in progress: the hidden sibling directory that an extraction fills, and what of it is finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from larql_duck.catalog import quoted
from larql_duck.databases import in_memory, not_nameable
from larql_duck.errors import VindexError, first_line
from larql_duck.files import (
    clear_own,
    open_replacing,
    own_folder,
    scratch_beside,
    unfinished_work,
    write_whole,
)
from larql_duck.vindex.layout import aside_of, staging_of
from larql_duck.vindex.publish import publish_directory

_STATE = "state.json"
_COMPLETE = "complete"


class Staging:
    """The folder in which `out` is being built. Steps that are recorded as done survive a crash.

    In it `directory` becomes the vindex, and `work` holds checkpoints.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.out = out
        self.folder = staging_of(out)
        self.directory = self.folder / "vindex"
        self.work = self.folder / "work"
        self.key = key
        self._done: dict[str, Any] = {}

    def begin(self, resume: bool) -> bool:
        """True when finished steps of an interrupted run were found and `resume` asks for them.

        Without `resume` the folder is emptied. A run with other options or another model is a VindexError.
        """
        state = self._read()
        if resume and state and self.directory.is_dir():
            if state.get("key") != self.key:
                raise VindexError.at(
                    self.out,
                    "the interrupted extraction was started with another model or other options; "
                    "repeat it with the same ones, or start afresh without --resume",
                )
            self._done = state["done"]
            self.work.mkdir(exist_ok=True)
            return True
        clear_own(self.folder)
        self.work.mkdir()
        self.directory.mkdir()
        self._done = {}
        return False

    def done(self, step: str) -> Any:
        """What was recorded for `step`, None while it is not finished."""
        return self._done.get(step)

    def record(self, step: str, value: Any = True) -> None:
        """Note on the disk that `step` is finished, with a JSON value to read back."""
        self._done[step] = value
        write_whole(self.folder / _STATE, json.dumps({"key": self.key, "done": self._done}), error=None)

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep named arrays as the checkpoint `name`, replacing an older one at once or not at all."""
        # Written piece by piece: a copy of the whole residual in memory would be the peak of the extraction.
        with open_replacing(self.work / f"{name}.npz", error=None, sync=False) as file:
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of checkpoint `name`, which was saved."""
        with np.load(self.work / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays.items())

    def has(self, name: str) -> bool:
        """Whether there is a checkpoint `name`."""
        return (self.work / f"{name}.npz").is_file()

    @contextmanager
    def opened(self, name: str) -> Iterator[Mapping[str, np.ndarray]]:
        """The checkpoint `name`, each array of which is read when it is asked for."""
        with np.load(self.work / f"{name}.npz", allow_pickle=False) as arrays:
            yield arrays

    def save_rows(self, name: str, rows: np.ndarray) -> None:
        """Keep one large array as `name`, replacing an older one at once or not at all."""
        with open_replacing(self.work / f"{name}.npy", error=None, sync=False) as file:
            np.save(file, rows, allow_pickle=False)

    def rows(self, name: str) -> np.ndarray:
        """The array `name` that was saved, mapped from its file."""
        rows: np.ndarray = np.load(self.work / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return rows

    def drop(self, pattern: str) -> None:
        """Forget the checkpoints whose file names match."""
        for path in self.work.glob(pattern):
            path.unlink()

    def scratch(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of zeros, f32, that lies in a file and not in memory; nothing of it is kept for later runs."""
        rows: np.ndarray = np.lib.format.open_memmap(
            self.work / f"{name}.scratch", mode="w+", dtype=np.float32, shape=shape
        )
        return rows

    @property
    def complete(self) -> bool:
        """Whether nothing but `publish` is left to do."""
        return bool(self.done(_COMPLETE))

    def publish(self, replace: bool) -> None:
        """Give `directory` the name `out`; with `replace` in the place of a vindex, which goes when the new one stands.

        VindexError where something stands there that is not to be replaced; then everything stays as it is.
        """
        self.record(_COMPLETE)
        if os.path.lexists(self.out) and not replace:
            what = "came there while the model was extracted, and is not replaced"
            step = "move it away and repeat the command with --resume, or with --resume --force"
            raise VindexError.at(self.out, f"{what}; {step}")
        publish_directory(self.directory, self.out, aside_of(self.out) if replace else None)

    @property
    def resumable(self) -> bool:
        """Whether steps are finished that a later run need not repeat."""
        return bool(self._done)

    def try_place(self) -> None:
        """Do once, small, what the last steps do: build a database here and rename its directory to beside `out`.

        VindexError where one of them fails: hours of work would be in a place from which they cannot be published.
        """
        if why := not_nameable(self.out):
            raise VindexError.at(self.out, f"{why}; choose another -o")
        here = self.work / "try"
        shutil.rmtree(here, ignore_errors=True)
        try:
            here.mkdir()
            with in_memory() as con:
                con.execute(f"ATTACH {quoted(str(here / 'model.duckdb'))} AS tried")
                con.execute("CREATE TABLE tried.t AS SELECT 1; DETACH tried")
            if not (here / "model.duckdb").is_file():
                raise duckdb.IOException("it names the file in another way")
            with scratch_beside(self.out) as beside:
                os.rename(here, beside / "try")
        except duckdb.Error as error:
            what = f"DuckDB cannot make a database there ({first_line(error)})"
            raise VindexError.at(self.out, f"{what}; choose another -o") from None
        except OSError as error:
            what = f"a folder cannot be moved there ({error.strerror or error})"
            raise VindexError.at(self.out, f"{what}; choose another -o") from None

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads((self.folder / _STATE).read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) and isinstance(state.get("done"), dict) else {}


@contextmanager
def open_staging(out: Path, key: Mapping[str, Any]) -> Iterator[Staging]:
    """A Staging for `out` under an exclusive lock; VindexError where another extraction to `out` is running.

    It goes with the block; but an error or Ctrl-C leaves finished steps, and says so. `key` identifies model and
    options: only a run with the same key may be resumed.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    staging = Staging(out, digest)
    with ExitStack() as stack:
        try:
            stack.enter_context(unfinished_work(staging.folder, _busy(out), lambda: staging.resumable))
        except OSError as error:
            what = f"cannot write there ({error.strerror or error})"
            raise VindexError.at(out, f"{what}; choose another -o") from None
        yield staging


def bring_back(out: Path) -> bool:
    """Whether `out` got back the vindex that an extraction with --force had moved aside when it was killed.

    VindexError where something else stands at `out` by now.
    """
    older = aside_of(out)
    if not older.is_dir() or not Staging(out, "").directory.is_dir():
        # Where the new one stands, the older one has served.
        return False
    if os.path.lexists(out):
        what = f"is the vindex that stood at {out} when extract --force was stopped; move it away first"
        raise VindexError.at(older, what)
    with own_folder(staging_of(out), _busy(out)):
        os.rename(older, out)
    return True


def _busy(out: Path) -> str:
    return f"{out}: another extraction to this path is running; wait for it or choose another -o"
