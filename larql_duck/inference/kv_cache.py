"""Caches of keys, values and states that can be forked: what one fork adds no other sees. Keys and values grow uncopied."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

# Positions that a buffer has room for beyond those that it was made for.
ROOM = 24


@dataclass
class _Buffer:
    """Keys and values of n rows [n, heads, room, width], of which the first `used` positions are taken by somebody."""

    keys: torch.Tensor
    values: torch.Tensor
    used: int


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, as DynamicLayer has them; they lie in a buffer that has room for more.

    Copies of a layer share its buffer: the first to grow takes the room behind them, any other moves to a buffer of its own.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _buffer: _Buffer | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [n, heads, t, width] with these behind them."""
        if torch.is_grad_enabled():
            # What is written in place cannot be differentiated.
            grown: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states)
            self._buffer = None
            return grown
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        buffer = self._buffer
        if buffer is None or buffer.used != start or buffer.keys.shape[2] < stop or _sealed(buffer.keys):
            buffer = _Buffer(_wider(key_states, stop + ROOM), _wider(value_states, stop + ROOM), stop)
            if start:
                buffer.keys[:, :, :start], buffer.values[:, :, :start] = self.keys, self.values
            self._buffer = buffer
        buffer.keys[:, :, start:stop], buffer.values[:, :, start:stop] = key_states, value_states
        buffer.used = stop
        self.keys, self.values = buffer.keys[:, :, :stop], buffer.values[:, :, :stop]
        return self.keys, self.values

    def hold(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Hold the first `length` positions of these tensors, in whose others there is room for more."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffer = _Buffer(keys, values, length)
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]


def _sealed(tensor: torch.Tensor) -> bool:
    """Whether a tensor cannot be written to here."""
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def _wider(like: torch.Tensor, length: int) -> torch.Tensor:
    n, heads, _, width = like.shape
    return like.new_empty(n, heads, length, width)


class StateLayer(LinearAttentionLayer):
    """The states of a layer that keeps a summary of what it has read: they are replaced, never written into."""

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> torch.Tensor:
        """The last columns that were read, with these behind them."""
        width = conv_kernel_size or self.conv_kernel_size[state_idx] or conv_states.shape[-1]
        before = self.conv_states[state_idx]
        if before is None:
            whole = torch.nn.functional.pad(conv_states, (max(width - conv_states.shape[-1], 0), 0))
        else:
            whole = torch.cat([before, conv_states], -1)
        # A single token is put into the state in place: what a pass goes on with is not its place.
        self.conv_states[state_idx] = whole[..., -width:].clone()
        self.conv_kernel_size[state_idx] = width
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        return whole

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """The state, which is this one from now on."""
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states

    def picked(self, rows: torch.Tensor | None) -> None:
        """Have states of its own: those of these rows, each as often as named (None: of all)."""
        # A wider one takes part of the next token's place: every dict is the layer's own, too.
        for name in ("conv_states", "recurrent_states"):
            states = getattr(self, name).items()
            setattr(self, name, {i: None if t is None else _rows(t, rows) for i, t in states})
        for name in _FLAGS:
            setattr(self, name, dict(getattr(self, name)))

    def placed(self, parts: Sequence[tuple[torch.Tensor, StateLayer, torch.Tensor | None]], n: int) -> None:
        """Take the states of n rows: of each part its rows, or those picked, at these numbers; those that have read nothing
        begin at zero.
        """
        for own in (layer for _, layer, _ in parts):
            for name in _FLAGS:
                setattr(self, name, getattr(self, name) | {i: v for i, v in getattr(own, name).items() if v})
            for name in ("conv_states", "recurrent_states"):
                states = getattr(self, name)
                for i, like in getattr(own, name).items():
                    if like is not None and states[i] is None:
                        states[i] = like.new_zeros(n, *like.shape[1:])
        for at, own, rows in parts:
            for name in ("conv_states", "recurrent_states"):
                for i, state in getattr(own, name).items():
                    if state is not None:
                        getattr(self, name)[i][at.to(state.device)] = _picked(state, rows)


_FLAGS = (
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)


