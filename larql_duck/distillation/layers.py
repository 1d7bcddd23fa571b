"""Which layers a model can do without: chosen by what their removal does to its answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from larql_duck.distillation.probes import PromptAnswer
from larql_duck.errors import LarqlError
from larql_duck.inference.batch import Batch, length_groups, pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import changed_input, skipped_layers, starting_at
from larql_duck.progress import report

# Layers that are tried on all probes, after all were on the first few; the share of the probes that those are.
_BEST, _FEW = 6, 0.25
# Rounds in which a removed layer may change places with one that is left.
_EXCHANGES = 2
_BATCH = 1024


@dataclass(frozen=True)
class LayerChoice:
    """The layers that stay, ascending; mean log p (nats) of whole answers with all layers and with these alone; and how
    many sets of layers were measured."""

    kept: tuple[int, ...]
    before: float
    after: float
    measured: int


class LayerTrial:
    """The mean log p of whole answers without some of a model's layers, in nats.

    `settle` runs a set of removed layers once; `also_without` then tries one layer more, from that layer on.
    """

    def __init__(
        self, engine: Engine, asked: Sequence[PromptAnswer], done: Callable[[int], None] = lambda n: None
    ) -> None:
        """done is called with the number of sets that were measured, after each."""
        if not asked:
            raise LarqlError("there is nothing to ask: no prompt of the probes fits this model")
        self._engine = engine
        few = max(1, int(len(asked) * _FEW))
        self._batches = [*_batches(engine, asked[:few])]
        self._few = len(self._batches)
        self._batches += _batches(engine, asked[few:])
        self._removed: frozenset[int] = frozenset()
        self._inputs: list[dict[int, torch.Tensor]] = [{} for _ in self._batches]
        self.measured, self._done = 0, done

    @torch.inference_mode()
    def settle(self, removed: Iterable[int]) -> float:
        """The mean log p without the layers `removed`, from which `also_without` goes on."""
        self._removed = frozenset(removed)
        modules = self._engine.modules
        total = 0.0
        for i, (batch, answers) in enumerate(self._batches):
            self._inputs[i] = {}
            with ExitStack() as stack:
                stack.enter_context(skipped_layers(modules, self._removed))
                for layer in self._left():
                    keep = partial(self._keep, i, layer)
                    stack.enter_context(changed_input(modules.layers[layer].block, keep))
                total += self._log_p(batch, answers)
        return self._mean(total, self._batches)

    def _keep(self, batch: int, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        self._inputs[batch][layer] = hidden
        return hidden

    @torch.inference_mode()
    def without(self, removed: Iterable[int], *, few: bool = False) -> float:
        """The mean log p without the layers `removed`; what is settled stays. few: over the first probes alone."""
        batches = self._batches[: self._few] if few else self._batches
        with skipped_layers(self._engine.modules, set(removed)):
            return self._mean(sum(self._log_p(*batch) for batch in batches), batches)

    @torch.inference_mode()
    def also_without(self, layer: int, *, few: bool = False) -> float:
        """The mean log p without `layer` and the settled ones; with `few` over the first probes alone."""
        left = [other for other in self._left() if other != layer]
        above = [other for other in left if other > layer]
        start, removed = above[0] if above else left[-1], {*self._removed, layer}
        batches = self._batches[: self._few] if few else self._batches
        total = 0.0
        for (batch, answers), inputs in zip(batches, self._inputs, strict=False):
            # What enters the removed layer passes it by.
            hidden = inputs[layer if above else start]
            beyond = {other for other in removed if other > start}
            with starting_at(self._engine.modules, start, hidden, beyond):
                total += self._log_p(batch, answers)
        return self._mean(total, batches)

    def _left(self) -> list[int]:
        return [layer for layer in range(self._engine.n_layers) if layer not in self._removed]

    def _log_p(self, batch: Batch, answers: Sequence[Sequence[int]]) -> float:
        longest = max(map(len, answers))
        mask = batch.mask if batch.padded else None
        logits = self._engine.run(batch.ids, mask, batch.positions, keep=longest + 1)
        total = 0.0
        for row, answer in zip(logits, answers, strict=True):
            log_p = torch.log_softmax(row[-len(answer) - 1 : -1], -1)
            total += float(log_p.gather(1, torch.tensor(answer, device=log_p.device)[:, None]).sum())
        return total

    def _mean(self, total: float, batches: Sequence[tuple[Batch, Sequence[Sequence[int]]]]) -> float:
        self.measured += 1
        self._done(self.measured)
        return total / sum(len(answers) for _, answers in batches)


def _batches(engine: Engine, asked: Sequence[PromptAnswer]) -> list[tuple[Batch, Sequence[Sequence[int]]]]:
    whole = [[*prompt, *answer] for prompt, answer in asked]
    groups = length_groups(list(map(len, whole)), tokens=_BATCH)
    return [(pad([whole[i] for i in g], device=engine.device), [asked[i][1] for i in g]) for g in groups]


def choose_layers(engine: Engine, asked: Sequence[PromptAnswer], keep: int) -> LayerChoice:
    """The `keep` layers without whose neighbours the answers stay most probable.

    Layers go one by one, each time the one whose removal costs least; then removed ones change places with others while
    that helps; blocks of neighbours are tried as a whole. The best set of all that were measured is taken.
    LarqlError for a number of layers that the model does not have.
    """
    n = engine.n_layers
    if not 1 <= keep < n:
        raise LarqlError(f"{keep} layers are out of range: this model has {n}, a student has 1 to {n - 1}")
    gone = n - keep
    most = most_sets(n, gone)
    trial = LayerTrial(engine, asked, lambda done: report("choosing layers", min(done, most - 1), most))
    before = after = trial.settle(())
    removed: frozenset[int] = frozenset()
    for _ in range(gone):
        layer, after = _cheapest(trial, set(range(n)) - removed)
        removed |= {layer}
        trial.settle(removed)
    if gone > 1:
        removed, after = _exchanged(trial, removed, after, n)
        block, log_p = _best_block(trial, n, gone)
        if log_p > after:
            removed, after = block, log_p
    report("choosing layers", most, most)
    return LayerChoice(tuple(sorted(set(range(n)) - removed)), before, after, trial.measured)


def most_sets(n: int, gone: int) -> int:
    """How many sets of layers are measured at most until `gone` of n are chosen."""
    one_by_one = 1 + sum(n - i + _BEST + 1 for i in range(gone))
    if gone == 1:
        return one_by_one
    exchanges = _EXCHANGES * gone * (n - gone + 1 + _BEST + 1)
    return one_by_one + exchanges + (n - gone + 1) + _BEST


def _cheapest(trial: LayerTrial, candidates: Collection[int]) -> tuple[int, float]:
    """The candidate whose removal costs least beside what is settled, and the mean log p without it."""
    first = sorted(candidates, key=lambda layer: (-trial.also_without(layer, few=True), layer))[:_BEST]
    scores = {layer: trial.also_without(layer) for layer in first}
    best = max(scores, key=lambda layer: (scores[layer], -layer))
    return best, scores[best]


def _exchanged(
    trial: LayerTrial, removed: frozenset[int], log_p: float, n: int
) -> tuple[frozenset[int], float]:
    """The removed layers after each changed places with the one that costs least instead, where that is better."""
    for _ in range(_EXCHANGES):
        before = removed
        for layer in sorted(removed):
            others = removed - {layer}
            trial.settle(others)
            best, found = _cheapest(trial, set(range(n)) - others)
            if found > log_p:
                removed, log_p = others | {best}, found
        if removed == before:
            break
    return removed, log_p


def _best_block(trial: LayerTrial, n: int, size: int) -> tuple[frozenset[int], float]:
    """The neighbouring layers that cost least together, and the mean log p without them."""
    blocks = [frozenset(range(start, start + size)) for start in range(n - size + 1)]
    first = sorted(blocks, key=lambda block: -trial.without(block, few=True))[:_BEST]
    scores = {block: trial.without(block) for block in first}
    best = max(first, key=lambda block: scores[block])
    return best, scores[best]
