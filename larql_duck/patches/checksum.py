"""The checksum of a base: what a patch names as the vindex that it was made for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.errors import PatchError
from larql_duck.vindex import layout

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex

_FILES = (layout.GATE, layout.UP, layout.DOWN, layout.EMBED)
_BLOCK = 1 << 22


def base_checksum(vindex: Vindex) -> str:
    """Hexadecimal sha256 over the hexadecimal sha256 of the gate, up, down and embedding files that are there.

    Those that the manifest lists are taken from it, others are read.
    """
    whole = hashlib.sha256()
    for name in _FILES:
        if (vindex.path / name).is_file():
            whole.update(file_checksum(vindex, name).encode())
    return whole.hexdigest()


def weights_checksum(vindex: Vindex) -> str:
    """Hexadecimal sha256 over the names and checksums of every file that holds weights: what a forward pass depends on."""
    digest = hashlib.sha256()
    for name in (*_FILES, layout.ATTENTION, layout.NORMS, layout.HEAD, layout.EXTRA):
        if (vindex.path / name).is_file():
            digest.update(f"{name} {file_checksum(vindex, name)}\n".encode())
    return digest.hexdigest()


def file_checksum(vindex: Vindex, name: str) -> str:
    """Hexadecimal sha256 of a file of the vindex: as its manifest says, else of what is read."""
    return vindex.manifest.checksums.get(name) or _of_file(vindex.path / name)


def _of_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise PatchError.at(path, f"cannot be read ({error.strerror}); restore it from a copy") from None
    return digest.hexdigest()