def _rows(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return tensor.clone() if rows is None else tensor[rows.to(tensor.device)]


def _picked(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """These rows, not copied where all are wanted or one stands for all."""
    return tensor if rows is None or len(tensor) == 1 else tensor[rows.to(tensor.device)]


class StateAndGrowingLayer(StateLayer, GrowingLayer):
    """A layer that has both."""

    is_compileable = False

    def __init__(self, number_of_states: int = 1, **_: Any) -> None:
        GrowingLayer.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Make room for keys and values; states are taken as they come."""
        GrowingLayer.lazy_initialization(self, *args, **kwargs)


def new_cache(config: Any = None) -> DynamicCache:
    """An empty cache. It keeps every position, so that the mask alone decides what a sliding window hides.

    config is the model's: layers that keep states have room for them.
    """
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    if config is not None and keeps_states(config):
        cache.layers = [_own(layer) for layer in DynamicCache(config=config).layers]
        cache.layer_class_to_replicate = None
        if config.model_type == "minimax":
            cache.__class__ = _minimax()
    return cache


def _minimax() -> Any:
    """The class of MiniMax's caches, which its layers ask by names of their own, on the layers that caches have here."""
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    class StatesOfMiniMax(MiniMaxCache):
        def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
            layer = self.layers[layer_idx]
            layer.update_recurrent_state(linear_cache)
            layer.has_previous_state[0] = True

        def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
            state: torch.Tensor | None = self.layers[layer_idx].recurrent_states[0]
            return state

        def __len__(self) -> int:
            return len(self.layers)

    return StatesOfMiniMax


def keeps_states(config: Any) -> bool:
    """Whether layers of a model of this config keep a state beside keys and values or in their place."""
    kinds = getattr(config, "layer_types", None)
    if not isinstance(kinds, list) or not set(kinds) & _STATES:
        return False
    return any(isinstance(layer, LinearAttentionLayer) for layer in DynamicCache(config=config).layers)


# What transformers calls layers that may keep states.
_STATES = frozenset({"conv", "linear_attention", "hybrid", "hybrid_sliding"})


def _own(layer: Any) -> Any:
    if isinstance(layer, LinearAttentionLayer):
        kind: Any = StateAndGrowingLayer if isinstance(layer, DynamicLayer) else StateLayer
        return kind(number_of_states=layer.number_of_states)
    return GrowingLayer() if isinstance(layer, DynamicLayer) else layer


def holds_keys(layer: Any) -> bool:
    """Whether a layer of a cache holds keys and values of some positions."""
    return isinstance(layer, GrowingLayer) and layer.is_initialized and bool(layer.get_seq_length())


def holds_anything(cache: DynamicCache) -> bool:
    """Whether somebody has read into the cache."""
    return any(
        holds_keys(layer) or (isinstance(layer, StateLayer) and any(layer.has_previous_state.values()))
        for layer in cache.layers
    )


def fork_cache(cache: DynamicCache, rows: torch.Tensor | None = None, first_layer: int = 0) -> DynamicCache:
    """A cache that can grow without touching `cache`; with `rows`, its prompts picked (each as often as named).

    Layers below first_layer are not picked from, only referred to.
    """
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in out.layers[first_layer:]:
        if isinstance(layer, StateLayer):
            layer.picked(rows)
        if rows is not None and holds_keys(layer):
            length = layer.get_seq_length()
            wider = [
                _wider(t[:1].expand(len(rows), -1, -1, -1), length + ROOM) for t in (layer.keys, layer.values)
            ]
            for whole, own in zip(wider, (layer.keys, layer.values), strict=True):
                # One row as often as asked for needs no index.
                whole[:, :, :length] = own if len(own) == 1 else own[rows]
            layer.hold(*wider, length)
    return out


def one_row(cache: DynamicCache, row: int, real: torch.Tensor) -> DynamicCache:
    """The cache of one of its prompts, at its real positions, bool [t]."""
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in out.layers:
        if isinstance(layer, StateLayer):
            layer.picked(torch.tensor([row]))
        if holds_keys(layer):
            layer.keys, layer.values = (t[row : row + 1, :, real] for t in (layer.keys, layer.values))
            # That of all prompts is not kept for one.
            layer._buffer = None
    return out


def first_positions(cache: DynamicCache, length: int) -> DynamicCache:
    """A cache of the first positions alone, which may be forked but not grown; it must keep no states."""
    out = fork_cache(cache)
    for layer in out.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
    return out


def join_caches(
    out: DynamicCache,
    parts: Sequence[tuple[Sequence[int], DynamicCache, torch.Tensor | None]],
    n: int,
    length: int,
    *,
    room: int = ROOM,
    spent: bool = False,
) -> DynamicCache:
    """The empty cache `out` with n rows and `length` positions from those of the parts, each put at the right: of each its
    rows, or those picked (int64, each as often as named).

    It has room for so many positions more. spent: the parts are used up on the way, so that they and `out` are never whole in
    memory together.
    """
    filled = [(torch.tensor(group), cache, rows) for group, cache, rows in parts if holds_anything(cache)]
    layers = []
    for number, sample in enumerate(filled[0][1].layers):
        layer: Any = out.layers[number] if out.layers else GrowingLayer()
        if isinstance(layer, StateLayer):
            layer.placed([(group, cache.layers[number], rows) for group, cache, rows in filled], n)
        if holds_keys(sample):
            own = []
            for name in ("keys", "values"):
                like = getattr(sample, name)
                # What nobody fills is never looked at, but must be a number.
                whole = like.new_zeros(n, like.shape[1], length + room, like.shape[3])
                for group, cache, rows in filled:
                    part = getattr(cache.layers[number], name)
                    start, index = length - part.shape[2], group.to(like.device)
                    whole[index, :, start:length] = _picked(part, rows)
                own.append(whole)
            layer.hold(own[0], own[1], length)
        layers.append(layer)
        if spent:
            for _, cache, _ in filled:
                cache.layers[number] = None
    out.layers = layers
    return out


def bytes_of(cache: DynamicCache) -> tuple[int, int]:
    """Bytes of the keys and values that a cache holds, and of its states."""
    keys = states = 0
    for layer in cache.layers:
        if holds_keys(layer):
            keys += sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
        if isinstance(layer, StateLayer):
            own = (*layer.conv_states.values(), *layer.recurrent_states.values())
            states += sum(t.numel() * t.element_size() for t in own if t is not None)
    return keys, states
