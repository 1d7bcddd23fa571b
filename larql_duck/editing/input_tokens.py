"""The in side of edited slots: what their gate rows answer to, at the inputs that the vindex's other rows were measured at.

The inputs are the unedited model's: every row of the tables then speaks of the same ones, and z can be compared. They
are collected once a session and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from larql_duck.progress import Ticker

if TYPE_CHECKING:
    import torch

    from larql_duck.extraction.table_rows import Vocabulary
    from larql_duck.vindex.store import Vindex

# Multiplications and additions that running the vocabulary through the lower layers may take; beyond, the in side of
# edited slots stays unknown. A model of 135 million parameters and 49,000 tokens gets to two thirds of its depth.
MOST_WORK = 6e12
# Layers whose inputs are kept for the next edit.
_KEPT = 3


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's FFN receives at every word-like token: x f32 [tokens, hidden], with the layer's activation and bias."""

    x: torch.Tensor
    act: Callable[[torch.Tensor], torch.Tensor]
    bias: torch.Tensor | None


@dataclass(frozen=True)
class InputTokenRow:
    """One slot's in side: its k best tokens' ids, gate values and activations, and mean and std over all tokens.

    token_ids, gates, activations and z are the candidates for token_features: tokens to which the slot is specific
    enough. Activations are NaN where there is no up matrix to ask.
    """

    ids: np.ndarray
    scores: np.ndarray
    acts: np.ndarray
    mean: float
    std: float
    token_ids: np.ndarray
    gates: np.ndarray
    activations: np.ndarray
    z: np.ndarray


class InputTokens:
    """Inputs of a vindex's word-like tokens, layer by layer, in its own basis."""

    def __init__(self, vindex: Vindex, vocabulary: Vocabulary) -> None:

        options = vindex.manifest.options
        self.vindex = vindex
        self.basis: str = options.get("in_basis", "embedding")
        self.k = int(options.get("top_k", 10))
        limit = options.get("context_tokens")
        self.ids = vocabulary.word_ids
        if self.basis == "context" and limit is not None:
            self.ids = self.ids[: int(limit)]
        self._inputs: dict[int, LayerInputs] = {}
        self._embedded: Any = None

    def work(self, layers: Iterable[int]) -> float:
        """Multiplications and additions that collecting the inputs of these layers still takes."""
        missing = [layer for layer in layers if layer not in self._inputs]
        if self.basis != "context" or not missing:
            return 0.0
        hidden = self.vindex.hidden
        counts = self.vindex.n_features[: max(missing) + 1]
        return 2.0 * len(self.ids) * sum(3 * hidden * n + 4 * hidden * hidden for n in counts)

    def collect(self, layers: Sequence[int], progress: Ticker) -> None:
        """Makes the inputs of these layers ready for `row`; progress is called with (layers done, layers)."""
        missing = sorted({layer for layer in layers if layer not in self._inputs})
        if not missing:
            return
        if len(self._inputs) + len(missing) > _KEPT:
            self._inputs.clear()
            missing = sorted(set(layers))
        if self.basis == "context":
            self._inputs.update(_context_inputs(self.vindex, self.ids, missing, progress))
        else:
            from larql_duck.extraction.embedding import EmbeddingInputs

            if self._embedded is None:
                self._embedded = EmbeddingInputs(self.vindex, self.ids)
            for layer in missing:
                self._inputs[layer] = LayerInputs(self._embedded.rows, self._embedded.act, None)

    def rows(
        self,
        layer: int,
        features: Sequence[int | None],
        gate: np.ndarray,
        up: np.ndarray | None,
        least_z: np.ndarray,
    ) -> list[InputTokenRow]:
        """The in sides of slots of a layer that was collected: gate and up f32 [slots, hidden].

        features says which slot of the base each row replaces (None: an appended one), for its bias. least_z [tokens]:
        a token's candidates have a larger z.
        """
        import torch

        found = self._inputs[layer]
        out: list[InputTokenRow] = []
        # As many at a time as keep the values below 32 MB.
        step = max(1, (1 << 23) // max(len(self.ids), 1))
        for start in range(0, len(gate), step):
            part = slice(start, start + step)
            values = found.x @ torch.from_numpy(gate[part]).t()
            if found.bias is not None:
                shift = [0.0 if f is None else float(found.bias[f]) for f in features[part]]
                values += torch.tensor(shift)
            acts = found.act(values)
            if up is not None:
                acts = acts * (found.x @ torch.from_numpy(up[part]).t())
            for i in range(values.shape[1]):
                out.append(self._row(values[:, i].numpy(), acts[:, i].numpy(), least_z))
        return out

    def _row(self, values: np.ndarray, acts: np.ndarray, least_z: np.ndarray) -> InputTokenRow:
        exact = values.astype(np.float64)
        mean, std = float(exact.mean()), float(exact.std())
        z = ((values - np.float32(mean)) / np.float32(std)) if std > 0 else np.full_like(values, -np.inf)
        top = np.argsort(-values, kind="stable")[: self.k]
        near = np.flatnonzero(z > least_z)
        return InputTokenRow(
            self.ids[top], values[top], acts[top], mean, std,
            self.ids[near], values[near], acts[near], z[near].astype(np.float32),
        )  # fmt: skip


def _context_inputs(
    vindex: Vindex, ids: np.ndarray, layers: Sequence[int], progress: Ticker
) -> dict[int, LayerInputs]:
    import torch

    from larql_duck.extraction.context import TokenFeatures, run_layer
    from larql_duck.extraction.parallel import workers
    from larql_duck.extraction.stream import TokenStream
    from larql_duck.inference.query_vectors import NEUTRAL
    from larql_duck.inference.topk import row_blocks
    from larql_duck.models.tokenizer import load_tokenizer

    stream = TokenStream(vindex, load_tokenizer(vindex).encode(NEUTRAL), torch.from_numpy(ids))
    nobody = TokenFeatures(0, list(vindex.n_features))
    out: dict[int, LayerInputs] = {}
    last = max(layers)
    for layer in range(last + 1):
        if layer not in layers:
            run_layer(stream, layer, ids, 1, nobody, False)
            progress(layer + 1, last + 1)
            continue
        with torch.no_grad(), workers() as pool, stream.layer(layer, pool) as part:
            x = torch.empty_like(stream.residual)
            act: Any = getattr(part.ffn, "act_fn", None) or part.ffn.act
            bias: Any = getattr(part.gate, "bias", None)
            for start, stop in row_blocks(len(x), 1024):
                inner = part.ffn_norm(stream.residual[start:stop])
                x[start:stop] = inner
                if layer < last:
                    hidden = act(part.gate(inner))
                    if part.up is not None:
                        hidden = hidden * part.up(inner)
                    stream.add_ffn(part, start, stop, part.down(hidden))
            out[layer] = LayerInputs(x, act, None if bias is None else bias.detach().clone())
        progress(layer + 1, last + 1)
    return out
