"""LQL, the language: text -> statements -> text. Nothing here knows a model or runs a query."""

from __future__ import annotations

from larql_duck.lql.parser import parse, parse_one, requirements

__all__ = ["parse", "parse_one", "requirements"]
