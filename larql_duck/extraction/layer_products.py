"""What is measured of one layer's matrices alone, on whichever machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from larql_duck.extraction.job import Job
from larql_duck.extraction.promoted_tokens import OutputHead
from larql_duck.models.source import WeightSource, ffn_matrix


def promoted_of_layers(
    job: Job, layers: Iterable[int], *, keep: bool, device: str
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(layer, `promoted_of_layer`) of each of these layers of the job's model, in order; keep and device as of OutputHead."""
    head = OutputHead.of(job.source, job.vocabulary, keep=keep, moments=True, device=device)
    for layer in layers:
        yield layer, promoted_of_layer(job.source, head, layer, job.options.top_k)


def promoted_of_layer(
    source: WeightSource, head: OutputHead, layer: int, top_k: int
) -> dict[str, np.ndarray]:
    """The promoted tokens of a layer's features (arrays of PromotedTokens, named promoted_*) and the norms of their gate and
    up rows, f32 [features].
    """
    promoted = head.search(ffn_matrix(source, layer, "down"), top_k)
    gate = ffn_matrix(source, layer, "gate").float()
    up = ffn_matrix(source, layer, "up")
    up_norm = torch.full((len(gate),), torch.nan) if up is None else up.float().norm(dim=1)
    measured = {f"promoted_{name}": values.numpy() for name, values in vars(promoted).items()}
    measured["promoted_ids"] = measured["promoted_ids"].astype(np.int32)
    return measured | {"gate_norm": gate.norm(dim=1).numpy(), "up_norm": up_norm.numpy()}
