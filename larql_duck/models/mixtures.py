"""Mixtures of experts as one wide FFN: every expert's features in one gate, up and down, of which the router's choice runs.

transformers keeps the experts of a layer in one module that gets the router's choice. That module, and the experts that
always run, make room for gate, up and down matrices of the whole layer, so that a mixture is hooked, edited and read like any
other FFN. Router and block stay transformers' own: the block runs with parts that note the choice and write unit vectors, whose
lengths in what it gives are the factors of either part.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from larql_duck.errors import ModelError
from larql_duck.models.experts import Experts
from larql_duck.models.family import Family

# What an FFN's matrices are called in families that have experts: gate, up, down.
_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_ACT = "act_fn"
# Blocks that give the router's choice beside the hidden states, which nobody reads.
_TUPLES = ("GptOssMLP", "Llama4TextMoe")
# What configs call how many experts run for a token.
_PICKED = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "moe_top_k", "top_k_experts")

Read: TypeAlias = Callable[[int, int], torch.Tensor]
FfnNames: TypeAlias = tuple[str, str, str, str]
"""What gate, up, down and the activation of a layer's FFN are called."""


class RoutersChoice:
    """What the router chose in the pass that runs: weights [..., experts] and the shared experts' factor [..., 1]."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def weights(self) -> torch.Tensor | None:
        """The factor of each expert's output, 0 for those that do not run; None outside of a pass."""
        return getattr(self._local, "weights", None)

    @weights.setter
    def weights(self, value: torch.Tensor | None) -> None:
        self._local.weights = value


class _Listening(nn.Module):
    """Stands where the experts stood: notes the router's choice and writes the first unit vector."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count, self._local = count, threading.local()

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        index = next(a for a in given if not a.is_floating_point())
        weights = next(a for a in given if a.is_floating_point() and a.shape == index.shape)
        # Some routers name an expert that is none for tokens that no expert gets.
        chosen = weights.new_zeros(len(index), self._count + 1).scatter_add_(1, index, weights)
        self._local.chosen = chosen[:, : self._count]
        return _unit(hidden, 0)

    def taken(self) -> torch.Tensor:
        """The weights [tokens, experts] of the choice that was noted last."""
        chosen: torch.Tensor = self._local.chosen
        del self._local.chosen
        return chosen


class _Always(nn.Module):
    """Stands where the shared experts stood: writes the second unit vector."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return _unit(hidden, 1)


def _unit(like: torch.Tensor, axis: int) -> torch.Tensor:
    out = torch.zeros_like(like)
    out[..., axis] = 1
    return out


