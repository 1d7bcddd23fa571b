"""How llama.cpp names a family's tensors and lays them out, in both directions: shared by reading and writing GGUF."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import gguf
import torch

from larql_duck.errors import ModelError
from larql_duck.models.family import Config, Family, bias_of

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)")
ARCHITECTURES = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
POSITIONS = "position_embd.weight"


class Layout(Protocol):
    """The places of a model's tensors in a GGUF file, and how they are laid out there. Names are those of transformers."""

    def stored_name(self, name: str) -> str | None:
        """llama.cpp's name for a state-dict name; None where it has none."""

    def state_name(self, stored: str) -> str | None:
        """The state-dict name for llama.cpp's name; None for a tensor that the family has no place for."""

    def is_turned(self, name: str) -> bool:
        """True for matrices that llama.cpp stores the other way round."""
        return False

    def is_plain(self, name: str) -> bool:
        """Whether the tensor's rows are those of the file, in their order."""
        raise NotImplementedError

    def as_stored(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A tensor of the state dict as llama.cpp wants it."""
        raise NotImplementedError

    def as_state(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A tensor of the file as the state dict has it; ModelError where its rows cannot be that."""
        raise NotImplementedError


@dataclass(frozen=True)
class GgufLayout(Layout):
    """The places of one model's tensors in a GGUF file, by its family and config."""

    family: Family
    config: Config

    @cached_property
    def _names(self) -> tuple[dict[str, str], dict[str, str]]:
        """State-dict name -> llama.cpp's, of tensors outside layers, and of a layer's (without the layer's prefix)."""
        family = self.family
        table = gguf.get_tensor_name_map(ARCHITECTURES[family.gguf_arch], 1)

        def stored_name(name: str) -> str:
            # Architectures that are always tied have no name for a head of its stored_name.
            return (table.get_name(name.removesuffix(".weight")) or "output") + ".weight"

        top = {
            n: stored_name(n) for n in (family.embed, family.head, family.final_norm, family.positions) if n
        }
        if family.final_norm_bias:
            top[family.final_norm_bias] = bias_of(top[family.final_norm])
        layer: dict[str, str] = {}
        for name in (*family.matrices(), *family.norms()):
            stored = stored_name(family.layer_prefix(0) + name).removeprefix("blk.0.")
            layer |= {name: stored, bias_of(name): bias_of(stored)}
        return top, layer

    @cached_property
    def _of_stored(self) -> tuple[dict[str, str], dict[str, str]]:
        top, layer = ({stored: name for name, stored in part.items()} for part in self._names)
        return top, layer

    def stored_name(self, name: str) -> str | None:
        """llama.cpp's name for a state-dict name; None where it has none."""
        top, layer = self._names
        i, relative = self.family.relative(name)
        if i is None:
            return top.get(name)
        return f"blk.{i}.{layer[relative]}" if relative in layer else None

    def state_name(self, stored: str) -> str | None:
        """The state-dict name for llama.cpp's name; None for a tensor that the family has no place for."""
        top, layer = self._of_stored
        block = _BLOCK.fullmatch(stored)
        if block is None:
            return top.get(stored)
        name = layer.get(block[2])
        return None if name is None else self.family.layer_prefix(int(block[1])) + name

    def is_turned(self, name: str) -> bool:
        """True for Conv1D matrices, which llama.cpp stores the other way round."""
        return self.family.transposed and self.family.relative(name)[1] in self.family.matrices()

    def is_plain(self, name: str) -> bool:
        return self._heads(name) is None and not self.is_turned(name)

    def as_stored(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        if self.is_turned(name):
            return tensor.t()
        offset, heads = self._norm_offset(name), self._heads(name)
        if offset:
            return tensor.float() + offset
        return tensor if heads is None else interleaved(tensor, heads)

    def as_state(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        heads = self._heads(name)
        if heads is not None:
            rows = len(tensor)
            if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
                raise ModelError(
                    f"tensor {name} has {rows} rows, which {heads} heads do not share evenly", tensor=name
                )
            return parted(tensor, heads)
        offset = self._norm_offset(name)
        if offset:
            return tensor - offset
        return tensor.t() if self.is_turned(name) else tensor

    def _norm_offset(self, name: str) -> float:
        """What llama.cpp adds to a norm's weight: 1 for families that store weight - 1, 0 for every other tensor."""
        family = self.family
        is_norm = name == family.final_norm or family.relative(name)[1] in family.norms()
        return family.norm_offset if is_norm else 0.0

    def _heads(self, name: str) -> int | None:
        """Heads whose two rotary halves llama.cpp stores interleaved in the tensor's rows; None where it does not."""
        family = self.family
        if not family.gguf_permuted:
            return None
        n_heads = self.config.get("num_attention_heads")
        n_kv_heads = self.config.get("num_key_value_heads") or n_heads
        heads = {family.q: n_heads, family.k: n_kv_heads}
        heads |= {bias_of(weight): n for weight, n in heads.items()}
        return heads.get(family.relative(name)[1])


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads * size, ...] as llama.cpp has them: each head's two rotary halves interleaved."""
    return _turned(tensor, heads, 2, len(tensor) // heads // 2)


def parted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in Hugging Face order: what `interleaved` made of it, taken back."""
    return _turned(tensor, heads, len(tensor) // heads // 2, 2)


def _turned(tensor: torch.Tensor, *axes: int) -> torch.Tensor:
    """The tensor with its rows taken for an array of three axes, of which the last two change places."""
    return tensor.reshape(*axes, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
