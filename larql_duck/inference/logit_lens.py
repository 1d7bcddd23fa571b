"""What residuals say at every layer: the logit lens, lengths, and a token's rank, probability and contributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from larql_duck.inference.lens import readings
from larql_duck.inference.modules import linear_norm

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine

Columns = dict[str, np.ndarray]


class States:
    """Rows of residuals through the layers, f32 [layers + 1, rows, hidden]; index layer + 1, 0 is the embedding.

    A row is a position of a prompt, or the last position of one prompt of several. attn and ffn are what each branch
    added (zeros at the embedding).
    """

    def __init__(self, residual: torch.Tensor, attn: torch.Tensor, ffn: torch.Tensor) -> None:
        """residual [layers + 1, rows, hidden]; attn and ffn [layers, rows, hidden]."""
        self.residual = residual.float()
        zero = torch.zeros_like(self.residual[:1])
        self.attn = torch.cat([zero, attn.float()])
        self.ffn = torch.cat([zero, ffn.float()])

    def arrays(self) -> np.ndarray:
        """Residual, attention delta and FFN delta, f32 [rows, layers + 1, 3, hidden]."""
        stacked = torch.stack([self.residual, self.attn, self.ffn], dim=2)
        return np.ascontiguousarray(stacked.transpose(0, 1).cpu().numpy())


class Aim:
    """One token a row, and the direction in which a residual of that row adds to the token's centred logit.

    direction [rows, hidden] holds the final norm's actual factor; constant [rows] is what the final norm's and the
    head's biases add.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, states: States, tokens: torch.Tensor) -> None:
        anatomy = engine.anatomy
        self.tokens = tokens.to(engine.device)
        final = linear_norm(anatomy.final_norm, states.residual[-1])
        rows = (engine.head_weight[self.tokens].float() - engine.head_mean) * anatomy.logit_scale
        self.direction = final.pull(rows)
        self.constant = final.constant(rows)
        bias = getattr(anatomy.head, "bias", None)
        if isinstance(bias, torch.Tensor):
            own = bias[self.tokens].float() - bias.float().mean()
            self.constant = self.constant + own * anatomy.logit_scale


@torch.inference_mode()
def read_out(engine: Engine, states: States, shown: Sequence[int], aim: Aim | None = None) -> Columns:
    """Columns of a trace, each [rows, len(shown)]: norms, the lens's top token (top_id) and its probability.

    shown lists layers, -1 for the embedding. With an aim also token_rank (from 1), token_probability and the logits
    that attention and FFN add; the embedding's part and the constant stand under ffn_logit of layer -1.
    """
    index = torch.tensor([layer + 1 for layer in shown], dtype=torch.int64, device=states.residual.device)
    parts = {"attn": states.attn[index], "ffn": states.ffn[index], "residual": states.residual[index]}
    found = {f"{name}_norm": _array(part.norm(dim=-1).t()) for name, part in parts.items()}
    if aim is not None:
        for name in ("attn", "ffn"):
            logit = torch.einsum("lrh,rh->rl", parts[name], aim.direction)
            if name == "ffn" and shown and shown[0] == -1:
                logit[:, 0] = (states.residual[0] * aim.direction).sum(-1) + aim.constant
            found[f"{name}_logit"] = _array(logit)
    rows = parts["residual"].transpose(0, 1)
    tokens = None if aim is None else aim.tokens.repeat_interleave(len(shown))
    lens = _lens(engine, rows.reshape(-1, rows.shape[-1]), tokens)
    return found | {name: column.reshape(rows.shape[0], len(shown)) for name, column in lens.items()}


def _lens(engine: Engine, residual: torch.Tensor, tokens: torch.Tensor | None) -> Columns:
    """What each residual [rows, hidden] would predict if it were the last one, and how it ranks its token of `tokens`."""
    names = ["top_id", "probability"] + ([] if tokens is None else ["token_rank", "token_probability"])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    start = 0
    for logits in readings(engine, residual):
        whole = torch.logsumexp(logits, dim=-1)
        highest = logits.max(dim=-1).values
        parts["top_id"].append(best(logits, highest))
        parts["probability"].append(_array((highest - whole).double().exp()))
        if tokens is not None:
            own = logits.gather(1, tokens[start : start + len(logits), None])
            parts["token_rank"].append(_array(1 + (logits > own).sum(-1)))
            parts["token_probability"].append(_array((own[:, 0] - whole).double().exp()))
        start += len(logits)
    return {name: np.concatenate(values) if values else np.zeros(0) for name, values in parts.items()}


def best(logits: torch.Tensor, highest: torch.Tensor) -> np.ndarray:
    """The id of each row's largest logit, `highest` [n] of logits [n, vocab], int64; the lowest id among equals."""
    ids = _array(logits.argmax(dim=-1))
    # argmax leaves open which of several equal values it names.
    for row in ((logits == highest[:, None]).sum(-1) > 1).nonzero().flatten().tolist():
        ids[row] = int((logits[row] == highest[row]).nonzero()[0])
    return ids


def _array(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.cpu().numpy())