class ExpertRows(nn.Linear):
    """Gate or up of all experts of a layer, weight [features, hidden]; the rows of experts that do not run give 0.

    read gives weights of a span of features where they are not held: one expert's at a time.
    """

    read: Read | None = None

    def __init__(
        self, features: int, hidden: int, experts: Experts, choice: RoutersChoice, bias: bool
    ) -> None:
        super().__init__(hidden, features, bias=bias, device="meta")
        self._experts, self._choice = experts, choice

    def products(self, x: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """The products [n, end - begin] of x [n, hidden] with the rows of a span of features."""
        weight = self.weight[begin:end] if self.read is None else self.read(begin, end)
        return nn.functional.linear(x, weight, None if self.bias is None else self.bias[begin:end])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The products [..., features] of x [..., hidden]."""
        weights = self._choice.weights
        if weights is None:
            return nn.functional.linear(x, self.weight, self.bias)
        rows, flat = x.flatten(0, -2), x.new_zeros(x.shape[:-1].numel(), self.out_features)
        for begin, end, at in _running(self._experts, weights.flatten(0, -2), self.out_features):
            flat[at, begin:end] = self.products(rows[at], begin, end)
        return flat.view(*x.shape[:-1], -1)


class ExpertColumns(nn.Linear):
    """Down of all experts of a layer, weight [hidden, features]: columns that nothing opens are not read.

    read gives what a span of features writes, [features, hidden], where weights are not held.
    """

    read: Read | None = None

    def __init__(self, features: int, hidden: int, experts: Experts, choice: RoutersChoice) -> None:
        super().__init__(features, hidden, bias=False, device="meta")
        # Gives experts' own biases [experts, hidden], which the block holds.
        self.biases: Callable[[], torch.Tensor | None] = lambda: None
        self._experts, self._choice = experts, choice

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """What the features of a span write when they are 1, [features, hidden]."""
        return self.weight[:, begin:end].t() if self.read is None else self.read(begin, end)

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        """What features that are active as in activation [..., features] write, [..., hidden]."""
        rows = activation.flatten(0, -2)
        if activation.is_meta:
            return nn.functional.linear(activation, self.weight)
        out = rows.new_zeros(len(rows), self.weight.shape[0])
        for _, begin, end in self._experts.spans(rows.shape[1]):
            part = rows[:, begin:end]
            at = part.any(-1).nonzero()[:, 0]
            if len(at):
                out[at] += part[at] @ self.rows(begin, end)
        weights, biases = self._choice.weights, self.biases()
        if biases is not None and weights is not None:
            out += weights.flatten(0, -2).to(biases.dtype) @ biases
        return out.view(*activation.shape[:-1], -1)


def _running(
    experts: Experts, weights: torch.Tensor, features: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """First feature, the one behind the last, and the rows of weights [rows, experts] for which an expert runs."""
    for expert, begin, end in experts.spans(features):
        if expert == experts.count:
            yield begin, end, torch.arange(len(weights), device=weights.device)
            continue
        at = weights[:, expert].nonzero()[:, 0]
        if len(at):
            yield begin, end, at


class Mixture:
    """How one layer's mixture runs as one FFN; `forward` stands in the place of its block's."""

    def __init__(self, block: Any, experts: Experts, names: FfnNames) -> None:
        inner = block.get_submodule(experts.inner)
        always = block.get_submodule(experts.always) if experts.always else None
        hidden = _hidden(inner)
        features = experts.routed + experts.shared
        self.block, self.experts, self.choice = block, experts, RoutersChoice()
        self._run, self.gated = block.forward, _gating(inner)
        self._tuples = type(block).__name__ in _TUPLES
        make = (features, hidden, experts, self.choice)
        self._gate, self._up, self._down, self._act = names
        for name in names[:2]:
            setattr(block, name, ExpertRows(*make, bias=experts.biased))
        down = ExpertColumns(*make)
        setattr(block, self._down, down)
        # Where experts join gate and up in a way of their own, that is the activation.
        setattr(block, self._act, _act_of(inner) if self.gated is None else nn.Identity())
        # What hooks see of the choice.
        block.routed = nn.Identity()
        listening = _Listening(experts.count)
        if experts.biased:
            listening.down_proj_bias = inner.down_proj_bias
            down.biases = lambda: self.biases
        self._listening = listening
        _put(block, experts.inner, listening)
        if always is not None:
            _put(block, experts.always, _Always())
        block.forward = self.forward
        block.mixture = _Held(self)

    @property
    def biases(self) -> torch.Tensor | None:
        """What each expert's down projection adds of its own, [experts, hidden]; None where they add nothing."""
        return getattr(self._listening, "down_proj_bias", None)

    def _opened(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        act: torch.Tensor = self.block.get_submodule(self._act)(gate)
        return act * up if self.gated is None else self.gated(act, up)

    def factors(self, weights: torch.Tensor, features: int) -> torch.Tensor:
        """Of weights [..., experts + 1] the factor of each feature, [..., features]."""
        experts = self.experts
        routed = weights[..., : experts.count].repeat_interleave(experts.width, -1)
        rest = weights[..., experts.count :].expand(*weights.shape[:-1], features - experts.routed)
        return torch.cat([routed, rest], -1)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What the outputs of experts are multiplied by at x [..., hidden], the shared ones last: [..., experts + 1]."""
        if x.is_meta:
            return x.new_ones(*x.shape[:-1], self.experts.count + 1)
        if self.experts.scaled:
            scores, *_ = self.block.router(x.flatten(0, -2))
            scores = scores.view(*x.shape[:-1], -1)
            return torch.cat([scores, torch.ones_like(scores[..., :1])], -1)
        out = self._run(x[None] if x.dim() == 2 else x)
        out = (out[0] if isinstance(out, tuple) else out).reshape(*x.shape[:-1], -1)
        chosen = self._listening.taken().view(*x.shape[:-1], -1)
        return torch.cat([chosen * out[..., :1], out[..., 1:2]], -1)

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> Any:
        """What the block gives for x [..., hidden]."""
        with self.running(x) as weights:
            activation = self.values(x, weights)[1]
            out: torch.Tensor = self.block.get_submodule(self._down)(activation)
            return (out, weights) if self._tuples else out

    def values(self, x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate values, and activations with the router's factors, [..., features], at x while it is `running`."""
        gate, up = (self.block.get_submodule(name)(x) for name in (self._gate, self._up))
        return gate, self.active(gate, up, self.factors(weights, gate.shape[-1]).to(gate.dtype))

    def active(self, gate: torch.Tensor, up: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Activations of gate and up values with the router's factors."""
        if gate.is_meta:
            return self._opened(gate, up)
        if self.experts.scaled:
            return self._opened(gate * factors, up * factors)
        return self._opened(gate, up) * factors

    def silent(self, x: torch.Tensor, *_: Any, **__: Any) -> Any:
        """What the block would give if nothing in it ran: zeros."""
        out = torch.zeros_like(x)
        return (out, out) if self._tuples else out

    @contextlib.contextmanager
    def running(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """A context in which gate and up run the experts that the router picks at x; it gives their weights."""
        weights: torch.Tensor = self.block.routed(self.weights(x))
        self.choice.weights = None if x.is_meta else weights[..., : self.experts.count]
        try:
            yield weights
        finally:
            self.choice.weights = None


class _Held:
    """A mixture that its block holds without taking it for a part of its own."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture


def mixture_in(block: nn.Module) -> Mixture | None:
    """The mixture that `install` made of the block; None where it is none."""
    held = getattr(block, "mixture", None)
    return held.mixture if isinstance(held, _Held) else None


class _Function(nn.Module):
    """An activation function that is no module, as one."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(x)


def _act_of(inner: Any) -> nn.Module:
    return inner.act_fn if isinstance(inner.act_fn, nn.Module) else _Function(inner.act_fn)


def _hidden(inner: Any) -> int:
    return int(inner.down_proj.shape[2 if _turned(inner) else 1])


def _scaled(inner: Any) -> bool:
    """Whether these are the experts of Llama 4, which read what the router has multiplied."""
    return type(inner).__name__ == "Llama4TextExperts"


def _turned(inner: Any) -> bool:
    return _scaled(inner) or bool(inner.is_transposed)


def _gating(inner: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Where experts join gate and up in a way of their own, that; None where it is activation(gate) times up."""
    from transformers.integrations.moe import _default_apply_gate

    if _scaled(inner) or type(inner)._apply_gate is _default_apply_gate:
        return None
    interleaved = not inner.is_concatenated

    def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        both = torch.stack([gate, up], -1).flatten(-2) if interleaved else torch.cat([gate, up], -1)
        out: torch.Tensor = inner._apply_gate(both)
        return out

    return gated


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)


# -- what a model has -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """One layer's experts, with the path of its block."""

    block: str
    inner: str
    always: str
    module: Any
    shared: int


def find_experts(layers: Mapping[str, nn.Module], name: str, config: Any) -> Experts | None:
    """The experts among a decoder's layers, as transformers builds them; None where there are none of this kind.

    ModelError where layers have unlike ones, which no number of features a layer says.
    """
    found = {i: part for i, layer in enumerate(layers.values()) if (part := _in_layer(layer))}
    if not found:
        return None
    kinds = {_described(part) for part in found.values()}
    if len(kinds) > 1:
        raise ModelError(f"model_type {name!r}: its layers have unlike experts, which is not read")
    [kind] = kinds
    picked = next((n for key in _PICKED if isinstance(n := getattr(config, key, None), int)), kind[0])
    return replace(Experts(tuple(found), *kind), picked=min(picked, kind[0]))


def _described(part: _Found) -> tuple[int, int, int, str, str, str, bool, bool, bool, bool]:
    inner = part.module
    width = int(inner.down_proj.shape[1 if _turned(inner) else 2])
    count = int(inner.down_proj.shape[0])
    scaled = _scaled(inner)
    kinds = (
        _turned(inner),
        not scaled and not inner.is_concatenated,
        not scaled and bool(inner.has_bias),
        scaled,
    )
    return (count, width, part.shared, part.block, part.inner, part.always, *kinds)


def _in_layer(layer: nn.Module) -> _Found | None:
    for path, module in layer.named_modules():
        if not _is_experts(module):
            continue
        block, _, inner = path.rpartition(".")
        always = [(n, m) for n, m in layer.get_submodule(block).named_children() if _matrices(m) is not None]
        if len(always) > 1:
            return None
        where, shared = (always[0][0], _matrices(always[0][1])) if always else ("", None)
        return _Found(block, inner, where, module, 0 if shared is None else shared[0].out_features)
    return None


def _is_experts(module: Any) -> bool:
    fused = getattr(module, "gate_up_proj", None)
    return (
        isinstance(fused, nn.Parameter)
        and fused.dim() == 3
        and (
            _scaled(module)
            or (hasattr(module, "is_transposed") and module.has_gate and not module.has_post_expert_norm)
        )
    )


def _matrices(module: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear] | None:
    """gate, up and down of an FFN whose parts have names that experts know; None of another module."""
    for names in _NAMES:
        found: list[Any] = [getattr(module, name, None) for name in names]
        if all(isinstance(part, nn.Linear) and part.bias is None for part in found):
            return found[0], found[1], found[2]
    return None


def names_in(layers: Sequence[nn.Module], experts: Experts) -> FfnNames:
    """What gate, up, down and the activation are called in layers that have no experts, else as most families call them."""
    for i, layer in enumerate(layers):
        if i in experts.layers:
            continue
        like = next((m for path, m in layer.named_modules() if path == experts.block), None)
        for names in _NAMES:
            if like is not None and all(hasattr(like, name) for name in names):
                act = next((n for n, _ in like.named_children() if n not in names), _ACT)
                return (*names, act)
    return (*_NAMES[0], _ACT)


def names_of(family: Family) -> FfnNames:
    """What gate, up, down and the activation are called in a family's mixtures."""
    assert family.experts is not None
    prefix = f"{family.experts.block}."
    gate, up, down = (
        n.removeprefix(prefix).removesuffix(".weight") for n in (family.gate, family.up, family.down)
    )
    return gate, up, down, family.act.removeprefix(prefix)


def install(layers: Sequence[nn.Module], experts: Experts, names: FfnNames) -> None:
    """Make one FFN of each mixture among `layers`, whose gate, up, down and activation have the `names`."""
    for i in experts.layers:
        Mixture(layers[i].get_submodule(experts.block), experts, names)
