"""Model files into a vindex."""

from larql_duck.extract.pipeline import estimate, extract

__all__ = ["estimate", "extract"]
