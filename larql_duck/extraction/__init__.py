"""Model files into a vindex."""

from __future__ import annotations

from larql_duck.extraction.pipeline import estimate, extract

__all__ = ["estimate", "extract"]
