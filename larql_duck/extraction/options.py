"""What an extraction is asked to do, checked before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from larql_duck.errors import LarqlError
from larql_duck.probing.budget import default_names
from larql_duck.vindex.manifest import LEVELS

# The stages, as progress, plans and estimates name them.
ARRAYS, PROMOTED, TOP_ACTIVATING = "arrays", "promoted tokens", "top activating tokens"
FACTS, NAMES, TABLES = "facts", "names", "tables"


@dataclass(frozen=True)
class Options:
    """The options of one extraction; see `larql_duck.extraction` for their meaning."""

    level: str = "inference"
    dtype: str = "source"
    layers: tuple[int, int] | None = None
    top_k: int = 10
    in_basis: str = "auto"
    context_tokens: int | None = None
    probe: bool = True
    pack: str = "core"
    relations: tuple[str, ...] | None = None
    names: int | None = None
    precision: str = "f32"

    def __post_init__(self) -> None:
        _choice("level", self.level, LEVELS)
        _choice("dtype", self.dtype, ("source", "f16", "f32"))
        _choice("precision", self.precision, ("f32", "bf16"))
        _choice("in_basis", self.in_basis, ("auto", "context", "embedding"))
        if not 1 <= self.top_k <= 1000:
            raise LarqlError(f"top_k is {self.top_k}; it must lie between 1 and 1000")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise LarqlError(f"context_tokens is {self.context_tokens}; it must be at least 1")
        if self.names is not None and self.names < 0:
            raise LarqlError(f"names is {self.names}; it must be at least 0")
        if self.names and not self.probe:
            raise LarqlError(
                "names of the vocabulary are asked about by probing; leave out --no-probe or --names"
            )

    def n_names(self, parameters: int) -> int:
        """Names of the vocabulary that are asked about, of a model of so many parameters. A pack of one's own, or relations
        picked from one, are asked alone where nothing else is said.
        """
        if not self.probe:
            return 0
        if self.names is None:
            return default_names(parameters) if self.pack == "core" and self.relations is None else 0
        return self.names

    def layer_range(self, n_layers: int) -> range:
        """The layers (from 0) whose features are described; LarqlError when they are not in the model."""
        if self.layers is None:
            return range(n_layers)
        low, high = self.layers
        if not 0 <= low <= high < n_layers:
            raise LarqlError(f"layers {low}-{high} are not in this model; it has layers 0-{n_layers - 1}")
        return range(low, high + 1)

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON values; a pack that is a file by its name alone."""
        return asdict(self) | {"pack": Path(self.pack).name}


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise LarqlError(f"{name} {value!r} is not known; use one of {', '.join(choices)}")
