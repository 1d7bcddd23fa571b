"""How large a model is: as its config says, and as transformers' modules have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model: layer count, hidden, features per layer, vocabulary, heads, kv heads, head size.

    running: of layers with experts how many features a token runs; None: all of them.
    """

    n_layers: int
    hidden: int
    intermediate: list[int]
    vocab: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    running: list[int] | None = None

    @property
    def parameters(self) -> int:
        """Roughly how many parameters a token's pass multiplies by: those of the layers and of the output head."""
        layers = sum(self.attention + 3 * self.hidden * n for n in self.running or self.intermediate)
        return layers + self.vocab * self.hidden

    @property
    def attention(self) -> int:
        """Parameters of one layer's attention."""
        return 2 * self.hidden * self.head_dim * (self.n_heads + self.n_kv_heads)


@dataclass(frozen=True)
class MeasuredModel:
    """What transformers' modules have for one config, of a family that is read off them.

    shapes are those of every parameter but the output head, with gate and up apart; buffers are names of what a
    checkpoint may hold beside parameters. activation is '' where it has numbers of its own; by_layer: the config has
    a list with the features of each layer.
    """

    n_layers: int
    hidden: int
    vocab: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    activation: str
    shapes: Mapping[str, tuple[int, ...]]
    buffers: tuple[str, ...] = ()
    by_layer: bool = False
