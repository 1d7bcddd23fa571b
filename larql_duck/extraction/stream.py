"""One transformers layer in memory at a time, over many tokens that share a constant prefix.

The model's own forward pass is run once with every layer replaced by a recorder; it tells each layer's input for the
first tokens and the arguments (rotary angles, masks) that the layer would get. The layers are then run one by one on
all tokens, each with its weights loaded for just that time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import signature
from typing import Any, cast

import torch

from larql_duck.extraction.attention import one_query
from larql_duck.extraction.parallel import Workers
from larql_duck.inference.kv_cache import fork_cache, keeps_states, new_cache
from larql_duck.inference.loading import load_parameters, skeleton, unload_parameters
from larql_duck.inference.modules import LayerModules, find_modules
from larql_duck.inference.topk import row_blocks
from larql_duck.models.architecture import quiet
from larql_duck.models.expert_rows import feature_rows
from larql_duck.models.family import FfnMatrix
from larql_duck.models.source import MatrixRows, WeightSource, matrix_rows

LayerArguments = dict[str, Any]
# Tokens of a block, and numbers in one array of it, of which attention makes about ten: so few that they stay in the
# cache, as attention is many small steps.
_TOKENS, _NUMBERS = 256, 1 << 20
# What layers call the cache.
_CACHES = ("past_key_values", "layer_past", "past_key_value")


class _PrefixCache:
    """The part of transformers' cache interface that an attention module calls: one layer's prefix keys and values."""

    def __init__(self) -> None:
        self.prefix: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.prefix is None:
            self.prefix = keys, values
            return keys, values
        old_keys, old_values = (part.expand(len(keys), -1, -1, -1) for part in self.prefix)
        return torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)


class TokenStream:
    """Residuals of many tokens, each standing at the last position after the same prefix, layer by layer.

    `residual` is [tokens, hidden] f32 on the CPU, in `room` where it is given: the input of the next layer. Call
    `layer(i)` for i = 0, 1, ... in order. Positions before the last are the same for every token and are computed once.
    Layers run on `device`, a block of tokens at a time; branches are computed in `dtype`.
    """

    def __init__(
        self,
        source: WeightSource,
        prefix: Sequence[int],
        tokens: torch.Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        room: torch.Tensor | None = None,
        device: str = "cpu",
    ) -> None:
        self.source, self.dtype, self.device = source, dtype, device
        self.model = skeleton(source, device=device, dtype=dtype)
        # Explicit masks are made only by the eager implementation, and a mask that is there can be cut to one row.
        self.model.config._attn_implementation = "eager"
        self.parts = find_modules(self.model, source.family)
        self._read_experts()
        self._arguments: list[LayerArguments] = [{} for _ in self.parts.layers]
        self.n_prefix, self.prefix_ids = len(prefix), list(prefix)
        hidden = self.model.config.hidden_size
        self.block = max(64, min(_TOKENS, _NUMBERS // hidden))
        self.residual = torch.empty(len(tokens), hidden) if room is None else room
        self.prefix_residual: torch.Tensor
        self._read: torch.Tensor | None = None
        self._embed(list(prefix), tokens)

    def _read_experts(self) -> None:
        """Have mixtures read their experts' weights as these run, one at a time."""
        for i, part in enumerate(self.parts.layers):
            modules: Any = part
            if part.mixture is not None:
                modules.gate.read = partial(self._expert_weights, i, "gate")
                modules.up.read = partial(self._expert_weights, i, "up")
                modules.down.read = partial(self._expert_weights, i, "down")

    def _expert_weights(self, layer: int, which: FfnMatrix, begin: int, end: int) -> torch.Tensor:
        rows = feature_rows(self.source, layer, which, begin, end)
        return rows.to(self.device, self.dtype)

    def _embed(self, prefix: list[int], tokens: torch.Tensor) -> None:
        """Fill both residuals with the layers' first inputs, and note the arguments of every layer."""
        family = self.source.family
        # The embedding's rows are read as they are needed; whatever else stands outside of the layers is there.
        left_out = (family.head, family.embed)
        names = [n for n in self.source.names() if family.relative(n)[0] is None and n not in left_out]
        load_parameters(self.model, self.source, names, device=self.device, dtype=self.dtype)
        vectors = matrix_rows(self.source, family.embed)
        first: list[torch.Tensor] = []

        def recorder(i: int, positional: list[str], tuples: bool) -> Callable[..., Any]:
            def record(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                if i == 0:
                    first.append(hidden)
                self._arguments[i] = dict(zip(positional, args, strict=False)) | kwargs
                return (hidden, None) if tuples else hidden

            return record

        base = self.model.base_model
        originals = [(part.block, part.block.forward) for part in self.parts.layers]
        try:
            for i, part in enumerate(self.parts.layers):
                part.block.forward = recorder(
                    i, list(signature(part.block.forward).parameters)[1:], part.tuples
                )
            for start, stop in row_blocks(len(tokens), self.block):
                first.clear()
                with self._embedding_of([*prefix, *tokens[start:stop].tolist()], vectors):
                    rows = torch.arange(len(prefix), len(prefix) + stop - start)[:, None]
                    ids = torch.cat([torch.arange(len(prefix)).expand(len(rows), -1), rows], 1)
                    base(input_ids=ids.to(self.device), attention_mask=None, use_cache=False)
                self.residual[start:stop] = first[0][:, -1]
                if start == 0:
                    self.prefix_residual = first[0][:1, :-1].float().clone()
                    # One row's arguments serve any number: what depends on the row is not there without padding.
                    recorded = [_first_row(a, stop) for a in self._arguments]
            self._arguments = recorded
        finally:
            for module, forward in originals:
                module.forward = forward
        unload_parameters(self.model, names)

    @contextmanager
    def _embedding_of(self, ids: list[int], vectors: MatrixRows) -> Iterator[None]:
        """A context in which the model's embedding has the rows of these tokens alone: their number stands for the id."""
        module: Any = self.model.get_input_embeddings()
        weight, padding = module.weight, module.padding_idx
        rows = vectors[torch.tensor(ids)].to(self.device, self.dtype)
        module.weight, module.padding_idx = torch.nn.Parameter(rows, requires_grad=False), None
        try:
            yield
        finally:
            module.weight, module.padding_idx = weight, padding

    @contextmanager
    def layer(self, i: int, pool: Workers) -> Iterator[LayerModules]:
        """Layer i's modules with their weights, after attention has been added to `residual`; the FFN is the caller's.

        Inside the block `residual` is the stream between attention and FFN. Whoever runs the FFN adds its result
        with `add_ffn`. The constant positions go through the whole layer here. `pool` runs the blocks of tokens.
        """
        part = self.parts.layers[i]
        prefix = self.source.family.layer_prefix(i)
        names = [n for n in self.source.names() if n.startswith(prefix)]
        if part.mixture is not None:
            family = self.source.family
            ffn = {family.gate_name(i), family.up_name(i), family.down_name(i)}
            names = [n for n in names if n not in ffn]
        load_parameters(self.model, self.source, names, device=self.device, dtype=self.dtype)
        n, states = self.n_prefix, keeps_states(self.model.config)
        cache: Any = new_cache(self.model.config) if states else _PrefixCache()
        with torch.no_grad(), quiet():
            if n:
                before = _cut(self._arguments[i], slice(0, n), n + 1, cache)
                self.prefix_residual = _tensor(
                    part.block(self.prefix_residual.to(self.dtype), **before)
                ).float()
            last = _cut(self._arguments[i], slice(n, n + 1), n + 1, cache if n else None)
            held = _held(self._arguments[i])
            self._read = torch.empty_like(self.residual) if part.parallel else None

            def attend(span: tuple[int, int]) -> None:
                start, stop = span
                inputs = self.tokens(start, stop)
                if self._read is not None:
                    self._read[start:stop] = _normed(part, inputs)
                arguments = last
                if states and n:
                    # Every token goes on from the prefix's own states, and changes them.
                    rows = torch.zeros(stop - start, dtype=torch.int64, device=self.device)
                    arguments = last | {held: fork_cache(cache, rows)}
                self.residual[start:stop] = _tensor(part.block(inputs[:, None], **arguments))[:, 0]

            # Of other families it is not known what their attention does besides.
            listed = self.source.family.listed
            with one_query(self.model.config) if listed else nullcontext(), _silent(part, norms=listed):
                pool.each(attend, row_blocks(len(self.residual), self.block))
            yield part
        unload_parameters(self.model, names)

    def tokens(self, start: int, stop: int) -> torch.Tensor:
        """The residual of tokens start..stop on the device, in `dtype`, [n, hidden]."""
        return self.residual[start:stop].to(self.device, self.dtype)

    def ffn_input(self, part: LayerModules, start: int, stop: int) -> torch.Tensor:
        """What the FFN of the layer that is in memory reads of tokens start..stop, [n, hidden]."""
        if self._read is not None:
            return self._read[start:stop].to(self.device, self.dtype)
        return _normed(part, self.tokens(start, stop))

    def ffn_inputs(self, part: LayerModules, at: torch.Tensor) -> torch.Tensor:
        """The same of the tokens numbered `at`, [n, hidden]."""
        if self._read is not None:
            return self._read[at].to(self.device, self.dtype)
        return _normed(part, self.residual[at].to(self.device, self.dtype))

    def add_ffn(self, part: LayerModules, start: int, stop: int, out: torch.Tensor) -> None:
        """Add the FFN's raw output [n, hidden] of tokens start..stop to the residual, through the family's post-norm."""
        if part.ffn_post is not None:
            out = part.ffn_post(out)
        if self.parts.residual_scale != 1.0:
            out = out * self.parts.residual_scale
        self.residual[start:stop] += out.cpu()


def _normed(part: LayerModules, residual: torch.Tensor) -> torch.Tensor:
    return residual if part.ffn_norm is None else cast(torch.Tensor, part.ffn_norm(residual))


@contextmanager
def _silent(part: LayerModules, *, norms: bool) -> Iterator[None]:
    """A context in which the layer's FFN computes nothing and adds zeros; with `norms`, those that it alone has rest too."""
    if part.mixture is not None:
        block = part.mixture.block
        block.forward = part.mixture.silent
        try:
            yield
        finally:
            block.forward = part.mixture.forward
        return
    readers = [m for m in (part.gate, part.up) if m is not None]
    idle = [m for m in (part.ffn_norm, part.ffn_post) if m is not None] if norms else []
    originals = [(m, m.forward) for m in (*readers, *idle, part.down)]
    for module in (*readers, *idle):
        module.forward = lambda x: x
    part.down.forward = torch.zeros_like
    try:
        yield
    finally:
        for module, forward in originals:
            module.forward = forward


def _tensor(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_mapped(v, change) for v in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def _first_row(arguments: LayerArguments, rows: int) -> LayerArguments:
    def first(value: torch.Tensor) -> torch.Tensor:
        return value[:1] if value.dim() and value.shape[0] == rows else value

    return {name: _mapped(value, first) for name, value in arguments.items()}


def _cut(arguments: LayerArguments, at: slice, length: int, cache: Any) -> LayerArguments:
    """A layer's arguments for the positions `at` of a sequence of `length`, with `cache` in the cache's place."""

    def cut(value: torch.Tensor) -> torch.Tensor:
        if value.dim() == 4:  # a mask [1, 1, query, key]
            return value[:, :, at, : at.stop]
        axis = 0 if value.dim() == 1 else 1
        if not value.dim() or value.shape[axis] != length:
            return value
        return value[at] if axis == 0 else value[:, at]

    new = {name: _mapped(value, cut) for name, value in arguments.items()}
    return new | {_held(arguments): cache, "use_cache": False}


def _held(arguments: LayerArguments) -> str:
    """What a layer calls the cache among these arguments."""
    return next((n for n in _CACHES if n in arguments), _CACHES[0])
