from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from larql_duck.inference.engine import Engine
from tests.inference.support import PROMPTS, StateSource
from tests.tiny import TINY_FAMILIES


@dataclass
class Tiny:
    """A tiny model: its directory, our engine on it and transformers' own loading of the same files."""

    path: Path

    @cached_property
    def source(self) -> StateSource:
        return StateSource(self.path)

    @cached_property
    def engine(self) -> Engine:
        return Engine.load(self.source)

    @cached_property
    def reference(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()

    @cached_property
    def ids(self) -> list[list[int]]:
        batch = self.engine.encode(PROMPTS)
        return [batch.row(i) for i in range(len(PROMPTS))]


@pytest.fixture(scope="session")
def tiny_of(tiny_model: Callable[[str], Path]) -> Callable[[str], Tiny]:
    made: dict[str, Tiny] = {}

    def get(family: str) -> Tiny:
        if family not in made:
            made[family] = Tiny(tiny_model(family))
        return made[family]

    return get


@pytest.fixture(params=TINY_FAMILIES)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of(request.param)


@pytest.fixture
def llama(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("llama")
