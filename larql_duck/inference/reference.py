"""What is usual and what a relation looks like: mean activations and relation directions, measured on probe prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import watch_activations
from larql_duck.inference.predict import prompt_groups
from larql_duck.spelling import did_you_mean

# How many prompts stand for a relation, for all others, and for text in general.
PER_RELATION = 64
OTHERS = 128
GENERAL = 64


class Reference:
    """Measurements of one engine on probe prompts, each made when it is first needed and then kept.

    prompts gives {relation: prompts} (the `probes` table of a vindex); without any, mean activations are measured on
    single words behind "The" and there are no relation directions.
    """

    def __init__(self, engine: Engine, prompts: Callable[[], Mapping[str, Sequence[str]]] = dict) -> None:
        self._engine = engine
        self._prompts = prompts
        # By the texts they were measured on: probing adds prompts.
        self._means: dict[tuple[str, ...], torch.Tensor] = {}
        self._residuals: dict[tuple[str, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def prompts(self) -> dict[str, list[str]]:
        """Relation -> its distinct prompts, sorted."""
        return {name: sorted(set(texts)) for name, texts in sorted(self._prompts().items()) if texts}

    @property
    def means(self) -> torch.Tensor:
        """Mean activations, f32 [layers, features]: over every position but the first of the general prompts.

        The first position is left out because models park attention there, with activations unlike any other's.
        """
        known = [text for texts in self.prompts.values() for text in texts]
        texts = tuple(spread(known, GENERAL) if known else _words(self._engine))
        if texts not in self._means:
            self._means[texts] = self._mean_activation(texts)
        return self._means[texts]

    def _mean_activation(self, texts: Sequence[str]) -> torch.Tensor:
        engine = self._engine
        shape = (engine.n_layers, max(engine.n_features))
        total = torch.zeros(shape, dtype=torch.float64, device=engine.device)
        count = 0
        for rows in prompt_groups(engine, texts):
            batch = engine.encode([texts[i] for i in rows])
            counted = batch.mask & (batch.positions > 0)
            with watch_activations(engine.modules, partial(_add, total, counted)):
                engine.logits(batch)
            count += int(counted.sum())
        return (total / max(count, 1)).float()

    def direction(self, relation: str) -> torch.Tensor:
        """The relation's direction at every layer's output, f32 [layers, hidden]; each as long as a residual there.

        Mean last-position residual of its prompts minus that of all other relations' prompts, with the length of all
        these prompts' residuals (the mean of their L2 norms); at most PER_RELATION and OTHERS prompts, evenly spread
        over the sorted ones. LarqlError for a relation without prompts, or where no other relation has any.
        """
        prompts = self.prompts
        name = _named(relation, prompts)
        others = [text for other, texts in prompts.items() if other != name for text in texts]
        if not others:
            raise LarqlError(
                f"STEER compares {name!r} with other relations, and no other one was probed; "
                "probe one more: PROBE RELATIONS ..."
            )
        own, other = tuple(spread(prompts[name], PER_RELATION)), tuple(spread(others, OTHERS))
        (own_mean, own_norm), (other_mean, other_norm) = self._mean_residual(own), self._mean_residual(other)
        length = (own_norm * len(own) + other_norm * len(other)) / (len(own) + len(other))
        return torch.nn.functional.normalize(own_mean - other_mean, dim=1) * length[:, None]

    def _mean_residual(self, texts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean last-position residual [layers, hidden] at every layer's output, and the mean of their norms."""
        if texts not in self._residuals:
            engine = self._engine
            total = torch.zeros(engine.n_layers, engine.hidden, dtype=torch.float64, device=engine.device)
            norms = total.new_zeros(engine.n_layers)
            for rows in prompt_groups(engine, texts):
                residual = engine.capture([texts[i] for i in rows], ["residual"]).need("residual")[1:]
                total += residual.sum(1, dtype=torch.float64)
                norms += residual.norm(dim=2).sum(1, dtype=torch.float64)
            self._residuals[texts] = (total / len(texts)).float(), (norms / len(texts)).float()
        return self._residuals[texts]


def _named(relation: str, prompts: Mapping[str, Sequence[str]]) -> str:
    known = {name.lower(): name for name in prompts}
    name = known.get(relation.strip().lower())
    if name is not None:
        return name
    if not known:
        raise LarqlError("STEER needs probe prompts and there are none; run PROBE, or extract with probing")
    hint = did_you_mean(relation.strip(), known.values())
    raise LarqlError(f"no probe prompts for relation {relation!r}{hint}")


def _add(total: torch.Tensor, counted: torch.Tensor, layer: int, activation: torch.Tensor) -> None:
    rows = activation[counted]
    total[layer, : rows.shape[1]] += rows.sum(0, dtype=torch.float64)


def spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` of the items, evenly spaced, always the same ones."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _words(engine: Engine) -> list[str]:
    tokens = [text for _, _, text, is_word in engine.tokenizer.vocabulary() if is_word]
    if not tokens:
        raise LarqlError("the tokenizer has no word-like token to measure mean activations on")
    return [f"The {token}" for token in spread(tokens, GENERAL)]
