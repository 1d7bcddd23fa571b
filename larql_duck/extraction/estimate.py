"""What an extraction will cost, before it runs: seconds, bytes on disk, bytes of memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from larql_duck.extraction.context import TOKEN_FEATURES
from larql_duck.extraction.job import Job
from larql_duck.extraction.options import PROMOTED, TOP_ACTIVATING
from larql_duck.vindex.manifest import DTYPE_BYTES

# `auto` takes the context basis when its pass is expected to stay below this.
CONTEXT_LIMIT_S = 30 * 60
# Measured ratios of whole stages to the bare matrix products that they contain.
_CONTEXT_OVERHEAD, _SEARCH_OVERHEAD = 1.35, 1.4
# Bytes of one row in both forms (Parquet and DuckDB) together, measured on SmolLM2.
_FEATURE_TOKEN_BYTES, _TOKEN_FEATURE_BYTES = 34, 36
_DISK_SPEED = 400e6
_FIXED_S = 8.0
_GIB = 1 << 30
# A probe prompt costs its own pass and, for the effects, about twice that again.
_PROMPT_TOKENS, _PROBE_FACTOR, _PROBE_PROMPTS = 8, 3.0, 2000
# Prompts that teach how any name is asked, on SmolLM2 with the pack core; their features are not measured.
_TAUGHT_PROMPTS, _TAUGHT_TOKENS = 2100, 15
# A name costs its own question and a share of whole pages; what its types are learnt from costs as much as so many tokens.
_NAME_TOKENS, _TYPED_TOKENS = 20, 12_000


@dataclass(frozen=True)
class Estimate:
    """Expected cost: `seconds` per stage, bytes on `disk`, bytes of `memory` at the peak, and the `basis` taken.

    `names` of the vocabulary are asked about. `scratch` is what the work needs on the disk beside that: checkpoints, and the database's log while it is built.
    """

    seconds: dict[str, float]
    disk: int
    memory: int
    basis: str
    scratch: int
    names: int = 0

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())


def matrix_speed(hidden: int) -> float:
    """f32 operations per second of this machine in products of the model's width (a few hundred milliseconds)."""
    rows, columns = 2048, 1024
    a, b = torch.rand(rows, hidden), torch.rand(hidden, columns)
    a @ b
    best, spent = float("inf"), 0.0
    while spent < 0.2:
        began = time.perf_counter()
        a @ b
        took = time.perf_counter() - began
        best, spent = min(best, took), spent + took
    return 2 * rows * hidden * columns / best


def estimate_cost(job: Job, speed: float) -> Estimate:
    """The Estimate for a job on a machine of `speed` f32 operations per second."""
    sizes, options, width = job.sizes, job.options, DTYPE_BYTES[job.dtype]
    n_words = int(job.vocabulary.is_word.sum())
    layers = options.layer_range(sizes.n_layers)
    features = sum(sizes.intermediate[i] for i in layers)
    n_context = min(n_words, options.context_tokens or n_words)
    attention = sizes.hidden * sizes.head_dim * 2 * (sizes.n_heads + sizes.n_kv_heads)
    per_layer = [attention + 3 * sizes.hidden * n for n in sizes.intermediate]
    context_s = 2 * n_context * sum(per_layer[: layers.stop]) / speed * _CONTEXT_OVERHEAD
    embedding_s = 2 * n_words * sizes.hidden * features / speed * _SEARCH_OVERHEAD
    basis = options.in_basis
    if basis == "auto":
        basis = "context" if context_s < CONTEXT_LIMIT_S else "embedding"
    embedding = sizes.vocab * sizes.hidden
    parameters = 2 * embedding + sum(per_layer)
    stored = parameters - embedding
    if options.level == "browse":
        stored = embedding + sizes.hidden * sum(sizes.intermediate)
    seconds = {
        "arrays": stored * width / _DISK_SPEED + _FIXED_S,
        PROMOTED: 2 * embedding * features / speed * _SEARCH_OVERHEAD,
        TOP_ACTIVATING: context_s if basis == "context" else embedding_s,
    }
    names = options.n_names(sizes.parameters)
    if options.probe:
        seconds["facts"] = 2 * parameters * _PROBE_PROMPTS * _PROMPT_TOKENS * _PROBE_FACTOR / speed
        if names:
            seconds["facts"] += 2 * parameters * _TAUGHT_PROMPTS * _TAUGHT_TOKENS / speed
    if names:
        seconds["names"] = 2 * parameters * (names * _NAME_TOKENS + _TYPED_TOKENS) / speed + _FIXED_S
    rows = features * 3 * options.top_k
    token_rows = n_context * TOKEN_FEATURES
    tables = rows * _FEATURE_TOKEN_BYTES + token_rows * _TOKEN_FEATURE_BYTES
    disk = stored * width + tables
    # Tables as checkpoints (about a third of both their forms), the residual of the context pass, the log (WAL).
    scratch = tables + 4 * n_context * sizes.hidden
    memory = 3 * 4 * embedding + 4 * max(per_layer) + _GIB
    if options.probe:
        memory += 4 * parameters
    return Estimate(seconds, int(disk), int(memory), basis, int(scratch), names)
