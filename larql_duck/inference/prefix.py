"""Prompts run up to their last token, so that many continuations of the last position cost one token each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine, Prompts

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class Prefix:
    """n prompts whose positions before the last are in `cache`; the last tokens wait in ids.

    ids and positions are int64 [n, 1]; mask is bool [n, t - 1], None where nothing is padded. before int64 [n, t - 1]
    are the tokens in the cache, None where nobody will need them: rotary frequencies do not change with the length.
    """

    engine: Engine
    cache: DynamicCache
    mask: torch.Tensor | None
    ids: torch.Tensor
    positions: torch.Tensor
    before: torch.Tensor | None = None

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
        cache = fork_cache(self.cache, rows, first_layer)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
        logits = self.engine.run(ids, mask, positions, cache)
        return logits, cache

    def then(self, tokens: torch.Tensor, rows: torch.Tensor, cache: DynamicCache) -> Prefix:
        """A prefix of the picked rows with their last token consumed (in `cache`) and `tokens` waiting instead.

        It is computed anew where a text longer by one token has other rotary frequencies.
        """
        mask = before = None
        if self.mask is not None:
            mask = self.mask[rows]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = self.positions[rows] + 1
        if self.before is not None:
            before = torch.cat([self.before[rows], self.ids[rows]], dim=1)
            chosen = self.engine.rope.chosen
            if not torch.equal(chosen(positions[:, 0] + 1), chosen(positions[:, 0])):
                real = torch.ones_like(before, dtype=torch.bool) if mask is None else mask
                texts = [
                    [*row[kept].tolist(), int(t)] for row, kept, t in zip(before, real, tokens, strict=True)
                ]
                return prefill(self.engine, pad(texts, device=before.device))
        return Prefix(self.engine, cache, mask, tokens[:, None], positions, before)


# What starting one more pass costs, in tokens of a running one (measured on CPUs; it only decides how to group).
_PASS = 24


@dataclass(frozen=True)
class Head:
    """A beginning that many prompts share, run once: its token ids, and the cache that holds their keys and values."""

    ids: tuple[int, ...]
    cache: DynamicCache


def run_head(engine: Engine, ids: Sequence[int], begun: Head | None = None) -> Head | None:
    """The Head of these token ids; None where rotary frequencies follow the length, so that nothing can be shared.

    What they share with the beginning of `begun` is taken from it.
    """
    if engine.rope.modules or not ids:
        return None
    shared = 0
    if begun is not None:
        # One token at least is run.
        shared = min(common_length(begun.ids, ids), len(ids) - 1)
    if begun is None or not shared:
        return _shared(engine, ids, torch.tensor([len(ids)], device=engine.device))
    cache = fork_cache(begun.cache)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :shared], layer.values[:, :, :shared]
    row = torch.tensor([list(ids[shared:])], device=engine.device)
    positions = torch.arange(shared, len(ids), device=engine.device)[None, :]
    engine.run_body(row, None, positions, cache)
    return Head(tuple(ids), cache)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common at their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Bytes of the heads that are kept.
_HEADS = 1 << 28


class Heads:
    """The heads of an engine's prompts, each run once and kept while there is room."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._heads: dict[tuple[int, ...], Head | None] = {}
        self._n_tokens = 0

    def of(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[Head | None]:
        """The head of each prompt, given the text that it begins with and its token ids.

        None where the tokens of the beginning alone are others than those that it has in the prompt.
        """
        return [self._head(begin) for begin in self.beginnings(texts, ids)]

    def beginnings(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The token ids of those heads; empty where there is none."""
        different = list(dict.fromkeys(texts))
        encoded = dict(zip(different, self._engine.tokenizer.encode_batch(different), strict=True))
        out = []
        for text, row in zip(texts, ids, strict=True):
            begin = tuple(encoded[text])
            shared = len(begin) < len(row) and tuple(row[: len(begin)]) == begin
            out.append(begin if text and shared else ())
        return out

    def _head(self, ids: tuple[int, ...]) -> Head | None:
        if ids not in self._heads:
            if self._n_tokens + len(ids) > _HEADS // self._engine.cache_bytes:
                self._heads.clear()
                self._n_tokens = 0
            known = (head for head in self._heads.values() if head is not None)
            nearest = max(known, key=lambda head: common_length(head.ids, ids), default=None)
            self._heads[ids] = run_head(self._engine, ids, nearest)
            self._n_tokens += len(ids)
        return self._heads[ids]


def prefill(engine: Engine, prompts: Prompts, heads: Sequence[Head | None] | None = None) -> Prefix:
    """The prompts' Prefix. Tokens that all prompts share at their start run once; then prompts of similar length run
    together, so that little is computed for padding. The caches are joined, padded on the left.

    heads gives each prompt the Head that it begins with, whose tokens are not run again (None: it has none).
    """
    batch = engine.batch(prompts)
    n = len(batch)
    rows = [batch.row(i) for i in range(n)]
    device = batch.ids.device
    lengths = torch.tensor(batch.lengths, device=device)
    if heads is None or all(head is None for head in heads):
        # Beginnings are the same only where the rotary frequencies are.
        alike = len(engine.rope.chosen(lengths).unique(dim=0)) == 1
        shared = batch.common_prefix() if n > 1 and alike else 0
        first = _shared(engine, rows[0][:shared], lengths[:1]) if shared else None
        heads = [first] * n
    begun = [0 if head is None else len(head.ids) for head in heads]
    middles = [row[start:-1] for row, start in zip(rows, begun, strict=True)]
    longest_head, longest = max(begun), max(len(m) for m in middles)
    # Padding inside a group stands between a head and the rest: a sliding window, which counts columns, must not reach
    # across it.
    exact = engine.window is not None and longest_head + longest > engine.window
    mask = torch.zeros(n, longest_head + longest, dtype=torch.bool, device=device)
    parts: list[tuple[list[int], DynamicCache]] = []
    for group in _groups([len(m) for m in middles], begun, exact):
        width, start = max(len(middles[i]) for i in group), max(begun[i] for i in group)
        cache, real = _begun(engine, [heads[i] for i in group], start)
        if width:
            padded = pad([middles[i] for i in group], device=device)
            real = torch.cat([real, padded.mask], dim=1)
            positions = padded.positions + torch.tensor([begun[i] for i in group], device=device)[:, None]
            engine.run_body(
                padded.ids, None if bool(real.all()) else real, positions, cache, lengths=lengths[group]
            )
        mask[torch.tensor(group, device=device), longest_head + longest - start - width :] = real
        parts.append((group, cache))
    if len(parts) > 1:
        cache = _joined(engine, parts, n, longest_head + longest)
    else:
        group, cache = parts[0]
        if group != list(range(n)):  # back from the order of lengths
            cache = fork_cache(cache, torch.tensor(group, device=device).argsort())
    last = torch.tensor([[row[-1]] for row in rows], device=device)
    before = None
    if engine.rope.modules:
        before = torch.zeros(mask.shape, dtype=torch.int64, device=device)
        before[mask] = torch.tensor([token for row in rows for token in row[:-1]], device=device)
    positions = lengths[:, None] - 1
    return Prefix(engine, cache, None if bool(mask.all()) else mask, last, positions, before)


def _shared(engine: Engine, ids: Sequence[int], lengths: torch.Tensor) -> Head:
    """The head of tokens that all prompts of a batch begin with; lengths int64 [1] are those of the whole prompts."""
    cache = engine.new_cache()
    row = torch.tensor([list(ids)], device=engine.device)
    positions = torch.arange(len(ids), device=engine.device)[None, :]
    engine.run_body(row, None, positions, cache, lengths=lengths)
    return Head(tuple(ids), cache)


def _groups(lengths: Sequence[int], begun: Sequence[int], exact: bool) -> list[list[int]]:
    """Row numbers in groups that run together: `exact` ones have heads of one length and middles of one length."""
    if not exact:
        return cheapest_groups(lengths)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, key in enumerate(zip(begun, lengths, strict=True)):
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _begun(engine: Engine, heads: Sequence[Head | None], length: int) -> tuple[DynamicCache, torch.Tensor]:
    """A cache of one row a head, padded on the left to `length`, and which of its positions are real, bool."""
    device = engine.device
    real = torch.zeros(len(heads), length, dtype=torch.bool, device=device)
    groups: dict[int, tuple[Head, list[int]]] = {}
    for i, head in enumerate(heads):
        if head is not None:
            groups.setdefault(id(head), (head, []))[1].append(i)
            real[i, length - len(head.ids) :] = True
    parts = [
        (rows, fork_cache(head.cache, torch.zeros(len(rows), dtype=torch.int64, device=device)))
        for head, rows in groups.values()
    ]
    if not parts:
        return engine.new_cache(), real
    if len(parts) == 1 and len(parts[0][0]) == len(heads):
        return parts[0][1], real
    return _joined(engine, parts, len(heads), length), real


def cheapest_groups(lengths: Sequence[int], *, start: int = _PASS) -> list[list[int]]:
    """Row numbers in groups that run together: the cheapest partition by length, where one more group costs as much as
    `start` tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    by_length: dict[int, list[int]] = {}
    for i in order:
        by_length.setdefault(lengths[i], []).append(i)
    steps = list(by_length.items())
    # best[k]: cost of the first k lengths, and where their last group starts.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(steps) + 1):
        width, count, options = steps[end - 1][0], 0, []
        for begin in range(end - 1, -1, -1):
            count += len(steps[begin][1])
            options.append((best[begin][0] + count * width + start, begin))
        best.append(min(options))
    out: list[list[int]] = []
    end = len(steps)
    while end:
        begin = best[end][1]
        out.append([i for _, rows in steps[begin:end] for i in rows])
        end = begin
    return out[::-1]


def _joined(
    engine: Engine, parts: Sequence[tuple[Sequence[int], DynamicCache]], n: int, length: int
) -> DynamicCache:
    """One cache of n rows and `length` positions from those of the groups, each put at the right."""
    out = engine.new_cache()
    filled = [(torch.tensor(group), cache) for group, cache in parts if len(cache.layers)]
    for layer in range(engine.n_layers):
        sample = filled[0][1].layers[layer].keys
        shape = (n, sample.shape[1], length)
        keys = sample.new_zeros(*shape, sample.shape[3])
        values = sample.new_zeros(*shape, filled[0][1].layers[layer].values.shape[3])
        for group, cache in filled:
            layer_cache = cache.layers[layer]
            index = group.to(sample.device)
            keys[index, :, length - layer_cache.keys.shape[2] :] = layer_cache.keys
            values[index, :, length - layer_cache.values.shape[2] :] = layer_cache.values
        out.update(keys, values, layer)
    return out


def fork_cache(cache: DynamicCache, rows: torch.Tensor | None = None, first_layer: int = 0) -> DynamicCache:
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
