"""A patch as a file holds it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from larql_duck.patches.operations import Operation


@dataclass(frozen=True)
class PatchFile:
    """A patch as a file holds it: its operations and where they belong.

    name is what REMOVE PATCH takes beside the path. base_checksum None: made by a system that does not write one.
    """

    operations: tuple[Operation, ...]
    name: str | None = None
    path: Path | None = None
    base_model: str = ""
    base_checksum: str | None = None
    created_at: str = ""
    description: str | None = None
    author: str | None = None
    tags: tuple[str, ...] = ()

    def called(self, name: str) -> bool:
        """Whether `name` is this patch's path, name or description."""
        return name in (self.name, self.description) or self.at(name)

    def at(self, path: str | Path) -> bool:
        """Whether the patch is the file at `path`."""
        return self.path is not None and place(self.path) == place(path)

    @property
    def title(self) -> str:
        """What messages call it."""
        return str(self.path or self.name or self.description or "(unnamed)")


def place(path: str | Path) -> str:
    """A path without `~`, links and dots, which names its file; one that no system has is itself."""
    path = Path(path).expanduser()
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)
