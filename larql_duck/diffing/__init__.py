"""DIFF: what tells one vindex, or what a session shows of one, from another."""

from larql_duck.diffing.compare import Difference, compare
from larql_duck.diffing.markdown import markdown_report
from larql_duck.diffing.sides import DiffSide, OpenWorkspace, current_side, directory_side
from larql_duck.diffing.to_patch import as_patch

__all__ = [
    "DiffSide",
    "Difference",
    "OpenWorkspace",
    "as_patch",
    "compare",
    "current_side",
    "directory_side",
    "markdown_report",
]
