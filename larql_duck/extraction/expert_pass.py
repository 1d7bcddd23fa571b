"""The context pass through a mixture of experts: one expert's weights in memory at a time, over the tokens that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from larql_duck.extraction.collecting import LayerCollector, TokenFeatures, TopActivating
from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import Workers
from larql_duck.extraction.stream import TokenStream
from larql_duck.inference.modules import LayerModules
from larql_duck.inference.topk import block_rows, row_blocks

# Values of a block of one expert, and tokens whose router runs at once.
_BLOCK, _ROUTED = 1 << 20, 4096
# Tokens that are named of an expert.
_NAMED = 10


def routing(stream: TokenStream, part: LayerModules) -> torch.Tensor:
    """What the outputs of a layer's experts are multiplied by at every token, the shared ones last, [tokens, experts + 1].

    Attention has been added to the stream, the FFN has not.
    """
    assert part.mixture is not None
    blocks = row_blocks(len(stream.residual), _ROUTED)
    return torch.cat([part.mixture.weights(stream.ffn_input(part, *block)).cpu() for block in blocks])


def collect_experts(
    stream: TokenStream,
    layer: int,
    part: LayerModules,
    pool: Workers,
    k: int,
    tokens: TokenFeatures,
    ids: np.ndarray,
    *,
    last: bool,
) -> TopActivating:
    """The top activating tokens of every expert's features among the tokens that the router gives it, expert by expert.

    Means and deviations are those over these tokens. What the experts write is added to the stream, but behind the `last`
    layer.
    """
    weights = routing(stream, part)
    written = None if last else torch.zeros_like(stream.residual)
    found: list[TopActivating] = []
    assert part.mixture is not None
    for expert, begin, end in part.mixture.experts.spans(part.features):
        factors = weights[:, expert]
        at = factors.nonzero()[:, 0]
        run = _Run(stream, part, (begin, end), factors, at)
        collector = LayerCollector(layer, k, tokens, *run.statistics(pool), first=begin)
        pool.each(partial(run.block, collector, written), run.blocks)
        found.append(collector.finish(ids[at.numpy()] if len(at) else ids[:1]))
        del run
    if written is not None:
        for block in row_blocks(len(written), _ROUTED):
            stream.add_ffn(part, *block, written[slice(*block)].to(stream.device, stream.dtype))
    tops = (np.concatenate(arrays) for arrays in zip(*map(_fields, found), strict=True))
    return ExpertTops(*tops, **_given(weights[:, : len(found)], ids))


@dataclass(frozen=True)
class ExpertTops(TopActivating):
    """TopActivating of a layer of experts, and what the router gives each: how many tokens, with which weight in the mean, and
    the tokens of most weight [experts, 10], ids of -1 behind the last; shared experts come last.
    """

    expert_count: np.ndarray
    expert_weight: np.ndarray
    expert_ids: np.ndarray


def _given(weights: torch.Tensor, ids: np.ndarray) -> dict[str, np.ndarray]:
    given = weights != 0
    count = given.sum(0)
    total = weights.double().sum(0)
    top = weights.abs().topk(min(_NAMED, len(weights)), dim=0)
    best = np.where(top.values.t().numpy() > 0, ids[top.indices.t().numpy()], -1)
    return {
        "expert_count": count.numpy(),
        "expert_weight": (total / count.clamp_min(1)).numpy().astype(np.float32),
        "expert_ids": best.astype(np.int32),
    }


class _Run:
    """One expert over the tokens numbered `at`: its features are those of `span`."""

    def __init__(
        self,
        stream: TokenStream,
        part: LayerModules,
        span: tuple[int, int],
        factors: torch.Tensor,
        at: torch.Tensor,
    ) -> None:
        self._stream, self._part, self._factors, self._at = stream, part, factors, at
        begin, end = span
        modules: Any = part
        self._gate, self._up = (_matrix(m, begin, end) for m in (modules.gate, modules.up))
        self._down = modules.down.rows(begin, end)
        self._bias = _bias_rows(modules, begin, end)
        self.blocks = row_blocks(len(at), block_rows(end - begin, _BLOCK))

    def _inputs(self, block: tuple[int, int]) -> torch.Tensor:
        return self._stream.ffn_inputs(self._part, self._at[slice(*block)])

    def statistics(self, pool: Workers) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each feature's gate value over the expert's tokens; NaN where it has none."""
        (weight, bias) = self._gate
        if not len(self._at):
            return torch.full((len(weight),), torch.nan), torch.full((len(weight),), torch.nan)
        moments = Moments(self._inputs(self.blocks[0]).float().mean(0).cpu())
        for sums in pool.map(lambda block: moments.sums(self._inputs(block).float()), self.blocks):
            moments.add(sums)
        mean, std = moments.project(weight.float())
        return (mean if bias is None else mean + bias.float().cpu()), std

    def block(self, collector: LayerCollector, written: torch.Tensor | None, block: tuple[int, int]) -> None:
        """Run a block of the expert's tokens: `collector` sees the values, `written` gets what they write."""
        part, at = self._part, self._at[slice(*block)]
        assert part.mixture is not None
        x = self._inputs(block)
        gate, up = (torch.nn.functional.linear(x, *matrix) for matrix in (self._gate, self._up))
        factors = self._factors[at].to(x)
        act = part.mixture.active(gate, up, factors[:, None])
        collector.add(block[0], gate.float().cpu(), act.float().cpu(), at.numpy())
        if written is not None:
            out = act @ self._down
            written[at] += (out if self._bias is None else out + factors[:, None] * self._bias).float().cpu()


def _matrix(module: Any, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of gate or up with their biases."""
    return module.read(begin, end), None if module.bias is None else module.bias[begin:end]


def _bias_rows(part: Any, begin: int, end: int) -> torch.Tensor | None:
    """What an expert's own bias writes, [hidden]; None where it has none."""
    biases = part.down.biases()
    experts = part.mixture.experts
    return None if biases is None or begin >= experts.routed else biases[experts.expert_of(begin)]


def _fields(top: TopActivating) -> tuple[np.ndarray, ...]:
    return top.ids, top.scores, top.activations, top.mean, top.std
