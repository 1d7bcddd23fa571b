"""The vindexes on which pages run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def quick_vindex(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with SmolLM2's layers and features, 32 wide, with facts of two relations. Only to be read."""
    from larql_duck.commands.opening import connect
    from larql_duck.extraction import extract
    from tests.editing.tables import RELATIONS, SUBJECTS
    from tests.tiny import make_tiny

    def build(path: Path) -> None:
        model = make_tiny("llama", path.parent / "quick-model", layers=30, intermediate=1536)
        extract(model, path, level="all", in_basis="embedding", probe=False)
        with connect(path) as session:
            session.probe(SUBJECTS, RELATIONS)

    return made_once("quick.vindex", build)


@pytest.fixture(scope="session")
def default_vindex(smollm2_gguf: Path, made_once: MadeOnce) -> Path:
    """SmolLM2 as `larql-duck extract` makes it on a machine that is not busy, but for the words that features activate
    on, which no page prints: they are the top of a thousand, for the full pass takes minutes. Only to be read.
    """
    from larql_duck.extraction import extract

    def build(path: Path) -> None:
        extract(smollm2_gguf, path, in_basis="context", context_tokens=1000)

    return made_once("default.vindex", build)
