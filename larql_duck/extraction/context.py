"""Top activating tokens by asking the model: every word-like token stands once in a neutral context, layer after layer.

How a feature activates on a token is its gate value at the token's position behind a constant first word. Measured on
real sentences, this predicts when a feature fires far better than the token's embedding does (README, "How it works").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import Workers, workers
from larql_duck.extraction.stream import TokenStream
from larql_duck.inference.modules import LayerModules
from larql_duck.inference.query_vectors import NEUTRAL
from larql_duck.inference.topk import TopK, block_rows, row_blocks, scratch
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import load_tokenizer

TOKEN_FEATURES = 32
# Values of a block of the FFN: larger products are faster, and their memory is used again.
_BLOCK = 1 << 21

Blocks: TypeAlias = Sequence[tuple[int, int]]
Visitor: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called with a block's first token, the FFN's input [tokens, hidden], gate values and activations [tokens, features]."""


@dataclass(frozen=True)
class TopActivating:
    """The tokens on which one layer's features activate most: ids, gate values and activations [features, k].

    Ids are -1 where a feature has fewer than k tokens; activations are NaN where there is no up matrix to ask. `mean`
    and `std` [features] are those of the gate values over all tokens.
    """

    ids: np.ndarray
    scores: np.ndarray
    activations: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class TokenFeatures:
    """Each token's most specific features so far, over all layers: z, layer and feature, gate, activation.

    Features are numbered through the layers from `first_layer` on: number = offsets[layer - first_layer] + feature.
    """

    def __init__(
        self, n_tokens: int, n_features: list[int], first_layer: int = 0, k: int = TOKEN_FEATURES
    ) -> None:
        self.first_layer = first_layer
        self.offsets = np.concatenate([[0], np.cumsum(n_features)])
        self.top = TopK(n_tokens, min(k, int(self.offsets[-1])), companions=2)

    def slots(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Layer and feature (both from 0) of feature numbers."""
        index = np.searchsorted(self.offsets, numbers, side="right") - 1
        return index + self.first_layer, numbers - self.offsets[index]

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was gathered, as named arrays, for `restore`."""
        self.top.settle()
        arrays = (self.top.values, self.top.columns, *self.top.companions)
        return dict(zip(("values", "columns", "gate", "activation"), arrays, strict=True))

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` of an object of the same size returned."""
        current = self.state()
        for name, array in current.items():
            # One after another: `state` may read each from a file.
            array[:] = state[name]


class LayerCollector:
    """Collects one layer's gate values block by block: the tokens of each feature, the features of each token."""

    def __init__(
        self, layer: int, k: int, tokens: TokenFeatures, mean: torch.Tensor, std: torch.Tensor
    ) -> None:
        self.tokens = tokens
        self._first = tokens.offsets[layer - tokens.first_layer]
        self.top = TopK(len(mean), k, companions=1)
        self.mean, self.std = mean, std
        # A feature that never varies is specific to no token: its z is -inf for everything.
        self._scale = torch.where(std > 0, 1 / std, 0.0)
        self._shift = torch.where(std > 0, -mean / std, -torch.inf)

    def add(self, start: int, gate: torch.Tensor, activation: torch.Tensor) -> None:
        """Take in the values of tokens start.. : gate and activation [tokens, features], f32."""
        acts, gates = activation.numpy(), gate.numpy()
        features, rows = self.top.candidates(gate, row_axis=1)
        values = gates[rows, features]
        self.top.offer(features, rows + start, values, acts[rows, features])
        z = scratch("z", gate.shape)
        torch.addcmul(self._shift, gate, self._scale, out=z)
        rows, features = self.tokens.top.candidates(z, row_axis=0, start=start)
        values = gates[rows, features]
        specific, firing = z.numpy()[rows, features], acts[rows, features]
        self.tokens.top.offer(rows + start, features + self._first, specific, values, firing)

    def finish(self, ids: np.ndarray) -> TopActivating:
        """The layer's tokens, rows translated to token `ids`. `tokens` settles when it is read, not here."""
        self.top.settle()
        columns = self.top.columns
        return TopActivating(
            ids=np.where(columns >= 0, ids[columns], -1),
            scores=self.top.values,
            activations=self.top.companions[0],
            mean=self.mean.numpy(),
            std=self.std.numpy(),
        )


def token_stream(
    source: WeightSource,
    ids: np.ndarray,
    dtype: torch.dtype = torch.float32,
    *,
    prefix: Sequence[int] | None = None,
    room: torch.Tensor | None = None,
    device: str = "cpu",
) -> TokenStream:
    """A TokenStream, which computes in `dtype`, of the tokens `ids` behind the neutral context, whose tokens are `prefix` where they are known."""
    before = load_tokenizer(source).encode(NEUTRAL) if prefix is None else prefix
    return TokenStream(source, before, torch.from_numpy(ids), dtype, room=room, device=device)


def ffn_rows(features: int) -> int:
    """How many tokens make a block of an FFN with so many features."""
    return block_rows(features, _BLOCK)


def run_layer(
    stream: TokenStream,
    layer: int,
    begin: Callable[[LayerModules, Blocks, Workers], Visitor] | None = None,
    *,
    last: bool = False,
) -> None:
    """Advance the stream through `layer`; what `begin` returns sees every block of tokens in the FFN.

    `begin` gets the layer's modules, the blocks (start and stop of tokens) and the threads that run them. Behind the `last`
    layer nobody reads the stream: what its FFN writes is not computed.
    """
    with torch.no_grad(), workers() as pool, stream.layer(layer, pool) as part:
        blocks = row_blocks(len(stream.residual), ffn_rows(part.down_rows().shape[0]))
        visit = None if begin is None else begin(part, blocks, pool)
        act_fn = part.act

        def ffn(block: tuple[int, int]) -> None:
            x = stream.ffn_input(part, *block)
            gate = _product(part.gate, part, x, "gate")
            act = act_fn(gate)
            if part.up is not None:
                up = _product(part.up, part, x, "up")
                act = act * up if act is gate else act.mul_(up)
            if visit is not None:
                visit(block[0], x.float(), gate.float(), act.float())
            if not last:
                stream.add_ffn(part, *block, _product(part.down, part, act, "down"))

        pool.each(ffn, blocks)


def _product(module: Any, part: LayerModules, x: torch.Tensor, name: str) -> torch.Tensor:
    """What a linear module makes of x [n, width], in memory that this thread uses again: new pages cost as much as other passes."""
    if x.device.type != "cpu" or not (part.transposed or type(module) is torch.nn.Linear):
        return torch.as_tensor(module(x))
    weight = module.weight if part.transposed else module.weight.t()
    out = scratch(name, (len(x), weight.shape[1]), x.dtype)
    return (
        torch.mm(x, weight, out=out) if module.bias is None else torch.addmm(module.bias, x, weight, out=out)
    )


def collect_layer(
    stream: TokenStream, layer: int, ids: np.ndarray, k: int, tokens: TokenFeatures, *, last: bool = False
) -> TopActivating:
    """The top activating tokens of `layer`, after the stream (of the tokens `ids`) was advanced through it (see run_layer)."""
    collectors: list[LayerCollector] = []

    def begin(part: LayerModules, blocks: Blocks, pool: Workers) -> Visitor:
        collector = LayerCollector(layer, k, tokens, *_gate_statistics(stream, part, blocks, pool))
        collectors.append(collector)
        return lambda start, x, gate, act: collector.add(start, gate.cpu(), act.cpu())

    run_layer(stream, layer, begin, last=last)
    return collectors[0].finish(ids)


def _gate_statistics(
    stream: TokenStream, part: LayerModules, blocks: Blocks, pool: Workers
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature's gate value over all tokens, before any gate is computed.

    They follow from the moments of the FFN's input, so that z is exact in the one pass over the gates.
    """
    inputs = partial(stream.ffn_input, part)
    moments = Moments(inputs(*blocks[0]).float().mean(0).cpu())
    for sums in pool.map(lambda block: moments.sums(inputs(*block).float()), blocks):
        moments.add(sums)
    weight: Any = part.gate.weight
    mean, std = moments.project((weight.t() if part.transposed else weight).float())
    bias: Any = getattr(part.gate, "bias", None)
    return (mean if bias is None else mean + bias.float().cpu()), std
