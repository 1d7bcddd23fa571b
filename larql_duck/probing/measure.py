"""Which features carry a fact, and whether they do: direct contributions, then effects of taking them away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch

from larql_duck.inference.attribution import attribute
from larql_duck.inference.batch import pad
from larql_duck.inference.effects import effects_after
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Head, Heads, prefill
from larql_duck.probing.checkpoint import Checkpoint, KeptBatch
from larql_duck.probing.combine import Answer, prompt_ids
from larql_duck.probing.replies import BATCH_CACHE, chunks

# A fact lists its strongest positive features until they sum to this share of all positive contributions.
SHARE = 0.5
MOST_FEATURES = 32
# Features whose effect is measured alone.
SINGLE = 8
# Facts of one batch, and the contributions computed for them.
BATCH_FACTS, BATCH_CONTRIBUTIONS = 128, 1 << 23


@dataclass(frozen=True)
class FeatureEffect:
    """A feature's part in a fact: its contribution in logits, its activation, and the drop of log p without it.

    effect is None where it was not measured.
    """

    layer: int
    feature: int
    score: float
    activation: float
    effect: float | None


@dataclass(frozen=True)
class FactFeatures:
    """A fact's features, strongest contribution first; effect is the drop of log p (nats) without all of them.

    attention_share is the part of the centred logit that attention wrote directly.
    """

    edges: tuple[FeatureEffect, ...]
    effect: float
    attention_share: float


def measure(
    engine: Engine,
    answers: Sequence[Answer],
    *,
    checkpoint: Checkpoint,
    replacement: torch.Tensor | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> list[FactFeatures]:
    """Every answer's FactFeatures, in order; `done` is called with the number of answers after each batch.

    replacement [layers, features] is what a feature's activation becomes when it is taken away (None: zero). It has
    to be part of the checkpoint's context.
    """
    ids = prompt_ids(engine.tokenizer, answers)
    heads = Heads(engine)
    begins = _beginnings(answers)
    features: dict[int, FactFeatures] = {}
    most = max(8, min(BATCH_FACTS, engine.room(BATCH_CONTRIBUTIONS) // sum(engine.n_features)))
    # Answers of one variant share their prompts' beginning.
    together: list[list[int]] = []
    for variant in sorted({a.variant for a in answers}):
        rows = [i for i, a in enumerate(answers) if a.variant == variant]
        room = engine.room(BATCH_CACHE) // engine.cache_bytes
        together += chunks(rows, [(0, len(row)) for row in ids], most, room)

    def wanted() -> Iterator[KeptBatch[FactFeatures]]:
        for chunk in together:
            batch = [ids[i] for i in chunk], [answers[i].first for i in chunk]
            begun = [begins[i] for i in chunk]
            # Also where the batch is found: see `replies`.
            own = heads.of(begun, batch[0]) if checkpoint.nodes is None else []
            make = partial(_batch, engine, *batch, own, replacement)
            yield KeptBatch(batch, len(chunk), make, (*batch, begun, replacement))

    for number, made in checkpoint.batches("edges", FactFeatures, wanted(), measure_begun):
        features.update(zip(together[number], made, strict=True))
        done(len(made))
    return [features[i] for i in range(len(answers))]


def _beginnings(answers: Sequence[Answer]) -> list[str]:
    """What each answer's prompt begins with as others of its variant do: the examples, which stand in lines before the last,
    and the template's words before the subject. What only one prompt begins with is none.
    """
    alike: dict[tuple[int, str], list[str]] = defaultdict(list)
    for a in answers:
        alike[_alike(a)].append(a.prompt)
    shared = {
        (variant, head): max(head, _words_in_common(prompts), key=len) if len(prompts) > 1 else ""
        for (variant, head), prompts in alike.items()
    }
    return [shared[_alike(a)] for a in answers]


def _words_in_common(texts: Sequence[str]) -> str:
    """The words that all texts begin with."""
    # What the first and the last in order have in common, all between them have.
    outer = zip(min(texts).split(" "), max(texts).split(" "), strict=False)
    return " ".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], outer))


def _alike(answer: Answer) -> tuple[int, str]:
    return answer.variant, answer.prompt[: answer.prompt.rfind("\n") + 1]


def measure_begun(
    engine: Engine,
    ids: Sequence[Sequence[int]],
    tokens: Sequence[int],
    begins: Sequence[str],
    replacement: torch.Tensor | None,
) -> list[FactFeatures]:
    """The FactFeatures of prompts, given their token ids, the tokens that they lead to, and the texts that they begin with."""
    return _batch(engine, ids, tokens, Heads(engine).of(begins, ids), replacement)


def _batch(
    engine: Engine,
    ids: Sequence[Sequence[int]],
    tokens: Sequence[int],
    heads: Sequence[Head | None],
    replacement: torch.Tensor | None,
) -> list[FactFeatures]:
    prefix = prefill(engine, pad(ids, device=engine.device), heads)
    with engine.recording() as capture:
        logits = prefix.step()
    parts = attribute(engine, capture, tokens)
    listed = [strongest(row) for row in parts.features]
    slots = [[(layer, feature) for layer, feature, _ in row] for row in listed]
    effects = effects_after(prefix, capture, logits, tokens, slots, single=SINGLE, replacement=replacement)
    out = []
    rows = zip(listed, effects.single, effects.together, parts.attention_share(), strict=True)
    activation = capture.need("activation")
    for i, (row, single, together, share) in enumerate(rows):
        alone = [*single.tolist(), *[None] * (len(row) - len(single))]
        edges = tuple(
            FeatureEffect(layer, feature, score, float(activation[layer, i, feature]), effect)
            for (layer, feature, score), effect in zip(row, alone, strict=True)
        )
        out.append(FactFeatures(edges, float(together), float(share)))
    return out


def strongest(contributions: torch.Tensor) -> list[tuple[int, int, float]]:
    """(layer, feature, contribution) of a prompt's strongest positive features, from [layers, features].

    As many as sum to SHARE of all positive contributions, at most MOST_FEATURES; ties go to the lower slot.
    """
    width = contributions.shape[1]
    flat = contributions.flatten()
    total = float(flat.clamp(min=0).double().sum())
    values, index = flat.topk(min(MOST_FEATURES, flat.numel()))
    pairs = sorted(zip(values.tolist(), index.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
    out: list[tuple[int, int, float]] = []
    reached = 0.0
    for value, i in pairs:
        if value <= 0 or reached >= SHARE * total:
            break
        out.append((i // width, i % width, value))
        reached += value
    return out
