"""How much work an extraction is, in operations, rows and bytes: counted from the model's sizes, never timed."""

from __future__ import annotations

from larql_duck.extraction.job import Job

# Operations up to which `auto` takes the context basis: half an hour on two cores.
CONTEXT_LIMIT = 1e14


def context_operations(job: Job) -> float:
    """Multiplications and additions of the context pass."""
    sizes = job.sizes
    layers = sum(sizes.attention + 3 * sizes.hidden * n for n in sizes.intermediate[: job.layers.stop])
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
