"""Vectors rounded to what a vindex stores, so that session, compiled vindex and model hold the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from larql_duck.errors import PatchError
from larql_duck.vindex.arrays import torch_dtype

if TYPE_CHECKING:
    import torch


def rounded(vector: torch.Tensor | np.ndarray, dtype: str) -> np.ndarray:
    """float32 [...]: `vector` rounded to dtype 'f32', 'f16' or 'bf16'; PatchError where it is then not finite."""
    import torch

    tensor = torch.from_numpy(vector) if isinstance(vector, np.ndarray) else vector.detach()
    out: np.ndarray = tensor.cpu().float().to(torch_dtype(dtype)).float().numpy()
    if not np.isfinite(out).all():
        raise PatchError(f"a vector does not fit {dtype}: it has numbers that are not finite")
    return out
