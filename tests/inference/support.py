"""A weight source over a plain Hugging Face directory, so that these tests do not depend on the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from larql_duck.models.families import family_for


class StateSource:
    """The tensors of one safetensors file, held in memory under their state-dict names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.family, _ = family_for(self.config)
        self.tensors = load_file(path / "model.safetensors")

    def names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def tokenizer_files(self) -> dict[str, bytes]:
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        return {n: (self.path / n).read_bytes() for n in names if (self.path / n).is_file()}


PROMPTS = [
    "The capital of France is",
    " of",
    "The language of Japan is French and the currency of Germany is the euro in",
    "Paris is the capital",
]
