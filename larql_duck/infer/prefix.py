"""Prompts run up to their last token, so that many continuations of the last position cost one token each."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.infer.batch import Batch
from larql_duck.infer.interventions import replace_input

if TYPE_CHECKING:
    from transformers import DynamicCache

    from larql_duck.infer.anatomy import Anatomy
    from larql_duck.infer.engine import Engine


@dataclass(frozen=True)
class Prefix:
    """n prompts whose positions before the last are in `cache`; the last tokens wait in ids.

    ids and positions are int64 [n, 1]; mask is bool [n, t - 1], None where nothing is padded.
    """

    engine: Engine
    cache: DynamicCache
    mask: torch.Tensor | None
    ids: torch.Tensor
    positions: torch.Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def step(self, rows: torch.Tensor | None = None, *, first_layer: int = 0) -> torch.Tensor:
        """Logits after the last token, f32 [rows, vocab]; this prefix stays as it is.

        rows int64 picks prompts, each as often as it is named. Layers below first_layer keep the whole batch's
        cache, for passes that skip them.
        """
        return self.advanced(rows, first_layer=first_layer)[0]

    def advanced(
        self, rows: torch.Tensor | None = None, *, first_layer: int = 0
    ) -> tuple[torch.Tensor, DynamicCache]:
        """The logits of `step` and the cache that then holds the last token too."""
        ids, positions, mask = self.ids, self.positions, self.mask
        if rows is not None:
            ids, positions = ids[rows], positions[rows]
            mask = None if mask is None else mask[rows]
        cache = fork(self.cache, rows, first_layer)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
        logits = self.engine.run(ids, mask, positions, cache)
        return logits, cache

    def then(self, tokens: torch.Tensor, rows: torch.Tensor, cache: DynamicCache) -> Prefix:
        """A prefix of the picked rows with their last token consumed (in `cache`) and `tokens` waiting instead."""
        mask = None
        if self.mask is not None:
            mask = self.mask[rows]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return Prefix(self.engine, cache, mask, tokens[:, None], self.positions[rows] + 1)


def prefill(engine: Engine, batch: Batch) -> Prefix:
    """The batch's Prefix: tokens that all prompts share at their start run once, for the whole batch.

    Sharing puts padding between the shared tokens and the rest, so it is left out where a padded batch outgrows a
    sliding window (the window counts columns).
    """
    n, t = batch.ids.shape
    shared = batch.common_prefix() if n > 1 else 0
    window = engine.window
    if batch.padded and window is not None and t > window:
        shared = 0
    cache = engine.new_cache()
    device = batch.ids.device
    if shared:
        row = batch.ids[:1, t - batch.lengths[0] :][:, :shared]
        engine.run_body(row, None, torch.arange(shared, device=device)[None, :], cache)
        cache = fork(cache, torch.zeros(n, dtype=torch.int64, device=device))
        rest = [batch.row(i)[shared:] for i in range(n)]
        batch = _rest(rest, shared, device)
    middle, last = batch.ids[:, :-1], batch.ids[:, -1:]
    mask = batch.mask[:, :-1] if batch.padded else None
    if mask is not None and shared:
        mask = torch.cat([mask.new_ones(n, shared), mask], dim=1)
    if middle.shape[1]:
        engine.run_body(middle, mask, batch.positions[:, :-1], cache)
    return Prefix(engine, cache, mask, last, batch.positions[:, -1:])


def _rest(rows: Sequence[Sequence[int]], shared: int, device: torch.device) -> Batch:
    from larql_duck.infer.batch import pad

    batch = pad(rows, device=device)
    return Batch(batch.ids, batch.mask, batch.positions + shared, batch.lengths)


def fork(cache: DynamicCache, rows: torch.Tensor | None = None, first_layer: int = 0) -> DynamicCache:
    """A cache that can grow without touching `cache`; with `rows`, its prompts picked (each as often as named).

    Layers below first_layer are not picked from, only referred to.
    """
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    if rows is not None:
        for layer in out.layers[first_layer:]:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
    return out


@contextlib.contextmanager
def starting_at(anatomy: Anatomy, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """A context in which a forward pass skips the layers below `layer` and enters it with `hidden` [n, t, hidden].

    Everything else of the pass (masks, positions, later layers, norm, head) is the model's own.
    """
    skipped = [parts.block for parts in anatomy.layers[:layer]]
    handle = anatomy.layers[layer].block.register_forward_pre_hook(
        lambda module, args, kwargs: replace_input(lambda _: hidden, args, kwargs), with_kwargs=True
    )
    for block in skipped:
        block.forward = _pass_through
    try:
        yield
    finally:
        handle.remove()
        for block in skipped:
            del block.forward


def _pass_through(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]
