"""Model files into a vindex."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from larql_duck.extract.pipeline import estimate, extract

__all__ = ["estimate", "extract"]


class _Callable(ModuleType):
    """This package, callable: `larql_duck.extract(...)` must work whichever of the two was imported first."""

    def __call__(self, *args: Any, **options: Any) -> Path:
        return extract(*args, **options)


sys.modules[__name__].__class__ = _Callable
