"""Top activating tokens by asking the model: every word-like token stands once in a neutral context, layer after layer.

How a feature activates on a token is its gate value at the token's position behind a constant first word. Measured on
real sentences, this predicts when a feature fires far better than the token's embedding does (README, "How it works").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from larql_duck.extraction.collecting import LayerCollector, TokenFeatures, TopActivating
from larql_duck.extraction.expert_pass import collect_experts
from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import Workers, workers
from larql_duck.extraction.stream import TokenStream
from larql_duck.inference.modules import LayerModules
from larql_duck.inference.query_vectors import NEUTRAL
from larql_duck.inference.topk import block_rows, row_blocks, scratch
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import load_tokenizer

# Values of a block of the FFN: larger products are faster, and their memory is used again.
_BLOCK = 1 << 21

Blocks: TypeAlias = Sequence[tuple[int, int]]
Visitor: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called with a block's first token, the FFN's input [tokens, hidden], gate values and activations [tokens, features]."""


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
        blocks = row_blocks(len(stream.residual), ffn_rows(part.features))
        visit = None if begin is None else begin(part, blocks, pool)
        act_fn = part.act

        def experts(block: tuple[int, int]) -> None:
            x = stream.ffn_input(part, *block)
            assert part.mixture is not None
            with part.mixture.running(x) as weights:
                gate, act = part.mixture.values(x, weights)
                if visit is not None:
                    visit(block[0], x.float(), gate.float(), act.float())
                if not last:
                    stream.add_ffn(part, *block, part.down(act))

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

        pool.each(ffn if part.mixture is None else experts, blocks)


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
    if stream.parts.layers[layer].mixture is not None:
        with torch.no_grad(), workers() as pool, stream.layer(layer, pool) as part:
            return collect_experts(stream, layer, part, pool, k, tokens, ids, last=last)
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
