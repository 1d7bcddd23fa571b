"""Files that appear at once and whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from larql_duck.errors import LarqlError


def write_whole(path: str | Path, write: Callable[[Path], None]) -> Path:
    """The path after `write` filled a temporary file beside it, which then took its name.

    LarqlError where the file cannot be written; nothing is left behind then.
    """
    target = Path(path).expanduser()
    if not target.name:
        raise LarqlError(f"{path}: names no file; give a file name to write to")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        write(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise LarqlError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return target
