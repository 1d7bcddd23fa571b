"""DuckDB databases in memory, of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def in_memory(**settings: str) -> duckdb.DuckDBPyConnection:
    """A connection to a new database in memory, with these settings. It installs no extension by itself.

    Reading and building are not to fill ~/.duckdb, nor to wait for a network; INSTALL does when it is asked to.
    """
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false"} | settings)
