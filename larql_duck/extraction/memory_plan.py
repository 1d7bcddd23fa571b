"""How an extraction keeps its promise of memory: what each stage holds, and what it gives up where that is too much.

Counted is memory of the process's own (RssAnon): pages of mapped files are the system's, which takes them back when it
needs them. So where a stage's largest array does not fit, it lies in a scratch file; then fewer threads work, each of
which has blocks of its own; then prompts are asked in smaller batches. What is measured is the same to the last bit, but
for the batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from larql_duck.errors import LarqlError
from larql_duck.extraction.context import ffn_rows
from larql_duck.extraction.counts import TOKEN_BYTES, planned_basis, token_count
from larql_duck.extraction.job import Job
from larql_duck.extraction.options import ARRAYS, FACTS, NAMES, PROMOTED, TABLES, TOP_ACTIVATING
from larql_duck.extraction.precision import SAMPLE
from larql_duck.extraction.processor import product_dtype
from larql_duck.extraction.promoted_tokens import keeps_rows
from larql_duck.extraction.screen import DECIDED, MADE_NUMBERS, held_bytes
from larql_duck.extraction.token_screen import SCREEN_BYTES
from larql_duck.models.experts import Experts
from larql_duck.models.sizes import ModelSizes

_MB = 1_000_000
# Python with everything imported and the memory that torch and the C library keep for themselves, which varies from run
# to run; what probing adds to it (measured).
_IMPORTS, _PROBING = 300 * _MB, 60 * _MB
# Bytes an entry of the vocabulary: its decoded texts and what reading the tokenizer left behind; the tokenizer, which
# probing keeps; all of it while it is read, by us and by transformers.
_TEXTS, _TOKENIZER, _READING = 700, 900, 2100
# Arrays of a block of numbers that one thread holds at a time, and what else it has.
_BLOCK_ARRAYS, _ATTENTION_ARRAYS, _THREAD = 6, 12, 8 * _MB
# Copies of rows that are being made or were gathered.
_ROW_COPIES = 4
# Entries of token features that wait and are sorted (see `inference.topk`), rows of tables on their way to a file, and
# the database that is built from them.
_SORTING, _ROWS, _DATABASE = 90 * _MB, 240 * _MB, 200 * _MB
# Everything batches of prompts take beside the weights, at their usual size, with what the C library keeps between them
# (measured on a whole extraction of SmolLM2); the part that no smaller batch saves.
_BATCHES, _BATCH = 1_800 * _MB, 120 * _MB
# Parts of the usual size of a batch that are tried.
_SHARES = (1.0, 0.5, 0.25, 0.1)
# Blocks of the vocabulary that are tried for a layer's tasks.
_TASK_PARTS = (1, 2, 4, 8, 16)
# More weights than this that are not stored in f32 are mapped from a scratch file even where they would fit.
_MOST_WEIGHTS = 1_000 * _MB


@dataclass(frozen=True)
class StagePlan:
    """A stage's expected peak in bytes, the threads that work, whether its largest array is `kept` in memory (else in a
    scratch file, or made anew block by block), which `share` of the usual size its batches have, and the bytes of `copies` of
    the model's matrices that make products faster.
    """

    peak: int
    workers: int
    kept: bool = True
    share: float = 1.0
    copies: int = 0

    def __str__(self) -> str:
        """What it gives up, in words; '' where that is nothing."""
        batches = "" if self.share == 1 else f"batches of {self.share:.0%}"
        return ", ".join(filter(None, ("" if self.kept else "largest array in a file", batches)))


@dataclass(frozen=True)
class MemoryPlan:
    """What each stage takes, and the `limit` that none may exceed."""

    limit: int
    stages: dict[str, StagePlan]

    @property
    def peak(self) -> int:
        """The expected peak of the whole extraction in bytes."""
        return max(stage.peak for stage in self.stages.values())

    def __getitem__(self, stage: str) -> StagePlan:
        return self.stages[stage]


def plan_memory(job: Job, limit: int, threads: int, device: str = "cpu") -> MemoryPlan:
    """The MemoryPlan of a job within `limit` bytes, on at most so many threads; the model is asked on `device`.

    LarqlError, with the least that suffices, where no plan fits.
    """
    needs = _Needs(job, device)
    fewer = [n for n in (threads, threads // 2, threads // 4, 2, 1) if 1 <= n <= threads]
    workers = sorted(set(fewer), reverse=True)
    tried = {
        ARRAYS: [StagePlan(needs.arrays(), 1)],
        PROMOTED: [StagePlan(needs.promoted(kept, n), n, kept) for n in workers for kept in (True, False)],
        TOP_ACTIVATING: [
            StagePlan(needs.activating(kept, n), n, kept) for n in workers for kept in (True, False)
        ],
        TABLES: [StagePlan(needs.tables(), threads)],
    }
    if job.options.probe:
        kept = [False] if needs.converted > _MOST_WEIGHTS else [True, False]
        tried[FACTS] = [
            StagePlan(needs.asking(k, s) + copies, threads, k, s, copies)
            for s in _SHARES
            for k in kept
            for copies in ((needs.copies, 0) if s == 1 else (0,))
        ]
        if job.options.n_names(job.sizes.parameters):
            tried[NAMES] = tried[FACTS]
    least = max(min(plan.peak for plan in plans) for plans in tried.values())
    if least > limit:
        raise LarqlError(
            f"{job.name} cannot be extracted in {limit / _MB:.0f} MB: {_stage_of(tried, least)} takes {least / _MB:.0f} MB; "
            f"give --memory {-(-least // _MB)}M or more"
        )
    return MemoryPlan(limit, {name: _first(plans, limit) for name, plans in tried.items()})


def task_plans(job: Job, stage: str, threads: int) -> list[tuple[StagePlan, int]]:
    """Plans for one layer of a stage on another machine, each with the number of blocks into which the candidates are cut.

    The first that fits is to be taken: with what it keeps in memory whole, in blocks, or made anew.
    """
    needs = _Needs(job, "cpu")
    if stage == PROMOTED:
        kept = [(StagePlan(needs.promoted(True, threads, parts), threads), parts) for parts in _TASK_PARTS]
        return [*kept, (StagePlan(needs.promoted(False, threads), threads, False), 1)]
    return [(StagePlan(needs.embedding(kept, threads), threads, kept), 1) for kept in (True, False)]


def asking_bytes(job: Job) -> int:
    """What a process takes that has the job's model in memory and asks it in batches of the usual size."""
    return _Needs(job, "cpu").asking(True, 1.0)


