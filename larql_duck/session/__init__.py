"""A vindex in a DuckDB connection, asked in LQL or SQL."""

from __future__ import annotations

from larql_duck.session.session import Session

__all__ = ["Session"]
