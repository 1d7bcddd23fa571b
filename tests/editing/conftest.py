"""Tiny vindexes that are wide enough to insert facts, and sessions on copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from larql_duck.commands.opening import connect
from larql_duck.session import Session
from tests.conftest import MadeOnce, Make
from tests.families import make_family
from tests.tiny import TINY_FAMILIES, make_tiny


@pytest.fixture(scope="session")
def feature_vindex(made_once: MadeOnce) -> Make:
    """A function family -> vindex of level all of a tiny model that is wide enough to tell subjects apart."""

    def get(family: str) -> Path:
        from larql_duck.extraction import extract

        def build(path: Path) -> None:
            directory = path.with_suffix(".model")
            if family in TINY_FAMILIES:
                model = make_tiny(family, directory, hidden=128, intermediate=64)
            else:
                model = make_family(family, directory, hidden_size=128, head_dim=None)
            if family == "gemma3_text":
                _louder(model)
            extract(model, path, level="all", in_basis="embedding", probe=False)

        return made_once(f"{family}-wide.vindex", build)

    return cache(get)


def _louder(model: Path) -> None:
    """Let the norm behind each FFN pass more: as it is, no FFN could turn the model's answer."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if "post_feedforward_layernorm" in name:
            tensor += 8.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def session(request: pytest.FixtureRequest, feature_vindex: Make, tmp_path: Path) -> Iterator[Session]:
    """A session on a copy of the vindex of the family given as parameter; the copy may be written to."""
    path = shutil.copytree(feature_vindex(request.param), tmp_path / "m.vindex")
    with connect(path) as made:
        yield made
