"""The vindexes on which pages run."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
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
    most of the time. Only to be read.

    Every relation of the pack is asked about everybody, as always, and names that nobody has are asked about: they decide what
    confidence means. Of the other relations less is asked, and types are learnt from fewer names; features are described in the last layers alone, by the embedding; one name of the
    vocabulary is asked about; France's facts alone have features. Set LARQL_DUCK_TEST_DEFAULT_VINDEX to a vindex made
    without all that to see the pages checked against it.
    """
    ready = os.environ.get("LARQL_DUCK_TEST_DEFAULT_VINDEX")
    if ready:
        return Path(ready)
    from larql_duck.extraction import extract, stages
    from larql_duck.probing import facts, learning
    from larql_duck.probing.measure import FactFeatures

    measure, fit_types = facts.measure, stages.fit_types

    def measure_france(engine: Any, answers: Any, **options: Any) -> list[FactFeatures]:
        own = [a for a in answers if a.subject == "France"]
        found = iter(measure(engine, own, **options) if own else ())
        return [next(found) if a in own else FactFeatures((), 0.0, 0.0) for a in answers]

    def fit_some_types(engine: Any, members: Any) -> Any:
        return fit_types(engine, dict(islice(members.items(), 0, None, 4)))

    def build(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(facts, "measure", measure_france)
            patch.setattr(stages, "fit_types", fit_some_types)
            patch.setattr(learning, "TAUGHT", 3)
            extract(smollm2_gguf, path, layers=(22, 29), in_basis="embedding", names=1)

    return made_once("default.vindex", build)
