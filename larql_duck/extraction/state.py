"""Work in progress: the hidden sibling directory that an extraction fills, and what of it is finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from larql_duck.catalog import quoted
from larql_duck.errors import VindexError, first_line
from larql_duck.files import locked, open_replacing, write_whole
from larql_duck.vindex.publish import staging_of

_STATE = "state.json"
WORK = ".work"
_LOCK = ".lock"


class Staging:
    """The directory in which `out` is being built. Steps that are recorded as done survive a crash.

    `directory` becomes the vindex; `work` holds checkpoints and is deleted before publishing.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.out = out
        self.directory = staging_of(out)
        self.work = self.directory / WORK
        self.key = key
        self._done: dict[str, Any] = {}

    def begin(self, resume: bool) -> bool:
        """True when finished steps of an interrupted run were found and `resume` asks for them.

        Without `resume` the directory is emptied. A run with other options or another model is a VindexError.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        state = self._read()
        if resume and state:
            if state.get("key") != self.key:
                raise VindexError.at(
                    self.out,
                    "the interrupted extraction was started with another model or other options; "
                    "repeat it with the same ones, or start afresh without --resume",
                )
            self._done = state["done"]
            return True
        for entry in self.directory.iterdir():
            if entry.name == _LOCK:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.work.mkdir()
        self._done = {}
        return False

    def done(self, step: str) -> Any:
        """What was recorded for `step`, None while it is not finished."""
        return self._done.get(step)

    def record(self, step: str, value: Any = True) -> None:
        """Note on the disk that `step` is finished, with a JSON value to read back."""
        self._done[step] = value
        write_whole(self.work / _STATE, json.dumps({"key": self.key, "done": self._done}), error=None)

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

    @property
    def resumable(self) -> bool:
        """Whether steps are finished that a later run need not repeat."""
        return bool(self._done)

    def try_place(self) -> None:
        """Do once, small, what the last steps do: build a database here and rename its directory to beside `out`.

        VindexError where one of them fails: hours of work would be in a place from which they cannot be published.
        """
        here, beside = self.directory / ".try", self.out.parent / f".{self.out.name}.try"
        try:
            for folder in (here, beside):
                shutil.rmtree(folder, ignore_errors=True)
            here.mkdir()
            with duckdb.connect() as con:
                con.execute(f"ATTACH {quoted(str(here / 'model.duckdb'))} AS tried")
                con.execute("CREATE TABLE tried.t AS SELECT 1; DETACH tried")
            if not (here / "model.duckdb").is_file():
                raise duckdb.IOException("it names the file in another way")
            os.rename(here, beside)
        except duckdb.Error as error:
            what = f"DuckDB cannot make a database there ({first_line(error)})"
            raise VindexError.at(self.out, f"{what}; choose another -o") from None
        except OSError as error:
            what = f"a folder cannot be moved there ({error.strerror or error})"
            raise VindexError.at(self.out, f"{what}; choose another -o") from None
        finally:
            for folder in (here, beside):
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads((self.work / _STATE).read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) and isinstance(state.get("done"), dict) else {}


@contextmanager
def open_staging(out: Path, key: Mapping[str, Any]) -> Iterator[Staging]:
    """A Staging for `out` under an exclusive lock; VindexError where another extraction to `out` is running.

    `key` identifies model and options: only a run with the same key may be resumed.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    staging = Staging(out, digest)
    try:
        staging.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VindexError.at(
            out, f"cannot write there ({error.strerror or error}); choose another -o"
        ) from None
    with locked(
        staging.directory / _LOCK,
        f"{out}: another extraction to this path is running; wait for it or choose another -o",
    ):
        yield staging
