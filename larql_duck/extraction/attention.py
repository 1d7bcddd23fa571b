"""Attention from one position to a few keys, of many sequences at once: products and sums of whole blocks.

transformers' own functions multiply small matrices, one for every sequence and head; here each has one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NAME = "larql_duck_one_query"


def one_query_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each query [n, heads, 1, width] reads from n sequences' keys and values [n, groups, length, width].

    The first is [n, 1, heads, width], the second the weights [n, groups, heads / groups, length]. A mask is added to the
    scores, [1, 1, 1, length].
    """
    n, heads, _one, width = query.shape
    grouped = query.reshape(n, key.shape[1], -1, 1, width)
    scores = (grouped * key.unsqueeze(2)).sum(-1) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    read = (weights.unsqueeze(-1) * value.unsqueeze(2)).sum(3)
    return read.reshape(n, 1, heads, -1), weights


@contextmanager
def one_query(config: Any) -> Iterator[None]:
    """A context in which models of this config attend by `one_query_attention`."""
    # It takes seconds to import, and only the context pass needs it.
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, one_query_attention)
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
