"""Finished batches on disk, so that a probing run that was killed does not repeat them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from larql_duck.cluster import Call
from larql_duck.files import write_whole
from larql_duck.inference.engine_nodes import EngineName, EngineNodes, named_engine

# Counted up whenever a batch's content changes its meaning.
_FORMAT = 2
Item = TypeVar("Item")


@dataclass(frozen=True)
class KeptBatch(Generic[Item]):
    """A batch of n items to be made: by `make`, or on a node by a function with the arguments `call`; `parts` (JSON values)
    tell it from others.
    """

    parts: object
    n: int
    make: Callable[[], list[Item]]
    call: Call


class Checkpoint:
    """A directory of finished batches, one file each, named by a hash of what was asked.

    Without a directory nothing is kept. `context` goes into every hash: the model's fingerprint and every option
    that changes an answer. With `nodes`, `batches` are made there.
    """

    def __init__(
        self, directory: Path | None, context: Iterable[object] = (), nodes: EngineNodes | None = None
    ) -> None:
        self.directory, self.nodes = directory, nodes
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
        path = self._path(kind, parts)
        batch = _read(path, item, n)
        if batch is None:
            batch = make()
            _keep(path, batch)
        return batch

    def batches(
        self,
        kind: str,
        item: type[Item],
        wanted: Iterable[KeptBatch[Item]],
        function: Callable[..., list[Item]],
    ) -> Iterator[tuple[int, list[Item]]]:
        """(number, batch) of each that is wanted: stored ones, else made here in their order, or on nodes by `function` as
        they are done.
        """
        if self.nodes is None:
            for i, batch in enumerate(wanted):
                yield i, self.batch(kind, batch.parts, item, batch.n, batch.make)
            return
        paths, calls = [], []
        for i, batch in enumerate(wanted):
            paths.append(self._path(kind, batch.parts))
            found = _read(paths[i], item, batch.n)
            if found is None:
                calls.append((i, function, *batch.call))
            else:
                yield i, found
        for (i, *_), made in self.nodes.run(make_batch, calls):
            _keep(paths[i], made)
            yield i, made

    def _path(self, kind: str, parts: object) -> Path | None:
        """Where a batch is kept; None where nothing is."""
        if self.directory is None:
            return None
        text = json.dumps([self._context, kind, parts], default=str)
        return self.directory / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.msgpack"


def make_batch(
    named: EngineName, number: int, function: Callable[..., list[Item]], *call: object
) -> list[Item]:
    """On a node: the batch with this number, as the function makes it with the engine of that name."""
    return function(named_engine(named), *call)


def _read(path: Path | None, item: type[Item], n: int) -> list[Item] | None:
    """The n items that are kept at the path; None where there are none or others."""
    batch: list[Item] = []
    if path is not None:
        with suppress(OSError, msgspec.DecodeError):
            batch = msgspec.msgpack.decode(path.read_bytes(), type=list[item])  # type: ignore[valid-type]
    return batch if len(batch) == n else None


def _keep(path: Path | None, batch: Sequence[object]) -> None:
    if path is not None:
        write_whole(path, msgspec.msgpack.encode(batch), sync=False)
