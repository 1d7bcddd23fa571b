"""Prompts run up to their last token, so that many continuations of the last position cost one token each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.engine import Engine, Prompts
from larql_duck.inference.kv_cache import ROOM, first_positions, fork_cache, join_caches, one_row

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
    ) -> tuple[torch.Tensor, TextsRead]:
        """The logits of `step`, and the texts with their last token read too."""
        ids, positions, mask, before = self.ids, self.positions, self.mask, self.before
        if rows is not None:
            ids, positions = ids[rows], positions[rows]
            mask = None if mask is None else mask[rows]
            before = None if before is None else before[rows]
        cache = fork_cache(self.cache, rows, first_layer)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
        if before is not None:
            before = torch.cat([before, ids], dim=1)
        logits = self.engine.run(ids, mask, positions, cache)
        return logits, TextsRead(self.engine, cache, mask, positions + 1, before)


@dataclass(frozen=True)
class TextsRead:
    """n texts that the model has read to their end, so that more can follow.

    positions int64 [n, 1] are those of the tokens to come; mask is bool [n, t], None where nothing is padded. ids int64
    [n, t] are the texts' tokens, None where nobody will need them: rotary frequencies do not change with the length.
    """

    engine: Engine
    cache: DynamicCache
    mask: torch.Tensor | None
    positions: torch.Tensor
    ids: torch.Tensor | None = None

    def then(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> Prefix:
        """A prefix of the picked texts (None: of all) behind which these tokens wait, int64 [rows].

        It is computed anew where a text longer by one token has other rotary frequencies. Grows no cache that is in use.
        """
        mask, positions, ids = self.mask, self.positions, self.ids
        if rows is not None:
            mask = None if mask is None else mask[rows]
            positions = positions[rows]
            ids = None if ids is None else ids[rows]
        if ids is not None:
            chosen = self.engine.rope.chosen
            if not torch.equal(chosen(positions[:, 0] + 1), chosen(positions[:, 0])):
                real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
                texts = [
                    [*row[kept].tolist(), int(t)] for row, kept, t in zip(ids, real, tokens, strict=True)
                ]
                return prefill(self.engine, pad(texts, device=ids.device))
        return Prefix(self.engine, fork_cache(self.cache, rows), mask, tokens[:, None], positions, ids)


# What starting one more pass costs, in tokens of a running one (measured on CPUs; it only decides how to group).
_PASS = 24


@dataclass(frozen=True)
class Head:
    """A beginning that many prompts share, run once: its token ids, and the cache that holds their keys and values."""

    ids: tuple[int, ...]
    cache: DynamicCache


def run_heads(
    engine: Engine, texts: Sequence[Sequence[int]], begun: Sequence[Head | None]
) -> list[Head | None]:
    """The Head of each of these texts, run together; None where rotary frequencies follow the length, so that nothing can be
    shared, and for an empty text.

    What a text shares with the beginning of its `begun` is taken from that.
    """
    out: list[Head | None] = [None] * len(texts)
    asked = [] if engine.rope.modules else [i for i, text in enumerate(texts) if len(text)]
    # One token at least is run.
    starts = {
        i: _cut(engine, begun[i], min(_in_common(begun[i], texts[i]), len(texts[i]) - 1)) for i in asked
    }
    rest = {i: texts[i][len(head.ids) if (head := starts[i]) else 0 :] for i in asked}
    for whole in groups_of(
        engine, [len(rest[i]) for i in asked], [len(texts[i]) - len(rest[i]) for i in asked]
    ):
        for group in length_groups([len(rest[asked[at]]) for at in whole]):
            rows = [asked[whole[at]] for at in group]
            b = behind_heads(engine, [starts[i] for i in rows], [rest[i] for i in rows])
            engine.run_body(b.ids, b.some, b.positions, b.cache)
            for at, i in enumerate(rows):
                out[i] = Head(tuple(texts[i]), one_row(b.cache, at, b.mask[at]))
    return out


def _in_common(head: Head | None, text: Sequence[int]) -> int:
    return 0 if head is None else common_length(head.ids, text)


def _cut(engine: Engine, head: Head | None, length: int) -> Head | None:
    """The first tokens of a head; None where there are none, or where states are of all its tokens alone."""
    if head is None or not length:
        return None
    if engine.stateful:
        return head if length == len(head.ids) else None
    return Head(head.ids[:length], first_positions(head.cache, length))


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common at their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Bytes of the heads that are kept, and how many tokens in common spare a head to be run at once with another.
_HEADS, _MUCH = 1 << 28, 16


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
        begins = self.beginnings(texts, ids)
        own: dict[tuple[int, ...], Head | None] = {}
        missing = []
        for begin in dict.fromkeys(begins):
            if begin in self._heads:
                # What was asked for last stays longest.
                own[begin] = self._heads[begin] = self._heads.pop(begin)
            else:
                missing.append(begin)
        while missing:
            # Together, but for those that have much in common with one of them: they go on from it.
            now: list[tuple[int, ...]] = []
            for begin in missing:
                if all(common_length(begin, other) < _MUCH for other in now):
                    now.append(begin)
            own |= self._run(now)
            missing = [begin for begin in missing if begin not in own]
        return [own[begin] for begin in begins]

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

    def _run(self, texts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Head | None]:
        known = [head for head in self._heads.values() if head is not None]
        nearest = [max(known, key=lambda head: common_length(head.ids, text), default=None) for text in texts]
        run = dict(zip(texts, run_heads(self._engine, texts, nearest), strict=True))
        self._heads |= run
        self._n_tokens += sum(map(len, texts))
        # The oldest go, but none of these.
        most = self._engine.room(_HEADS) // self._engine.cache_bytes
        for old in list(self._heads)[: len(self._heads) - len(run)]:
            if self._n_tokens <= most:
                break
            del self._heads[old]
            self._n_tokens -= len(old)
        return run


def prefill(engine: Engine, prompts: Prompts, heads: Sequence[Head | None] | None = None) -> Prefix:
    """The prompts' Prefix. Tokens that all prompts share at their start run once; then prompts of similar length run
    together, so that little is computed for padding. The caches are joined, padded on the left.

    heads gives each prompt the Head that it begins with, whose tokens are not run again (None: it has none).
    """
    batch = engine.batch(prompts)
    rows = [batch.row(i) for i in range(len(batch))]
    run = _run(engine, [row[:-1] for row in rows], batch.lengths, heads, logits=False)
    last = torch.tensor([[row[-1]] for row in rows], device=engine.device)
    positions = torch.tensor(batch.lengths, device=engine.device)[:, None] - 1
    return Prefix(engine, run.cache, run.mask, last, positions, run.ids)


def read_prompts(
    engine: Engine, prompts: Prompts, heads: Sequence[Head | None] | None = None
) -> tuple[torch.Tensor, TextsRead]:
    """The logits after each prompt, f32 [n, vocab], and the prompts as read; see `prefill`, which this spares a pass."""
    batch = engine.batch(prompts)
    run = _run(engine, [batch.row(i) for i in range(len(batch))], batch.lengths, heads, logits=True)
    assert run.logits is not None
    positions = torch.tensor(batch.lengths, device=engine.device)[:, None]
    return run.logits, TextsRead(engine, run.cache, run.mask, positions, run.ids)


@dataclass(frozen=True)
class _Run:
    """What running texts gave: cache, mask and ids as TextsRead has them; logits f32 [n, vocab] where asked for."""

    cache: DynamicCache
    mask: torch.Tensor | None
    ids: torch.Tensor | None
    logits: torch.Tensor | None


def _run(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    whole: Sequence[int],
    heads: Sequence[Head | None] | None,
    *,
    logits: bool,
) -> _Run:
    """Run these texts; `whole` are the lengths of the prompts that they belong to."""
    n, device = len(rows), engine.device
    lengths = torch.tensor(whole, device=device)
    if heads is None or all(head is None for head in heads):
        # Beginnings are the same only where the rotary frequencies are.
        alike = len(engine.rope.chosen(lengths).unique(dim=0)) == 1
        # Behind it, one token at least is run where logits are wanted.
        shared = min(common_beginning(rows), min(map(len, rows)) - logits) if n > 1 and alike else 0
        first = _shared(engine, rows[0][:shared], lengths[:1]) if shared else None
        heads = [first] * n
    begun = [0 if head is None else len(head.ids) for head in heads]
    middles = [row[start:] for row, start in zip(rows, begun, strict=True)]
    longest_head, longest = max(begun), max(len(m) for m in middles)
    mask = torch.zeros(n, longest_head + longest, dtype=torch.bool, device=device)
    out = torch.empty(n, engine.vocab, device=device) if logits else None
    parts: list[tuple[list[int], DynamicCache, None]] = []
    for group in groups_of(engine, [len(m) for m in middles], begun):
        b = behind_heads(engine, [heads[i] for i in group], [middles[i] for i in group])
        if out is not None:
            out[torch.tensor(group, device=device)] = engine.run(b.ids, b.some, b.positions, b.cache)
        elif b.ids.shape[1]:
            engine.run_body(b.ids, b.some, b.positions, b.cache, lengths=lengths[group])
        mask[torch.tensor(group, device=device), mask.shape[1] - b.mask.shape[1] :] = b.mask
        parts.append((group, b.cache, None))
    if len(parts) > 1:
        # Texts are mostly picked from here, into caches of their own: room for a token is enough.
        cache = join_caches(engine.new_cache(), parts, n, longest_head + longest, room=1, spent=True)
    else:
        group, cache, _ = parts[0]
        if group != list(range(n)):  # back from the order of lengths
            cache = fork_cache(cache, torch.tensor(group, device=device).argsort())
    ids = None
    if engine.rope.modules:
        ids = torch.zeros(mask.shape, dtype=torch.int64, device=device)
        ids[mask] = torch.tensor([token for row in rows for token in row], device=device)
    return _Run(cache, None if bool(mask.all()) else mask, ids, out)


def common_beginning(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts have in common at their start."""
    return min((common_length(rows[0], row) for row in rows[1:]), default=len(rows[0]))


