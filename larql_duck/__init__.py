"""larql-duck: a transformer as a database that you query with SQL.

`extract` makes a vindex from a model, `connect` opens one, `transpile` shows the SQL of an LQL statement, `attach`
puts a vindex into a DuckDB connection of yours. Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from larql_duck._version import __version__ as __version__
from larql_duck.errors import (
    BudgetError,
    LarqlError,
    LevelError,
    LqlSyntaxError,
    ModelError,
    NotSupportedError,
    PackError,
    PatchError,
    QueryError,
    SemanticError,
    VindexError,
)

if TYPE_CHECKING:
    from larql_duck.commands.auditing import audit
    from larql_duck.commands.opening import attach, connect
    from larql_duck.commands.over_texts import diff_texts, text_scores
    from larql_duck.commands.transpiling import transpile
    from larql_duck.extraction.pipeline import estimate, extract
    from larql_duck.inference.clauses import Ablate, Patch, Steer
    from larql_duck.inference.trace_file import read_trace
    from larql_duck.lql import parse
    from larql_duck.result import Result
    from larql_duck.session import Session
    from larql_duck.vindex.verify import verify

# Public name -> the module that defines it, loaded when the name is first used.
_HOMES = {
    "Ablate": "larql_duck.inference.clauses",
    "Patch": "larql_duck.inference.clauses",
    "Steer": "larql_duck.inference.clauses",
    "Result": "larql_duck.result",
    "Session": "larql_duck.session",
    "attach": "larql_duck.commands.opening",
    "audit": "larql_duck.commands.auditing",
    "connect": "larql_duck.commands.opening",
    "diff_texts": "larql_duck.commands.over_texts",
    "estimate": "larql_duck.extraction",
    "extract": "larql_duck.extraction",
    "load_ipython_extension": "larql_duck.notebook",
    "parse": "larql_duck.lql",
    "read_trace": "larql_duck.inference.trace_file",
    "text_scores": "larql_duck.commands.over_texts",
    "transpile": "larql_duck.commands.transpiling",
    "unload_ipython_extension": "larql_duck.notebook",
    "verify": "larql_duck.vindex.verify",
}

__all__ = [
    "Ablate",
    "BudgetError",
    "LarqlError",
    "LevelError",
    "LqlSyntaxError",
    "ModelError",
    "NotSupportedError",
    "PackError",
    "Patch",
    "PatchError",
    "QueryError",
    "Result",
    "SemanticError",
    "Session",
    "Steer",
    "VindexError",
    "attach",
    "audit",
    "connect",
    "diff_texts",
    "estimate",
    "extract",
    "parse",
    "read_trace",
    "text_scores",
    "transpile",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from larql_duck.spelling import did_you_mean

        meant = "" if name.startswith("_") else did_you_mean(name, __all__)
        raise AttributeError(f"module 'larql_duck' has no attribute {name!r}{meant}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    # `larql_duck.extraction` is a module too: importing it put the module here, and the function must win.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
