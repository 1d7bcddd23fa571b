"""The vectors that LQL's text stands for: of a prompt and of an entity, from embeddings or from a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from larql_duck.errors import SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer
from larql_duck.vindex.store import Vindex

# The neutral first word before an entity or a token; a BOS comes before it where the tokenizer adds one.
NEUTRAL = "The"


class QueryVectors:
    """Vectors for one vindex. Those in basis 'context' are FFN inputs (after the norm) of real forward passes."""

    def __init__(self, vindex: Vindex, engine: Callable[[], Engine]) -> None:
        self._vindex = vindex
        self._engine = engine

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return load_tokenizer(self._vindex.tokenizer_files(), self._vindex.vocab)

    @cached_property
    def _embeddings(self) -> torch.Tensor:
        """The mapped embedding matrix."""
        return self._vindex.embeddings()

    def prompt(self, prompt: str, basis: str, layers: Sequence[int]) -> np.ndarray:
        """The vector of a prompt: float32 [hidden] for 'embedding' (its last token's, scaled), [layers, hidden] for
        'context' (what each layer's FFN receives at the last position)."""
        if basis == "context":
            return self._context(prompt, layers)
        return self._embedding([self._last_id(prompt)])

    def entity(self, entity: str, basis: str, layers: Sequence[int]) -> np.ndarray:
        """The vector of an entity as it stands in running text: float32 [hidden] for 'embedding' (the mean of its
        tokens' scaled embeddings), [layers, hidden] for 'context' (at its last token behind a neutral word)."""
        if not entity.strip():
            raise SemanticError("an empty name has no vector; name an entity")
        if basis == "context":
            return self._context(f"{NEUTRAL} {entity.strip()}", layers)
        return self._embedding(self.tokenizer.entity_ids(entity))

    def last_token(self, prompt: str) -> str:
        """The prompt's last token, decoded, its leading space kept."""
        return self.tokenizer.token(self._last_id(prompt))

    def _last_id(self, prompt: str) -> int:
        ids = self.tokenizer.encode(prompt)
        if not ids:
            raise SemanticError("the prompt has no token; write at least one word")
        return ids[-1]

    def _embedding(self, ids: Sequence[int]) -> np.ndarray:
        rows = self._embeddings
        known = [i for i in ids if i < len(rows)]
        if not known:
            raise SemanticError("none of its tokens has an embedding; write another word")
        mean = rows[known].double().mean(dim=0) * self._vindex.embed_scale
        return np.asarray(mean.float().numpy())

    def _context(self, prompt: str, layers: Sequence[int]) -> np.ndarray:
        self._vindex.require("inference", "BASIS CONTEXT")
        inputs = self._engine().capture(prompt, ["ffn_input"]).need("ffn_input")
        return np.ascontiguousarray(inputs[list(layers), 0].float().cpu().numpy())