def joined(prefixes: Sequence[Prefix]) -> Prefix:
    """One prefix of all their prompts, in order."""
    if len(prefixes) == 1:
        return prefixes[0]
    return _join(
        [_Part(p.cache, None, p.mask, p.before, p.ids, p.positions) for p in prefixes], prefixes[0].engine
    )


def following(parts: Sequence[tuple[TextsRead, torch.Tensor, torch.Tensor]]) -> Prefix:
    """One prefix of the picked rows of several texts, in order, behind which tokens wait: texts, tokens and rows, int64 [n]."""
    engine = parts[0][0].engine
    if len(parts) == 1 or engine.rope.modules:
        return joined([texts.then(tokens, rows) for texts, tokens, rows in parts])
    return _join(
        [
            _Part(
                texts.cache,
                rows,
                None if texts.mask is None else texts.mask[rows],
                None,
                tokens[:, None],
                texts.positions[rows],
            )
            for texts, tokens, rows in parts
        ],
        engine,
    )


@dataclass(frozen=True)
class _Part:
    """Prompts that are joined to others: fields as of Prefix, but that of the cache's rows these are picked (None: all)."""

    cache: DynamicCache
    rows: torch.Tensor | None
    mask: torch.Tensor | None
    before: torch.Tensor | None
    ids: torch.Tensor
    positions: torch.Tensor


