"""Caches of keys and values that grow without being copied, and that can be forked: what one fork adds no other sees."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

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


def new_cache() -> DynamicCache:
    """An empty cache. It keeps every position, so that the mask alone decides what a sliding window hides."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


def fork_cache(cache: DynamicCache, rows: torch.Tensor | None = None, first_layer: int = 0) -> DynamicCache:
    """A cache that can grow without touching `cache`; with `rows`, its prompts picked (each as often as named).

    Layers below first_layer are not picked from, only referred to.
    """
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    if rows is not None:
        for layer in out.layers[first_layer:]:
            if layer.is_initialized and layer.get_seq_length():
                length = layer.get_seq_length()
                wider = [
                    _wider(t[:1].expand(len(rows), -1, -1, -1), length + ROOM)
                    for t in (layer.keys, layer.values)
                ]
                for whole, own in zip(wider, (layer.keys, layer.values), strict=True):
                    # One row as often as asked for needs no index.
                    whole[:, :, :length] = own if len(own) == 1 else own[rows]
                layer.hold(*wider, length)
    return out
