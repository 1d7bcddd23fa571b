"""Direct logit attribution: what every feature, attention layer and bias adds to one token's centred logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.capture import Capture
from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import linear_norm


@dataclass(frozen=True)
class Attribution:
    """Contributions in logits to k tokens' centred logits (the logit minus the vocabulary's mean, before soft-caps).

    features [k, L, features], attention [k, L] (its output bias included), ffn_bias [k, L], embedding [k] (positions
    included), bias [k] (final norm's and head's), heads [k, L, heads] or None (without attn_bias), attn_bias [k, L],
    total [k]: the centred logit as the model computed it. The parts add up to total where `parts_problem` is None.
    """

    token_ids: torch.Tensor
    features: torch.Tensor
    attention: torch.Tensor
    ffn_bias: torch.Tensor
    embedding: torch.Tensor
    bias: torch.Tensor
    total: torch.Tensor
    attn_bias: torch.Tensor
    heads: torch.Tensor | None = None

    def summed(self) -> torch.Tensor:
        """The sum of all parts, [k]; equals total up to rounding."""
        features = self.features.sum((1, 2), dtype=torch.float64)
        rest = self.attention.sum(1, dtype=torch.float64) + self.ffn_bias.sum(1, dtype=torch.float64)
        return (features + rest + self.embedding + self.bias).float()

    def attention_share(self) -> torch.Tensor:
        """Attention's part of the centred logit, [k]; outside 0..1 where parts of opposite sign cancel."""
        return self.attention.sum(1) / self.total


class LogitDirection:
    """One token a row, and the directions along which a row's residual adds to the token's centred logit.

    after f32 [rows, hidden] reads the residual after the final norm, before f32 [rows, hidden] the residual before it,
    with the norm's actual factor. head_constant [rows] is what the head's bias adds, constant [rows] what the biases
    of final norm and head add together.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, residual: torch.Tensor, tokens: torch.Tensor) -> None:
        """residual f32 [rows, hidden] is the last layer's; tokens int64 [rows]."""
        modules = engine.modules
        self.tokens = tokens.to(engine.device)
        final = linear_norm(modules.final_norm, residual)
        self.after = (engine.head_weight[self.tokens].float() - engine.head_mean) * engine.logit_scale
        self.before = final.pull(self.after)
        self.head_constant = torch.zeros(len(self.tokens), device=engine.device)
        bias = getattr(modules.head, "bias", None)
        if isinstance(bias, torch.Tensor):
            self.head_constant = (bias[self.tokens].float() - bias.float().mean()) * engine.logit_scale
        self.constant = final.constant(self.after) + self.head_constant


