"""Finished batches on disk, so that a probing run that was killed does not repeat them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from larql_duck.files import write_whole

# Counted up whenever a batch's content changes its meaning.
_FORMAT = 2
Item = TypeVar("Item")


class Checkpoint:
    """A directory of finished batches, one file each, named by a hash of what was asked.

    Without a directory nothing is kept. `context` goes into every hash: the model's fingerprint and every option
    that changes an answer.
    """

    def __init__(self, directory: Path | None, context: Iterable[object] = ()) -> None:
        self.directory = directory
        self._context = json.dumps([_FORMAT, *context], default=str)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def batch(
        self, kind: str, parts: object, item: type[Item], n: int, make: Callable[[], list[Item]]
    ) -> list[Item]:
        """The batch of n items of this type: the stored one, else what `make` returns, which is stored then.

        It is stored under its kind and a hash of the context and `parts` (JSON values). A file that a crash or
        another version damaged counts as none.
        """
        if self.directory is None:
            return make()
        text = json.dumps([self._context, kind, parts], default=str)
        path = self.directory / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.msgpack"
        batch: list[Item] = []
        with suppress(OSError, msgspec.DecodeError):
            batch = msgspec.msgpack.decode(path.read_bytes(), type=list[item])  # type: ignore[valid-type]
        if len(batch) != n:
            batch = make()
            write_whole(path, msgspec.msgpack.encode(batch), sync=False)
        return batch
