"""The search for top activating tokens in the embedding, layer by layer, on this machine or on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from larql_duck.extraction.collecting import TokenFeatures
from larql_duck.extraction.embedding import EmbeddingInputs
from larql_duck.extraction.nodes import Nodes
from larql_duck.extraction.state import Staging
from larql_duck.extraction.token_screen import TokenScreen

# Checkpoints: of the screen that this machine's layers go through, and of tokens' features that nodes found.
REACHED, MERGED = "reached", "merged"


def embedding_pass(
    staging: Staging,
    layers: Sequence[int],
    k: int,
    features: TokenFeatures,
    inputs: Callable[[], EmbeddingInputs],
    nodes: Nodes | None,
    layer_done: Callable[[int], None],
) -> None:
    """Save the k top activating tokens of each layer's features in `staging`, and give `features` those of every token.

    `inputs` makes what this machine searches in; where there are `nodes`, they search. Either goes on where the other
    stopped. `layer_done` is called with the number of layers that are done.
    """
    done = _merged(staging, features)
    if nodes is not None:
        first = _reached(staging)
        done_here = sum(layer < first and layer not in done for layer in layers)
        left = [layer for layer in layers if layer >= first and layer not in done]
        # What other layers have for each token spares most candidates of the next.
        for layer, found in nodes.activating(left, lambda: features.top.threshold().numpy()):
            staging.save(f"top-{layer}", _named(found, "top_"))
            _offer(features, layer, _named(found, "token_"))
            done.append(layer)
            staging.save(MERGED, features.state() | {"layers": np.array(done)})
            layer_done(len(done) + done_here)
    here = [layer for layer in layers if layer not in done]
    if here:
        _search(staging, here, k, features, inputs(), lambda n: layer_done(n + len(done)))


def _search(
    staging: Staging,
    layers: Sequence[int],
    k: int,
    features: TokenFeatures,
    inputs: EmbeddingInputs,
    layer_done: Callable[[int], None],
) -> None:
    """The same on this machine, of layers that an interrupted search has perhaps begun with."""
    screen: TokenScreen = inputs.screen(features)
    first = _reached(staging)
    if first:
        with staging.opened(REACHED) as checkpoint:
            screen.restore(checkpoint)
        for layer in (layer for layer in layers if layer < first):
            screen.restore_pairs(layer, staging.load(f"pairs-{layer}"))
    for n, layer in enumerate(layers, 1):
        if layer < first:
            continue
        save_top(staging, layer, vars(inputs.layer(layer, k, screen)))
        staging.save(f"pairs-{layer}", screen.pairs(layer))
        staging.save(REACHED, {"next": np.array([layer + 1])} | screen.state())
        layer_done(n)
    inputs.finish(layers, screen)


def save_top(staging: Staging, layer: int, measured: Mapping[str, np.ndarray]) -> None:
    """Keep the arrays of a layer's TopActivating."""
    staging.save(f"top-{layer}", {f"top_{name}": values for name, values in measured.items()})


def _reached(staging: Staging) -> int:
    """The layer at which this machine's search goes on; 0 where it has not begun."""
    if not staging.has(REACHED):
        return 0
    with staging.opened(REACHED) as checkpoint:
        return int(checkpoint["next"][0])


def _merged(staging: Staging, features: TokenFeatures) -> list[int]:
    """The layers that nodes have searched; `features` becomes what they found."""
    if not staging.has(MERGED):
        return []
    with staging.opened(MERGED) as checkpoint:
        features.restore(checkpoint)
        layers: list[int] = checkpoint["layers"].tolist()
        return layers


def _named(found: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    keep = len(prefix) if prefix == "token_" else 0
    return {name[keep:]: values for name, values in found.items() if name.startswith(prefix)}


def _offer(features: TokenFeatures, layer: int, found: Mapping[str, np.ndarray]) -> None:
    """Offer the features of a layer that are most specific to each token to those of all layers."""
    tokens, ranks = np.nonzero(found["columns"] >= 0)
    columns, *values = (found[name][tokens, ranks] for name in ("columns", "values", "gate", "activation"))
    number = features.offsets[layer - features.first_layer]
    features.top.offer(tokens, columns + np.int32(number), *values)
