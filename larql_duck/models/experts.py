"""The experts of a mixture: which layers have them, and how their features are numbered through a layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Experts:
    """The experts of a model whose layers choose among them, and where they are among transformers' modules.

    Feature i of expert e has the number e x width + i in its layer; the `shared` features of experts that always run
    come last and are those of expert `count`. block is the path of a layer's mixture, inner that of its experts within it,
    always that of the shared ones ('' where there are none). picked: how many
    run for a token. Stored, gate and up are one array [experts, ...] with the
    halves behind each other or (interleaved) every other row, turned: with inputs first; biased: experts have biases. scaled:
    the router's weight multiplies what an expert reads instead of what it writes.
    """

    layers: tuple[int, ...]
    count: int
    width: int
    shared: int
    block: str
    inner: str
    always: str = ""
    turned: bool = False
    interleaved: bool = False
    biased: bool = False
    scaled: bool = False
    picked: int = 1

    @property
    def routed(self) -> int:
        """How many features of a layer the router chooses among."""
        return self.count * self.width

    def running(self, features: list[int]) -> list[int]:
        """How many features a token runs in each layer, of those that the layers have."""
        rest = (self.count - self.picked) * self.width
        return [n - rest if layer in self.layers else n for layer, n in enumerate(features)]

    def expert_of(self, feature: int) -> int:
        """The expert of a layer's feature; `count` for shared ones, and for what edits append behind them."""
        return min(feature // self.width, self.count)

    def spans(self, features: int) -> Iterator[tuple[int, int, int]]:
        """Expert, first feature and the one behind its last, of every expert in a layer of so many features."""
        for expert in range(self.count):
            yield expert, expert * self.width, (expert + 1) * self.width
        if features > self.routed:
            yield self.count, self.routed, features