def _join(parts: Sequence[_Part], engine: Engine) -> Prefix:
    device = engine.device
    widths = [p.cache.get_seq_length() if len(p.cache.layers) else 0 for p in parts]
    n, width = sum(len(p.ids) for p in parts), max(widths)
    mask = torch.zeros(n, width, dtype=torch.bool, device=device)
    before = torch.zeros(n, width, dtype=torch.int64, device=device)
    placed: list[tuple[Sequence[int], DynamicCache, torch.Tensor | None]] = []
    start = 0
    for part, own in zip(parts, widths, strict=True):
        rows = slice(start, start + len(part.ids))
        mask[rows, width - own :] = True if part.mask is None else part.mask
        if part.before is not None:
            before[rows, width - own :] = part.before
        placed.append((range(rows.start, rows.stop), part.cache, part.rows))
        start = rows.stop
    return Prefix(
        engine,
        join_caches(engine.new_cache(), placed, n, width) if width else engine.new_cache(),
        None if bool(mask.all()) else mask,
        torch.cat([p.ids for p in parts]),
        torch.cat([p.positions for p in parts]),
        before if engine.rope.modules else None,
    )


def only_row(prefix: Prefix, row: int) -> Prefix:
    """A prefix of one prompt of many, without the padding that it had among them."""
    index = torch.tensor([row], device=prefix.ids.device)
    before = None if prefix.before is None else prefix.before[index]
    if prefix.mask is None:
        cache = fork_cache(prefix.cache, index)
    else:
        real = prefix.mask[row]
        cache = one_row(prefix.cache, row, real)
        before = None if before is None else before[:, real]
    return Prefix(prefix.engine, cache, None, prefix.ids[index], prefix.positions[index], before)


