"""Causal tracing: which layer and position of a prompt carries the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from larql_duck.catalog.forward_tables import as_table
from larql_duck.charts.figures import causal_chart
from larql_duck.charts.saving import svg
from larql_duck.inference.batch import Batch
from larql_duck.inference.effects import log_probability
from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import starting_at
from larql_duck.inference.targets import Target, target_or_prediction

if TYPE_CHECKING:
    import altair as alt

# Positions of one pass times the hidden size of the prompt stay below this many numbers, and its logits too.
_NUMBERS = 1 << 24


@dataclass(frozen=True)
class CausalTrace:
    """What patching clean residuals into a corrupted prompt restores.

    table has the columns of SCHEMAS['causal'], by layer and position. clean and corrupted are the answer's
    probability in the two untouched prompts; target is the answer; notices are remarks.
    """

    table: pa.Table
    target: Target
    clean: float
    corrupted: float
    tokens: tuple[str, ...]
    notices: tuple[str, ...] = ()

    def grid(self, column: str = "recovery") -> np.ndarray:
        """A column as a matrix, f64 [layers + 1, positions]; row 0 is the embedding (layer -1)."""
        return np.asarray(self.table[column].to_numpy()).reshape(-1, len(self.tokens))

    def chart(self) -> alt.VConcatChart:
        """A heat map of the recovery by layer and position.

        `.save("x.svg")`, `.save("x.png")` and `.save("x.html", inline=True)` write it.
        """
        return causal_chart(self.table, token=self.target.token, clean=self.clean, corrupted=self.corrupted)

    def _repr_html_(self) -> str:
        return svg(self.chart())


def causal_trace(engine: Engine, clean: str, corrupted: str, *, target: str | None = None) -> CausalTrace:
    """The CausalTrace of two prompts: one forward pass each, and one per layer and position from that layer on.

    For every layer (and -1, the embedding) and every position, the corrupted prompt runs with the clean prompt's
    residual in that one place. target is the answer watched (default: the clean prompt's prediction). Prompts of
    unequal length are aligned at their ends; positions that only one has are left out, with a remark. LarqlError for
    an empty or overlong prompt.
    """
    good, bad = engine.encode(clean), engine.encode(corrupted)
    of_clean = engine.capture(good, ["residual"], positions="all")
    of_corrupted = engine.capture(bad, ["residual"], positions="all")
    clean_logits, bad_logits = of_clean.need("logits"), of_corrupted.need("logits")
    answer = target_or_prediction(engine.tokenizer, target, clean_logits[0])
    token = torch.tensor([answer.token_id], device=engine.device)
    high, low = (float(logits[0, answer.token_id]) for logits in (clean_logits, bad_logits))
    p_clean, p_bad = (float(log_probability(logits, token).exp()) for logits in (clean_logits, bad_logits))
    shared = min(good.lengths[0], bad.lengths[0])
    t = bad.lengths[0]
    at = list(range(t - shared, t))
    source = of_clean.need("residual")[:, 0, -shared:]
    base = of_corrupted.need("residual")[:, 0]
    probability, logit = [], []
    for layer in range(-1, engine.n_layers):
        for logits in _patched(engine, bad, layer, base[layer + 1], source[layer + 1], at):
            tokens = token.expand(len(logits))
            probability += log_probability(logits, tokens).double().exp().tolist()
            logit += logits[:, answer.token_id].tolist()
    depth = engine.n_layers + 1
    names = [engine.tokenizer.token(i) for i in bad.row(0)[-shared:]]
    clean_names = [engine.tokenizer.token(i) for i in good.row(0)[-shared:]]
    gap = high - low
    table = as_table(
        "causal",
        {
            "layer": np.repeat(np.arange(-1, engine.n_layers, dtype=np.int32), shared),
            "position": at * depth,
            "token": names * depth,
            "clean_token": clean_names * depth,
            "probability": probability,
            "logit": logit,
            "effect": [p - p_bad for p in probability],
            "recovery": [(value - low) / gap if gap else None for value in logit],
        },
    )
    notices = list(answer.notices)
    if good.lengths != bad.lengths:
        notices.append(
            f"the prompts have {good.lengths[0]} and {bad.lengths[0]} tokens: their last {shared} are compared"
        )
    if gap <= 0:
        notices.append(f"the corrupted prompt favours {answer.token!r} no less than the clean one")
    return CausalTrace(table, answer, p_clean, p_bad, tuple(names), tuple(notices))


def _patched(
    engine: Engine, batch: Batch, layer: int, base: torch.Tensor, source: torch.Tensor, at: list[int]
) -> list[torch.Tensor]:
    """Logits [rows, vocab] of the corrupted prompt, one row a position of `at` replaced after `layer`.

    base [t, hidden] and source [len(at), hidden] are the residuals there. Layers up to `layer` are not run.
    """
    t, hidden = base.shape
    size = max(1, min(_NUMBERS // (t * hidden), _NUMBERS // engine.vocab))
    out = []
    for start in range(0, len(at), size):
        columns = at[start : start + size]
        rows = base.expand(len(columns), t, hidden).clone()
        rows[torch.arange(len(columns)), torch.tensor(columns)] = source[start : start + size]
        if layer == engine.n_layers - 1:
            out.append(engine.unembed(rows[:, -1]))
            continue
        ids, positions = (x.expand(len(columns), -1) for x in (batch.ids, batch.positions))
        with starting_at(engine.modules, layer + 1, rows):
            out.append(engine.run(ids, None, positions))
    return out