def _first(plans: Iterable[StagePlan], limit: int) -> StagePlan:
    return next(plan for plan in plans if plan.peak <= limit)


def _stage_of(tried: dict[str, list[StagePlan]], least: int) -> str:
    return next(name for name, plans in tried.items() if min(plan.peak for plan in plans) == least)


class _Needs:
    """Bytes that the stages of a job hold."""

    def __init__(self, job: Job, device: str) -> None:
        self.job, self.sizes, self.device = job, job.sizes, device
        self.experts = job.source.family.experts
        self.features = largest_span(self.sizes, self.experts)
        self.n_tokens = token_count(job)
        self.base = _IMPORTS + _TEXTS * self.sizes.vocab
        # A layer's weights in f32: views of the file where it has them so.
        self.layer = 0 if job.stored == "f32" else 4 * largest_layer(self.sizes, self.experts)

    @property
    def converted(self) -> int:
        """Bytes of the whole model in f32 that are no views of the file and lie in the machine's own memory."""
        return 0 if self.job.stored == "f32" or self.device != "cpu" else 4 * self.sizes.parameters

    @property
    def copies(self) -> int:
        """Bytes of copies of the matrices that prompts are multiplied by; 0 where there are too many."""
        sizes = self.sizes
        matrices = sizes.parameters - sizes.vocab * sizes.hidden
        if self.experts is not None or self.device != "cpu" or 4 * matrices > _MOST_WEIGHTS:
            return 0
        return 4 * matrices

    def arrays(self) -> int:
        return max(_IMPORTS + _READING * self.sizes.vocab, self.base + self.layer + 64 * _MB)

    def promoted(self, kept: bool, workers: int, parts: int = 1) -> int:
        hidden, features = self.sizes.hidden, self.features
        dtype = self._products_in(kept)
        # Unit rows in the dtype of cheap products, and in f32 where they are not too many.
        vocab = -(-self.sizes.vocab // parts)
        numbers = self._copy(dtype) + (4 if keeps_rows(vocab, hidden, dtype) else 0)
        head = numbers * vocab * hidden if kept else 0
        # down, its columns and their directions, gate and up; the second moments in f64 and what they are made of.
        matrices = 4 * 6 * hidden * features + 8 * 4 * hidden * hidden
        held = held_bytes(vocab, features, dtype)
        return self.base + head + matrices + held + workers * self._deciding(vocab)

    def activating(self, kept: bool, workers: int) -> int:
        search = self._embedding(kept, workers) if self._reads_embedding else 0
        if planned_basis(self.job) == "context":
            search = max(search, self._context(workers))
        return self._around_search(kept, workers) + search

    def embedding(self, kept: bool, workers: int) -> int:
        return self._around_search(kept, workers) + self._embedding(kept, workers)

    def _around_search(self, kept: bool, workers: int) -> int:
        hidden = self.sizes.hidden
        vectors = 4 * self.n_tokens * hidden if kept else 0
        moments = 8 * 4 * hidden * hidden + (2 * workers + 1) * 4 * hidden * hidden
        return self.base + self._token_features() + _SORTING + vectors + moments

    @property
    def _reads_embedding(self) -> bool:
        """Whether tops may be read off the embedding: of other families the context pass may turn out not to be the model's."""
        return planned_basis(self.job) != "context" or not self.job.source.family.listed

    def _context(self, workers: int) -> int:
        if self.job.options.precision == "f32":
            return self.layer + workers * self._thread()
        # The layer in half precision beside what it is compared with on a sample, and a gate matrix made f32.
        features, layer = self.features, 4 * largest_layer(self.sizes, self.experts)
        return layer + 4 * features * (self.sizes.hidden + 4 * SAMPLE) + workers * self._thread()

    def _embedding(self, kept: bool, workers: int) -> int:
        dtype, n, hidden = self._products_in(kept), self.n_tokens, self.sizes.hidden
        # Gates, scaled and in the dtype of products, and up.
        matrices = 4 * 4 * hidden * self.features
        held = held_bytes(n, self.features, dtype)
        screen = self._copy(dtype) * n * hidden + SCREEN_BYTES * n
        return screen + matrices + held + workers * self._deciding(n)

    def _products_in(self, kept: bool) -> torch.dtype:
        """The dtype of cheap products."""
        return product_dtype() if kept and self.device == "cpu" else torch.float32

    def _copy(self, dtype: torch.dtype) -> int:
        """Bytes a number of what cheap products multiply, beside the f32 rows themselves."""
        return 0 if dtype == torch.float32 else dtype.itemsize

    def _deciding(self, n: int) -> int:
        """Bytes of a thread that looks among n rows: a block's rows made for it, then the rows of candidates."""
        rows = min(n, 2 * DECIDED * self.job.options.top_k)
        return _THREAD + 4 * _ROW_COPIES * self.sizes.hidden * max(rows, MADE_NUMBERS // self.sizes.hidden)

    def tables(self) -> int:
        return self.base + self._token_features() + max(_ROWS, _DATABASE)

    def asking(self, kept: bool, share: float) -> int:
        weights = self.converted if kept else 0
        tokenizer = _PROBING + _TOKENIZER * self.sizes.vocab
        return self.base + tokenizer + weights + _BATCH + int(share * _BATCHES)

    def _token_features(self) -> int:
        return TOKEN_BYTES * self.n_tokens

    def _thread(self) -> int:
        hidden, features = self.sizes.hidden, self.features
        block = 4 * ffn_rows(features) * features * _BLOCK_ARRAYS
        attention = 4 * min(256 * hidden, 1 << 20) * _ATTENTION_ARRAYS
        return _THREAD + max(block, attention)


def largest_span(sizes: ModelSizes, experts: Experts | None) -> int:
    """The most features of a layer that are in memory at once: an expert's, where layers have experts."""
    mixed = () if experts is None else experts.layers
    dense = [n for layer, n in enumerate(sizes.intermediate) if layer not in mixed]
    spans = [] if experts is None else [experts.width, experts.shared]
    return max(dense + spans)


def largest_layer(sizes: ModelSizes, experts: Experts | None) -> int:
    """Parameters of the largest layer, or of its attention and one expert."""
    return sizes.attention + 3 * sizes.hidden * largest_span(sizes, experts)
