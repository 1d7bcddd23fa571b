"""DuckDB databases in memory, of our own; and which files it can name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def in_memory(**settings: str) -> duckdb.DuckDBPyConnection:
    """A connection to a new database in memory, with these settings. It installs no extension by itself.

    Reading and building are not to fill ~/.duckdb, nor to wait for a network; INSTALL does when it is asked to.
    """
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false"} | settings)


def not_nameable(path: Path) -> str | None:
    """Why DuckDB cannot name a database below the path, where it takes ? and \\ for something else; None where it can."""
    found = {"?", "\\"} & set(os.path.realpath(path)) if os.sep == "/" else set()
    return f"DuckDB cannot name a database in a path with {' and '.join(sorted(found))}" if found else None
