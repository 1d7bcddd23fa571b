"""The vindexes on which pages run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """SmolLM2 as `larql-duck extract` makes it on a machine that is not busy, but for what no page prints and what takes
    most of the time: features are described in the last layers alone, by the embedding; one name of the vocabulary is
    asked about; only facts about capitals have features. Only to be read.
    """
    from larql_duck.extraction import extract
    from larql_duck.probing import facts

    measured = facts.measured

    def measured_of_capitals(engine: Any, answered: Any, *options: Any) -> Any:
        if answered.question.relation.name == "capital":
            return measured(engine, answered, *options)
        return facts.stated(answered)

    def build(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(facts, "measured", measured_of_capitals)
            extract(smollm2_gguf, path, layers=(22, 29), in_basis="embedding", names=1)

    return made_once("default.vindex", build)
