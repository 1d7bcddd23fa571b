"""How much work an extraction is, in operations, rows and bytes: counted from the model's sizes, never timed."""

from __future__ import annotations

import math

from larql_duck.extraction.collecting import TOKEN_FEATURES
from larql_duck.extraction.job import Job
from larql_duck.probing.choosing import MOST_VARIANTS
from larql_duck.probing.packs import load_pack
from larql_duck.vindex.manifest import DTYPE_BYTES

# Operations up to which `auto` takes the context basis: about half an hour at 1e11 a second.
CONTEXT_LIMIT = 1e14
# Extraction asks no more than this; PROBE asks the rest.
MAX_PROMPTS = 2000
# Bytes of one token's features: z, number, gate and activation of each.
TOKEN_BYTES = 16 * TOKEN_FEATURES
# Tokens that a prompt costs, and a fact whose features are measured.
_PROMPT_TOKENS, _EFFECT_TOKENS = 8, 22
# Prompts that teach how any name is asked, on SmolLM2 with the pack core; their features are not measured.
_TAUGHT_PROMPTS, _TAUGHT_TOKENS = 2100, 15
# A name costs its own question and a share of whole pages; what its types are learnt from costs as much as so many tokens.
_NAME_TOKENS, _TYPED_TOKENS = 20, 12_000
# Bytes of one row in both forms (Parquet and DuckDB) together, and of everything in a vindex without rows (measured).
_ROW_BYTES = {"tokens": 56, "features": 150, "feature_tokens": 37, "token_features": 24}
_EMPTY_BYTES, _FACTS_BYTES = 1_500_000, 5_000_000


def context_operations(job: Job) -> float:
    """Multiplications and additions of the context pass."""
    sizes = job.sizes
    layers = sum(
        sizes.attention + 3 * sizes.hidden * n
        for n in (sizes.running or sizes.intermediate)[: job.layers.stop]
    )
    return 2.0 * job.n_context * layers


def usual_basis(job: Job) -> str:
    """The basis that `auto` takes, 'context' or 'embedding': by the count alone, so that every machine makes the same tables."""
    return "context" if context_operations(job) <= CONTEXT_LIMIT else "embedding"


def planned_basis(job: Job) -> str:
    """The basis that the job's options ask for."""
    basis = job.options.in_basis
    return usual_basis(job) if basis == "auto" else basis


def token_count(job: Job) -> int:
    """The word-like tokens whose activations are measured."""
    return job.n_context if planned_basis(job) == "context" else int(job.vocabulary.is_word.sum())


def activating_operations(job: Job) -> float:
    """Multiplications and additions of the search for top activating tokens, in the planned basis."""
    if planned_basis(job) == "context":
        return context_operations(job)
    return 2.0 * token_count(job) * job.sizes.hidden * described_features(job)


def described_features(job: Job) -> int:
    """The features of the layers that are described."""
    return sum(job.sizes.intermediate[layer] for layer in job.layers)


def asking_operations(job: Job) -> float:
    """Multiplications and additions of the forward passes that ask the pack: prompts, effects of features, what is learnt from."""
    subjects = sum(len(r.entities) for r in load_pack(job.options.pack, job.options.relations).relations)
    prompts = min(MAX_PROMPTS, subjects * MOST_VARIANTS)
    tokens = prompts * _PROMPT_TOKENS + subjects * _EFFECT_TOKENS
    if job.options.n_names(job.sizes.parameters):
        tokens += _TAUGHT_PROMPTS * _TAUGHT_TOKENS
    return 2.0 * job.sizes.parameters * tokens


def naming_operations(job: Job) -> float:
    """Multiplications and additions of the forward passes that ask about names of the vocabulary."""
    names = job.options.n_names(job.sizes.parameters)
    return 2.0 * job.sizes.parameters * (names * _NAME_TOKENS + _TYPED_TOKENS)


# -- bytes ----------------------------------------------------------------------------------------------------


def array_numbers(job: Job) -> int:
    """How many numbers the arrays hold; tensors are not read for it."""
    family = job.source.family
    shapes = family.expected(job.source.config)
    if family.head in job.source.names():
        shapes[family.head] = (job.sizes.vocab, job.sizes.hidden)
    if job.options.level == "browse":
        shapes = {n: shapes[n] for n in (family.embed, *map(family.gate_name, range(job.sizes.n_layers)))}
    return sum(math.prod(shape) for shape in shapes.values())


def bytes_hashed(job: Job) -> float:
    """Bytes that the arrays' stage reads and writes with checksums: the model's own and the arrays'."""
    parameters = job.sizes.parameters * DTYPE_BYTES[job.stored]
    return float(parameters + array_numbers(job) * DTYPE_BYTES[job.dtype])


def table_rows(job: Job) -> int:
    """Rows of the tables that grow with the model."""
    return sum(_rows(job).values())


def disk_bytes(job: Job) -> int:
    """Bytes of the whole vindex."""
    down_meta = sum(job.sizes.intermediate) * (8 + 8 * job.options.top_k)
    copied = sum(map(len, job.source.tokenizer_files().values()))
    facts = _FACTS_BYTES * (job.options.probe + bool(job.options.n_names(job.sizes.parameters)))
    arrays = array_numbers(job) * DTYPE_BYTES[job.dtype]
    return arrays + down_meta + copied + facts + table_bytes(job) + _EMPTY_BYTES


def table_bytes(job: Job) -> int:
    """Bytes of the tables that grow with the model, as Parquet and in model.duckdb."""
    return sum(_ROW_BYTES[table] * rows for table, rows in _rows(job).items())


def _rows(job: Job) -> dict[str, int]:
    features, tokens = described_features(job), token_count(job)
    return {
        "tokens": job.sizes.vocab,
        "features": features,
        "feature_tokens": features * 3 * job.options.top_k,
        "token_features": tokens * min(TOKEN_FEATURES, features),
    }
