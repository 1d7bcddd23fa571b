"""A model without some of its layers and features: the weights of another as a source of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.models.architecture import config_object
from larql_duck.models.family import Family, bias_of
from larql_duck.models.source import WeightSource

# Whole blocks of every quantisation, and no odd sizes for a processor's products.
FEATURE_BLOCK = 32


class PrunedWeights:
    """The weights of `source` with the layers `kept` alone, which are numbered anew. A `compilation.huggingface.WholeModel`.

    features maps a kept layer (by its old number) to the features that it keeps, equally many in each; None: all of them.
    Attention, norms, embedding and head are copied.
    """

    def __init__(
        self, source: WeightSource, kept: Sequence[int], features: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        self.path: Path = source.path
        self.family: Family = source.family
        self.dtype = stored_dtype(source)
        self._source, self._features = source, features
        width = None if features is None else len(features[kept[0]])
        self.config = pruned_config(source, kept, width)
        self._old: dict[str, str] = {}
        self._layers: dict[str, int] = {}
        places = {old: new for new, old in enumerate(kept)}
        for name in source.names():
            layer, rest = self.family.relative(name)
            if layer is None:
                self._old[name] = name
            elif layer in places:
                new = self.family.layer_prefix(places[layer]) + rest
                self._old[new], self._layers[new] = name, layer
        relative = {self.family.gate: "rows", self.family.down: "columns"}
        relative |= {n: "rows" for n in (self.family.up, bias_of(self.family.gate)) if n}
        relative |= {bias_of(self.family.up): "rows"} if self.family.up else {}
        self._sides = relative

    def names(self) -> list[str]:
        """State-dict names of everything that is left."""
        return list(self._old)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with this state-dict name in Hugging Face layout."""
        tensor = self._source.tensor(self._old[name])
        side = self._sides.get(self.family.relative(name)[1])
        if self._features is None or side is None or name not in self._layers:
            return tensor
        features = self._features[self._layers[name]]
        axis = int((side == "columns") != self.family.transposed) if tensor.ndim == 2 else 0
        return tensor.index_select(axis, features)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """No shapes: what a family's modules measured is of the whole model."""
        return {}

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the tokenizer files that are there."""
        return self._source.tokenizer_files()


def stored_dtype(source: WeightSource) -> str:
    """'f32', 'f16' or 'bf16': the dtype that a source says it has, f32 for one that says nothing."""
    return str(getattr(source, "dtype", "f32"))


def pruned_config(source: WeightSource, kept: Sequence[int], width: int | None = None) -> dict[str, Any]:
    """The source's config for the layers `kept` and `width` features in each (None: as many as before).

    Lists with a value a layer keep those of the layers; also such as transformers makes of other keys, which would
    give the layers that remain another kind. ModelError where no key says how many features a layer has.
    """
    family = source.family
    whole = config_object(source.config, str(source.config.get("model_type", family.name)))
    n_layers = family.sizes(source.config).n_layers
    out = dict(source.config)
    if len(kept) < n_layers:
        for key, value in {**whole.to_dict(), **source.config}.items():
            if isinstance(value, list) and len(value) == n_layers and _of_layers(key):
                out[key] = [value[i] for i in kept]
    out.pop("num_hidden_layers", None)
    out[whole.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    if width is not None:
        key = family.keys.get("intermediate_size", "intermediate_size")
        if not key:
            raise ModelError.at(
                source.path,
                f"no key of a {family.name} config says how many features a layer has; use --layers instead",
            )
        out[key] = width
    return out


def _of_layers(key: str) -> bool:
    return "layer" in key or "intermediate" in key


def features_left(n_features: Sequence[int], share: float) -> int:
    """How many features every layer keeps of this share: a multiple of FEATURE_BLOCK where there are that many."""
    fewest = min(n_features)
    count = round(fewest * share)
    return max(1, count if fewest < 2 * FEATURE_BLOCK else max(1, count // FEATURE_BLOCK) * FEATURE_BLOCK)
