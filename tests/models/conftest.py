"""Tiny models of every family, made once a session; tests that change one copy it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import write_gguf

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tiny_model: Make) -> Make:
    """family -> its directory (do not change it)."""
    return tiny_model


@pytest.fixture(scope="session")
def tiny_gguf(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(family, quantisation) -> the GGUF file of the same weights."""
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, quant: str = "F32") -> Path:
        if (family, quant) not in made:
            path = tmp_path_factory.mktemp("gguf") / f"{family}-{quant}.gguf"
            made[family, quant] = write_gguf(tiny(family), path, quant)
        return made[family, quant]

    return make


@pytest.fixture
def copied(tiny: Make, tmp_path: Path) -> Make:
    """family -> a copy of its directory that the test may change."""

    def make(family: str) -> Path:
        return Path(shutil.copytree(tiny(family), tmp_path / family))

    return make