def _shared(engine: Engine, ids: Sequence[int], lengths: torch.Tensor) -> Head:
    """The head of tokens that all prompts of a batch begin with; lengths int64 [1] are those of the whole prompts."""
    cache = engine.new_cache()
    row = torch.tensor([list(ids)], device=engine.device)
    positions = torch.arange(len(ids), device=engine.device)[None, :]
    engine.run_body(row, None, positions, cache, lengths=lengths)
    return Head(tuple(ids), cache)


@dataclass(frozen=True)
class Behind:
    """Texts that go on behind their heads, one batch padded on the left: ids and positions int64 [n, t], mask bool [n,
    head + t] (padding stands before a head and between it and the rest), and the cache of the heads, which is theirs to grow.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    cache: DynamicCache

    @property
    def some(self) -> torch.Tensor | None:
        """The mask; None where nothing is padded."""
        return None if bool(self.mask.all()) else self.mask


def behind_heads(engine: Engine, heads: Sequence[Head | None], rest: Sequence[Sequence[int]]) -> Behind:
    """The batch of these token ids, each behind its head (None: at the start)."""
    begun = [0 if head is None else len(head.ids) for head in heads]
    cache, real = _begun(engine, heads, max(begun))
    padded = pad(rest, device=engine.device)
    positions = padded.positions + torch.tensor(begun, device=engine.device)[:, None]
    return Behind(padded.ids, positions, torch.cat([real, padded.mask], dim=1), cache)


def groups_of(engine: Engine, lengths: Sequence[int], begun: Sequence[int]) -> list[list[int]]:
    """The numbers of texts in groups that run together, given their lengths behind heads that are `begun` long."""
    # Padding inside a group stands between a head and the rest: a sliding window, which counts columns, must not reach
    # across it, nor a state. Then a group has heads of one length and rests of one length.
    # What follows grows them.
    longest = max(begun, default=0) + max(lengths, default=0) + ROOM
    if not engine.stateful and (engine.window is None or longest <= engine.window):
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
        (rows, head.cache, torch.zeros(len(rows), dtype=torch.int64, device=device))
        for head, rows in groups.values()
    ]
    if not parts:
        return engine.new_cache(), real
    if len(parts) == 1 and len(parts[0][0]) == len(heads):
        return fork_cache(*parts[0][1:]), real
    return join_caches(engine.new_cache(), parts, len(heads), length), real


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
