"""Model files into a vindex."""

from larql_duck.extraction.pipeline import extract

__all__ = ["extract"]
