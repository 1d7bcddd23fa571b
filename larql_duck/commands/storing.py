"""What commands have in common that measure the model and store tables in the open vindex."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.errors import LarqlError
from larql_duck.probing.publish import require_tables
from larql_duck.vindex.manifest import load_manifest
from larql_duck.vindex.publish import check_database, commit_tables

if TYPE_CHECKING:
    from larql_duck.session.open_vindex import OpenVindex


def check_storable(workspace: OpenVindex, what: str) -> None:
    """Raise LarqlError where `what` cannot run and be stored: no tables, no weights, edits, a database not to be replaced."""
    vindex = workspace.vindex
    require_tables(vindex)
    vindex.require("inference", what)
    if workspace.views.fingerprint() is not None:
        raise LarqlError(
            f"{what} needs the model as it is stored, and this session has edits: COMPILE CURRENT INTO VINDEX, then open that one"
        )
    check_database(vindex.path)


def store(
    workspace: OpenVindex,
    tables: Mapping[str, pa.Table],
    change: Callable[[dict[str, Any]], None] | None = None,
    files: Mapping[str, bytes | Path] | None = None,
) -> None:
    """Put whole tables and files in place of those of the open vindex, as `commit_tables` does; the session shows them."""
    vindex = workspace.vindex
    commit_tables(vindex.path, tables, change, files)
    vindex.manifest = load_manifest(vindex.path)
    workspace.unsaved.published(tables)
    workspace.views.update()
