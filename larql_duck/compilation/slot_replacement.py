"""INTO SLOTS: inserted features in the place of the model's least used ones, so that its size stays as it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType

import torch

from larql_duck.compilation.source import EditedWeights
from larql_duck.errors import PatchError
from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import watch_activations
from larql_duck.inference.sampling import written_ids
from larql_duck.patches.overlay import Overlay, OverlayRow
from larql_duck.vindex.store import Vindex

TokenTexts = Sequence[Sequence[int]]
"""Token ids of texts, special tokens included."""

POSITIONS = 4096


@dataclass(frozen=True)
class Placed:
    """The overlay without appended features; moved maps (layer, appended feature) to the slot that it took, in order.

    before and after are the model's perplexities with the features appended and in their slots, on `positions`
    predicted tokens of text that had no part in the choice of slots.
    """

    overlay: Overlay
    moved: dict[tuple[int, int], int]
    before: float
    after: float
    positions: int


def place(vindex: Vindex, overlay: Overlay, texts: TokenTexts | None = None, seed: int = 0) -> Placed:
    """The overlay with every appended feature in the slot of its layer that is used least.

    Used means: mean |activation| x |down column| over the first half of `texts`; the cost is measured on the other
    half. texts None: text that the model writes itself, by seeded sampling. Slots that the overlay touches are left
    alone. PatchError where features have biases, which would stay behind, or where slots run out.
    """
    weights = EditedWeights(vindex, overlay)
    _check(weights)
    engine = Engine.load(weights)
    texts = _enough(texts) if texts is not None else written_ids(engine, POSITIONS, seed=seed)
    half = max(1, len(texts) // 2)
    use = usage(engine, texts[:half])
    before, positions = perplexity(engine, texts[half:] or texts)
    del engine
    rows: dict[int, dict[int, OverlayRow]] = {}
    moved: dict[tuple[int, int], int] = {}
    for layer, edited in overlay.rows.items():
        n = vindex.n_features[layer]
        rows[layer] = {f: row for f, row in edited.items() if f < n}
        free = [f for f in use[layer][:n].argsort(stable=True).tolist() if f not in edited]
        appended = [f for f in edited if f >= n]
        if len(appended) > len(free):
            raise PatchError(
                f"layer {layer} has {len(appended)} inserted features and {len(free)} slots for them; "
                "compile without INTO SLOTS",
                slot=(layer, appended[0]),
            )
        for feature, slot in zip(appended, free, strict=False):
            rows[layer][slot] = edited[feature]
            moved[layer, feature] = slot
    frozen = MappingProxyType({k: MappingProxyType(dict(sorted(v.items()))) for k, v in rows.items()})
    placed = replace(overlay, rows=frozen)
    after = before
    if moved:
        after, _ = perplexity(Engine.load(EditedWeights(vindex, placed)), texts[half:] or texts)
    return Placed(placed, moved, before, after, positions)


def _enough(texts: TokenTexts) -> list[Sequence[int]]:
    """The first texts, up to POSITIONS tokens and one text at least."""
    before = accumulate(map(len, texts), initial=0)
    return [text for text, n in zip(texts, before, strict=False) if n < POSITIONS]


def _check(weights: EditedWeights) -> None:
    vindex, overlay = weights.vindex, weights.overlay
    biased = {weights.biases[name] for name in vindex.names() if name in weights.biases}
    if any(overlay.n_features[layer] > vindex.n_features[layer] for layer in biased):
        raise PatchError(
            f"features of {vindex.path} have biases, which a feature in another's slot would inherit; "
            "compile without INTO SLOTS"
        )


# -- measuring ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def usage(engine: Engine, texts: TokenTexts) -> list[torch.Tensor]:
    """How much each feature is used: mean |activation| x |down column|, f64 [features] a layer."""
    sums = [torch.zeros(n, dtype=torch.float64) for n in engine.n_features]
    count = 0

    def add(layer: int, activation: torch.Tensor) -> None:
        sums[layer] += activation.double().abs().flatten(0, -2).sum(0).cpu()

    with watch_activations(engine.modules, add):
        for ids in texts:
            _pass(engine, ids)
            count += len(ids)
    norms = [parts.down_rows().float().norm(dim=1).double().cpu() for parts in engine.modules.layers]
    return [total / max(count, 1) * norm for total, norm in zip(sums, norms, strict=True)]


@torch.inference_mode()
def perplexity(engine: Engine, texts: TokenTexts) -> tuple[float, int]:
    """The perplexity of the texts, every token but the first predicted, and how many tokens that were."""
    total, count = 0.0, 0
    for ids in texts:
        if len(ids) < 2:
            continue
        logp = torch.log_softmax(_pass(engine, ids)[0, :-1], -1)
        wanted = torch.tensor(ids[1:], device=logp.device)
        total -= float(logp.gather(1, wanted[:, None]).double().sum())
        count += len(ids) - 1
    return math.exp(total / max(count, 1)), count


def _pass(engine: Engine, ids: Sequence[int]) -> torch.Tensor:
    row = torch.tensor([list(ids)], device=engine.device)
    places = torch.arange(row.shape[1], device=engine.device)[None]
    return engine.run(row, None, places, keep=0)