@torch.inference_mode()
def attribute(
    engine: Engine,
    capture: Capture,
    token_ids: Sequence[int] | torch.Tensor,
    *,
    rows: Sequence[int] | torch.Tensor | None = None,
    heads: bool = False,
) -> Attribution:
    """The Attribution of token_ids [k], each for the captured prompt named in rows [k] (default 0, 1, ...).

    Norms are replaced by the linear maps that they were in this pass: the final norm's actual factor, weight and
    (LayerNorm) centring, and the factor and weight of post-norms where a family has them. A capture of all positions
    numbers its rows prompt by prompt, position by position. LarqlError when the capture lacks a part.
    """
    device = engine.device
    tokens = torch.as_tensor(token_ids, dtype=torch.int64, device=device)
    if rows is None:
        index = torch.arange(len(tokens), device=device)
    else:
        index = torch.as_tensor(rows, dtype=torch.int64, device=device)

    def picked(name: str) -> torch.Tensor:
        value = capture.need(name)
        if capture.positions == "all":
            value = value.flatten(1, 2)
        return value[:, index].float()

    modules, scale = engine.modules, engine.modules.residual_scale
    residual = picked("residual")
    direction = LogitDirection(engine, residual[-1], tokens)
    before = direction.before

    activation = picked("activation")
    width = activation.shape[-1]
    by_feature = torch.zeros(len(tokens), engine.n_layers, width, device=device)
    ffn_bias = torch.zeros(len(tokens), engine.n_layers, device=device)
    by_head = torch.zeros(len(tokens), engine.n_layers, modules.n_heads, device=device) if heads else None
    attn_bias = torch.zeros_like(ffn_bias)
    attn_branch = picked("attn_branch") if any(p.attn_post for p in modules.layers) else None
    ffn_branch = picked("ffn_branch") if any(p.ffn_post for p in modules.layers) else None
    head_inputs = picked("heads") if heads else None
    for i, parts in enumerate(modules.layers):
        along = before * scale
        if parts.ffn_post is not None and ffn_branch is not None:
            post = linear_norm(parts.ffn_post, ffn_branch[i])
            ffn_bias[:, i] += post.constant(along)
            along = post.pull(along)
        written = _project(along, parts.down_rows())
        by_feature[:, i, : written.shape[1]] = activation[i, :, : written.shape[1]] * written
        down_bias = parts.down_bias()
        if down_bias is not None:
            ffn_bias[:, i] += along @ down_bias.float()
        if (biases := parts.expert_biases()) is not None:
            chosen = picked("routing")[i, :, : len(biases)]
            ffn_bias[:, i] += ((chosen @ biases.float()) * along).sum(-1)
        along = before * scale
        if parts.attn_post is not None and attn_branch is not None:
            post = linear_norm(parts.attn_post, attn_branch[i])
            attn_bias[:, i] += post.constant(along)
            along = post.pull(along)
        bias = parts.attn_out_bias()
        if bias is not None:
            attn_bias[:, i] += along @ bias.float()
        if by_head is not None and head_inputs is not None:
            read = parts.attn_out_rows()
            products = _project(along, read) * head_inputs[i, :, : len(read)]
            if parts.attends:
                by_head[:, i] = products.unflatten(-1, (modules.n_heads, -1)).sum(-1)
            else:  # what has no heads is one
                by_head[:, i, 0] = products.sum(-1)
    normed = capture.need("normed")
    normed = (normed.flatten(0, 1) if capture.positions == "all" else normed)[index].float()
    return Attribution(
        token_ids=tokens,
        features=by_feature,
        attention=torch.einsum("lkh,kh->kl", picked("attn_delta"), before),
        ffn_bias=ffn_bias,
        embedding=(residual[0] * before).sum(-1),
        bias=direction.constant,
        total=(normed * direction.after).sum(-1) + direction.head_constant,
        attn_bias=attn_bias,
        heads=by_head,
    )


# How far the parts of one prompt's logit may be off, as a share of their sizes together, by the compute dtype.
_ROUNDING = {torch.float32: 1e-3}
_COARSE = 3e-2
_PROBLEMS: WeakKeyDictionary[Engine, str | None] = WeakKeyDictionary()


def require_parts(engine: Engine) -> None:
    """Raise LarqlError where the parts that attribution knows are not what the model's logits consist of."""
    if problem := parts_problem(engine):
        raise LarqlError(f"{problem}, so nothing can be said about what adds to them; INFER works")


def parts_problem(engine: Engine) -> str | None:
    """What is wrong with the parts of this model's logits; None where they add up.

    Families have factors and norms of their own that no config names. So the parts of one prompt's highest and lowest
    logit are summed once an engine and compared with what the model said.
    """
    if engine not in _PROBLEMS:
        _PROBLEMS[engine] = _compared(engine)
    return _PROBLEMS[engine]


@torch.inference_mode()
def _compared(engine: Engine) -> str | None:
    products: list[torch.Tensor] = []
    hook = engine.modules.head.register_forward_hook(lambda _, __, out: products.append(out[0, -1].float()))
    scale = engine.logit_scale
    with hook:
        capture = engine.capture(engine.pad([engine.vocab // n for n in (7, 5, 3)]))
    logits, raw = capture.need("logits")[0], products[-1] * scale
    tokens = torch.stack([logits.argmax(), logits.argmin()])
    parts = attribute(engine, capture, tokens, rows=[0, 0])
    whole = raw[tokens] - raw.mean()
    layers = torch.cat([parts.features.sum(-1), parts.attention, parts.ffn_bias], dim=1)
    size = layers.abs().sum(1) + parts.embedding.abs() + parts.bias.abs()
    most = _ROUNDING.get(engine.model.dtype, _COARSE)
    off = torch.maximum((parts.summed() - whole).abs(), (engine.capped(raw) - logits).abs().max())
    if bool((off <= most * size).all()):
        return None
    worst = int((off / size).argmax())
    return (
        f"the parts of a logit do not add up in this model (model_type {engine.family.name!r}): "
        f"{float(parts.summed()[worst]):.2f} where it says {float(whole[worst]):.2f}"
    )


def _project(direction: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    # [k, hidden] times [features, hidden] transposed, in f32 also where the weights are narrower.
    return direction @ rows.t().float()
