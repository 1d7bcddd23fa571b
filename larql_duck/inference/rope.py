"""Rotary frequencies that depend on a prompt's length: every row has those of its own, whoever shares its pass.

transformers takes one set for a whole batch, by its longest row, and lets dynamic frequencies stay for later passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class RopeByLength:
    """The rotary modules of a model whose frequencies depend on the length. `modules` is empty for most models.

    lengths int64 [n], set while a pass runs, are what each row's frequencies are chosen by; None: the positions seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.lengths: torch.Tensor | None = None
        self.modules = [m for m in model.modules() if _kinds(m)]
        self._limits = [limit for m in self.modules for limit in _limits(m)]
        for module in self.modules:
            module.forward = self._row_by_row(module, module.forward)

    @property
    def endless(self) -> bool:
        """Whether the model has frequencies for any length: the config's longest is where they begin to change."""
        return any("dynamic" in kind for m in self.modules for kind in _kinds(m))

    def chosen(self, lengths: torch.Tensor) -> torch.Tensor:
        """For lengths int64 [n], numbers [n, k] that are the same where the frequencies are."""
        numbers = [
            lengths.clamp(min=limit) if dynamic else (lengths > limit).long()
            for dynamic, limit in self._limits
        ]
        return torch.stack(numbers, 1) if numbers else lengths.new_zeros(len(lengths), 1)

    def _row_by_row(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            lengths = position_ids.amax(1) + 1 if self.lengths is None else self.lengths
            kinds, of_row = self.chosen(lengths).unique(dim=0, return_inverse=True)
            out: tuple[torch.Tensor, ...] = ()
            for kind in range(len(kinds)):
                rows = of_row == kind
                # A last column that says how long these rows are; it goes again with what comes of it.
                last = lengths[rows].max() - 1
                positions = torch.cat([position_ids[rows], last.expand(int(rows.sum()), 1)], 1)
                with _as_it_was(module):
                    parts = original(x, positions, *args, **kwargs)
                out = out or tuple(p.new_empty(len(lengths), *p[:, :-1].shape[1:]) for p in parts)
                for whole, part in zip(out, parts, strict=True):
                    whole[rows] = part[:, :-1]
            return out

        return forward


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """A context after which a rotary module's frequencies, and the length they are for, are those from before."""
    buffers = dict(module._buffers)
    lengths = {k: v for k, v in vars(module).items() if k.endswith("max_seq_len_cached")}
    try:
        yield
    finally:
        module._buffers.update(buffers)
        for name, length in lengths.items():
            setattr(module, name, length)


def _kinds(module: nn.Module) -> list[str]:
    """The module's types of rotary embedding that depend on the length, by layer type where layers differ."""
    kinds = getattr(module, "rope_type", None)
    named = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
    return [k for k in named if isinstance(k, str) and ("dynamic" in k or k == "longrope")]


def _limits(module: Any) -> list[tuple[bool, int]]:
    """For each such type: whether it is dynamic, and the longest length with the first frequencies."""
    parameters, kinds = module.config.rope_parameters, module.rope_type
    out = []
    for layers, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if "dynamic" in kind:
            out.append((True, int(module.original_max_seq_len)))
        elif kind == "longrope":
            own = parameters if layers is None else parameters[layers]
            out.append((False, int(own["original_max_position_embeddings"])))
    return out
