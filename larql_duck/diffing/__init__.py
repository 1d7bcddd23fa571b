"""DIFF: what tells one vindex, or what a session shows of one, from another."""

from larql_duck.diffing.compare import Difference, compare
from larql_duck.diffing.markdown import report
from larql_duck.diffing.sides import Side, current, directory
from larql_duck.diffing.to_patch import as_patch

__all__ = ["Difference", "Side", "as_patch", "compare", "current", "directory", "report"]
