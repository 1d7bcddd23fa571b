"""Which features a model can do without: measured by what they do to its answers and to ordinary text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from larql_duck.distillation.probes import PromptAnswer
from larql_duck.inference.engine import Engine
from larql_duck.inference.loading import accepted
from larql_duck.progress import report

_BATCH = 512


def feature_effects(engine: Engine, asked: Sequence[PromptAnswer]) -> list[torch.Tensor]:
    """By layer, f32 [features]: how much each feature changes the log p of the answers, to first order (nats, mean).

    A feature's activation times the gradient there is the change that setting it to zero makes, to first order
    (Molchanov et al. 2017); summed over a prompt's positions, its size is averaged over the prompts. Text counts as an
    answer behind its first token.
    """
    effects = [torch.zeros(n) for n in engine.n_features]
    whole = [[*prompt, *answer] for prompt, answer in asked]
    done = 0
    for group in _same_lengths(whole):
        ids = torch.tensor([whole[i] for i in group], device=engine.device)
        answers = [len(asked[i][1]) for i in group]
        activations: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(engine.modules.pass_lock)
            for layer, parts in enumerate(engine.modules.layers):
                stack.enter_context(parts.down.register_forward_pre_hook(partial(_watch, activations, layer)))
            options = accepted(engine.model, {"use_cache": False, "logits_to_keep": max(answers) + 1})
            logits = engine.model(input_ids=ids, **options).logits.float()
        log_p = torch.stack(
            [
                torch.log_softmax(row[-size - 1 : -1], -1).gather(1, own[-size:, None]).sum()
                for row, own, size in zip(logits, ids, answers, strict=True)
            ]
        )
        gradients = torch.autograd.grad(log_p.sum(), list(activations.values()))
        for (layer, activation), gradient in zip(activations.items(), gradients, strict=True):
            change = (activation.detach() * gradient).view(len(group), -1, activation.shape[-1])
            effects[layer] += change.sum(1).abs().sum(0).float().cpu() / len(asked)
        done += len(group)
        report("effects of features", done, len(asked))
    return effects


def _same_lengths(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of rows of one length each, so that nothing is padded."""
    lengths = list(map(len, rows))
    for length in sorted(set(lengths)):
        same = [i for i, other in enumerate(lengths) if other == length]
        size = max(1, _BATCH // length)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _watch(found: dict[int, torch.Tensor], layer: int, module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
    # No weight takes part in a gradient, so the first activation is where the graph begins.
    found[layer] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
    return (found[layer], *args[1:])


def strongest(effects: Sequence[torch.Tensor], count: int) -> dict[int, torch.Tensor]:
    """By layer the `count` features with the largest effects, ascending."""
    return {layer: effect.topk(count).indices.sort().values for layer, effect in enumerate(effects)}
