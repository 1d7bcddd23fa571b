"""Edits that nobody saved, kept where they can be found again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_state_path

from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    from larql_duck.patches.edit_log import EditLog

# Patches of this kind that stay.
_KEPT = 50


def told_of_unsaved(edits: EditLog, vindex: Path, keep: bool) -> str:
    """What the user should know of unsaved edits that a session gives up; with keep they are a patch by then.

    It lies in the user's state directory, larql_duck/unsaved, which keeps the latest _KEPT.
    """
    n = len(edits.live)
    said = f"{n} edit{'s were' if n > 1 else ' was'} not saved"
    if keep:
        with suppress(LarqlError, OSError):
            folder = user_state_path("larql_duck") / "unsaved"
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{vindex.stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            # Several sessions of a process may end in one second.
            names = chain([name], (f"{name}-{n}" for n in count(2)))
            path = next(p for each in names if not (p := folder / f"{each}.vlp").exists())
            edits.save(path)
            for old in sorted(folder.glob("*.vlp"), key=os.path.getmtime)[:-_KEPT]:
                old.unlink()
            return f'{said}; a copy lies in {path}: APPLY PATCH "{path}"'
    return f'{said} and {"are" if n > 1 else "is"} gone; SAVE PATCH "file.vlp" would have kept {"them" if n > 1 else "it"}'
