"""DIFF: what tells one vindex, or what a session shows of one, from another."""

from larql_duck.diff.compare import Difference, compare
from larql_duck.diff.patch import as_patch
from larql_duck.diff.report import report
from larql_duck.diff.sides import Side, current, directory

__all__ = ["Difference", "Side", "as_patch", "compare", "current", "directory", "report"]
