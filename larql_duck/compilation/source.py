"""The weights of a vindex as an overlay leaves them, one matrix at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.models.expert_rows import expert_names, expert_shapes, expert_tensor
from larql_duck.models.family import Family, bias_of, layer_count, outside
from larql_duck.models.source import WeightSource
from larql_duck.patches.overlay import Overlay, Which
from larql_duck.vindex.store import Vindex

# A padded model's features per layer are a multiple of this: whole blocks of every quantisation of GGUF.
BLOCK = 32


class EditedWeights:
    """The weights of `vindex` under `overlay`. Implements `models.source.WeightSource`; tensors in the stored dtype.

    n_features is one number a layer. padded: every layer is brought to one number of features, the largest, rounded
    up to a multiple of 32, by rows of zeros, which change nothing; where all layers have the same number already and
    nothing was appended, it stays. path, family and config are the vindex's, config with the features that hold here:
    one number, or a list where layers differ. ffn maps the names of the FFN's matrices to their layers and kinds,
    biases those that gate and up matrices may have to their layers.
    """

    def __init__(self, vindex: Vindex, overlay: Overlay, *, padded: bool = False) -> None:
        self.vindex = vindex
        self.overlay = overlay
        self.path: Path = vindex.path
        self.dtype: str = vindex.dtype
        self.family: Family = vindex.family
        counts = overlay.n_features
        self.appended = [n - base for n, base in zip(counts, vindex.n_features, strict=True)]
        # Where layers have experts, no key of a config says how many features each has.
        evens = padded and self.family.experts is None
        absent = self.family.absent
        evened = evens and (
            any(self.appended) or len({n for i, n in enumerate(counts) if i not in absent}) > 1
        )
        largest = -(-max(counts) // BLOCK) * BLOCK
        self.n_features = [0 if i in absent else largest for i in range(len(counts))] if evened else counts
        self.config: dict[str, Any] = dict(vindex.config)
        if self.n_features != vindex.n_features:
            key = self.family.keys.get("intermediate_size", "intermediate_size")
            if not key:
                raise ModelError.at(
                    self.path,
                    f"no key of a {self.family.name} config says how many features a layer has, so inserted ones have no "
                    "place in a model of that family; compile INTO SLOTS",
                )
            self.config.pop("intermediate_size", None)
            same = {n for i, n in enumerate(self.n_features) if i not in absent}
            self.config[key] = same.pop() if len(same) == 1 else list(self.n_features)
        self.ffn = self.family.ffn_names(vindex.n_layers)
        self.biases = {bias_of(name): layer for name, (layer, kind) in self.ffn.items() if kind != "down"}

    @property
    def n_changed(self) -> int:
        """How many of the vindex's own slots are other ones under the overlay."""
        return sum(f < self.vindex.n_features[layer] for layer, f in self.overlay.slots())

    def check_weights(self) -> None:
        """Raise VindexError where a file of the vindex that holds weights is not as it was written."""
        self.vindex.check_weights()

    def names(self) -> list[str]:
        """State-dict names of everything that is stored."""
        return self.vindex.names()

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what the config calls for."""
        return self.family.expected(self.config)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with this state-dict name in Hugging Face layout; a mapped view where nothing differs."""
        if name in self.ffn:
            matrix = self.matrix(*self.ffn[name])
            return matrix.t() if self.family.transposed else matrix
        stored = self.vindex.tensor(name)
        return _grown(stored, self.n_features[self.biases[name]]) if name in self.biases else stored

    def matrix(self, layer: int, which: Which) -> torch.Tensor:
        """A layer's FFN matrix: gate and up [features, hidden], down [hidden, features]."""
        read = {"gate": self.vindex.gate, "up": self.vindex.up, "down": self.vindex.down}[which]
        stored = read(layer)
        assert stored is not None
        matrix, width = self.overlay.matrix(layer, which, stored), self.n_features[layer]
        return _grown(matrix.t(), width).t() if which == "down" else _grown(matrix, width)

    def differs(self, name: str) -> bool:
        """Whether the tensor with this state-dict name is another than the vindex's."""
        if name in self.biases:
            layer = self.biases[name]
            return self.n_features[layer] != self.vindex.n_features[layer]
        if name not in self.ffn:
            return False
        layer, which = self.ffn[name]
        rows = self.overlay.rows.get(layer, {})
        return self.n_features[layer] != self.vindex.n_features[layer] or any(
            getattr(row, which) is not None for row in rows.values()
        )

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the tokenizer files that are there."""
        return self.vindex.tokenizer_files()


class JoinedWeights:
    """The weights of `source` as files for transformers hold them: under its names, gate and up in one where it has them so."""

    def __init__(self, source: WeightSource) -> None:
        self.source, self.path, self.family = source, source.path, source.family
        self.config = source.config
        stored = source.names()
        self._parts: dict[str, tuple[str, ...]] = {}
        whole = self.family.fused or (outside(self.family.down) if self.family.flat else "")
        for prefix in map(self.family.layer_prefix, range(layer_count(self.family, stored) if whole else 0)):
            for name in (prefix + whole, bias_of(prefix + whole)):
                halves = self.family.halves(name)
                if halves[0] in stored:
                    self._parts[name] = halves
        self._experts: dict[str, tuple[int, str]] = {}
        mixed = () if self.family.experts is None else self.family.experts.layers
        for i in mixed:
            self._experts |= {name: (i, part) for part, name in expert_names(self.family, i).items()}

    def names(self) -> list[str]:
        """State-dict names of everything that is stored."""
        inside = {half: (name,) for name, halves in self._parts.items() for half in halves}
        for name, (i, part) in self._experts.items():
            for own in self._of_layer(i, part):
                inside[own] = (*inside.get(own, ()), name)
        return list(dict.fromkeys(n for name in self.source.names() for n in inside.get(name, (name,))))

    def _of_layer(self, i: int, part: str) -> list[str]:
        """The names here of what is in a part of layer i's mixture."""
        gate, up, down = self.family.gate_name(i), self.family.up_name(i), self.family.down_name(i)
        assert up is not None
        own = {"both": [gate, up], "both_bias": [bias_of(gate), bias_of(up)], "down": [down]}
        shared = {"shared_gate": [gate], "shared_up": [up], "shared_down": [down]}
        return (own | shared)[part]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with this state-dict name in Hugging Face layout."""
        if name in self._experts:
            return expert_tensor(self.source, *self._experts[name])
        if name not in self._parts:
            return self.source.tensor(name)
        return torch.cat([self.source.tensor(half) for half in self._parts[name]])

    def shape(self, name: str, known: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The tensor's shape, by the shapes that are `known`; read where there is none."""
        if name in self._experts:
            hidden = self.family.sizes(self.config).hidden
            return expert_shapes(self.family, self._experts[name][0], hidden)[name]
        shapes = [
            known[n] if n in known else tuple(self.source.tensor(n).shape)
            for n in self._parts.get(name, (name,))
        ]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the tokenizer files that are there."""
        return self.source.tokenizer_files()


def _grown(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """`tensor` with rows of zeros at its end, `rows` in all; itself where it has them."""
    missing = rows - tensor.shape[0]
    if not missing:
        return tensor
    return torch.cat([tensor, torch.zeros(missing, *tensor.shape[1:], dtype=tensor.dtype)])
