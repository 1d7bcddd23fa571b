"""How GGUF files hold the families that are read off transformers' modules: names, layout, and their configs from metadata."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import gguf
import torch

from larql_duck.errors import ModelError
from larql_duck.models.architecture import config_object
from larql_duck.models.family import Config, Family
from larql_duck.models.gguf_config import TOKEN_IDS, GgufMetadata
from larql_duck.models.gguf_layout import ARCHITECTURES, Layout, interleaved, parted

_EPS = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
# What the config's sizes are called in the metadata, for every family.
SIZES = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
}


@dataclass(frozen=True)
class GgufFamily:
    """A section of gguf_families.toml.

    eps, features and kv_heads are what the config calls these sizes ('': it has no such key); when: a metadata key that
    tells the family from another of the same architecture; qkv: how the rows of the one matrix of q, k and v stand in a
    config's model, each head's q, k and v together or a group's queries with its k and v ('': as llama.cpp has them);
    permuted: llama.cpp interleaves the halves of q's and k's heads; full_every: each so many layers one has no window;
    plain_windows: layers with one rotate without scaling.
    """

    name: str
    arch: str
    norm: Literal["rms", "layer"] = "rms"
    eps: str = "rms_norm_eps"
    features: str = "intermediate_size"
    kv_heads: str = "num_key_value_heads"
    when: str = ""
    qkv: Literal["", "heads", "groups"] = ""
    permuted: bool = False
    full_every: int = 0
    plain_windows: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def eps_key(self) -> str:
        """What the metadata call the norms' epsilon."""
        return _EPS[self.norm]


def _read() -> dict[str, GgufFamily]:
    text = Path(__file__).with_name("gguf_families.toml").read_text(encoding="utf-8")
    return {name: GgufFamily(name, **fields) for name, fields in tomllib.loads(text).items()}


GGUF_FAMILIES = _read()
"""model_type -> how GGUF has it, of families that no section of families.toml is for."""


def architecture(family: Family) -> str:
    """llama.cpp's name for the architecture of a family; '' where GGUF has none, as far as is known here."""
    if family.gguf_arch or family.name not in GGUF_FAMILIES:
        return family.gguf_arch
    return GGUF_FAMILIES[family.name].arch


def family_of_metadata(metadata: Mapping[str, Any]) -> GgufFamily | None:
    """The family that a file's metadata speak of; None for an architecture that is not among these."""
    arch = metadata.get("general.architecture")
    fitting = [f for f in GGUF_FAMILIES.values() if f.arch == arch]
    told = [f for f in fitting if f.when and metadata.get(f"{arch}.{f.when}")]
    return next(iter(told + [f for f in fitting if not f.when]), None)


# -- the config -----------------------------------------------------------------------------------------------


class FoundConfig(GgufMetadata):
    """Reads one file's metadata for a family that transformers' modules show; `build` returns the config."""

    def __init__(self, own: GgufFamily, metadata: Mapping[str, Any], path: Path) -> None:
        super().__init__(metadata, path)
        self.own = own

    def build(
        self, tensors: Mapping[str, Sequence[int]], rope_factors: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """The config as a new dict: `tensors` are the file's names and shapes, `rope_factors` rope_freqs.weight."""
        from transformers import CONFIG_MAPPING

        own, embedding = self.own, tensors.get("token_embd.weight")
        if embedding is None or len(embedding) != 2:
            raise self.error("tensor token_embd.weight is missing", tensor="token_embd.weight")
        spelled = getattr(CONFIG_MAPPING[own.name], "attribute_map", {})
        out: dict[str, Any] = {"model_type": own.name, "vocab_size": int(embedding[0])}
        out |= {spelled.get(key, key): self.required(stored) for key, stored in SIZES.items()}
        heads = int(self.required("attention.head_count"))
        if own.eps:
            out[own.eps] = self.required(own.eps_key)
        if own.features:
            out[own.features] = self.required("feed_forward_length")
        if own.kv_heads:
            out[own.kv_heads] = self.number("attention.head_count_kv") or heads
        hidden = int(self.required("embedding_length"))
        head_dim = int(self.number("attention.key_length") or hidden // max(heads, 1))
        made_from_others = isinstance(getattr(CONFIG_MAPPING[own.name], "head_dim", property()), property)
        if not made_from_others:
            out["head_dim"] = head_dim
        out |= {key: self._stated(stored) for stored, key in own.keys.items() if self.get(stored) is not None}
        out |= {key: tensor in tensors for key, tensor in own.present.items()}
        out |= own.fixed
        out["tie_word_embeddings"] = "output.weight" not in tensors
        for name, stored in TOKEN_IDS.items():
            token_id = self.metadata.get(stored)
            known = isinstance(token_id, int) and 0 <= token_id < out["vocab_size"]
            # What a config leaves out is the architecture's own, which may be beyond this vocabulary.
            out[name] = token_id if known else None
        self._windows(out, int(self.required("block_count")))
        if own.name == "falcon":
            _settle_falcon(out, tensors)
        self._rotary(out, head_dim, rope_factors)
        return out

    def _stated(self, stored: str) -> bool | int | float | None:
        value = self.get(stored)
        return value if isinstance(value, bool) else self.number(stored)

    def _windows(self, out: dict[str, Any], layers: int) -> None:
        if not self.own.full_every or layers > 1 << 16:
            return
        window = self.number("attention.sliding_window")
        every = self.own.full_every
        kinds = [
            "sliding_attention" if window and (i + 1) % every else "full_attention" for i in range(layers)
        ]
        out |= {"layer_types": kinds, "sliding_window": window}

    def _rotary(self, out: dict[str, Any], head_dim: int, factors: Sequence[float] | None) -> None:
        theta = self.number("rope.freq_base")
        if theta is None:
            return
        scaling = self.scaling()
        if factors is not None and any(abs(f - 1) > 1e-6 for f in factors):
            scaling = self.llama3(factors, float(theta), head_dim)
        plain = {"rope_type": "default", "rope_theta": float(theta)}
        rotary = self.number("rope.dimension_count")
        if rotary is not None:
            plain["partial_rotary_factor"] = rotary / head_dim
        full = plain | (scaling or {})
        out["rope_parameters"] = (
            {"full_attention": full, "sliding_attention": plain} if self.own.plain_windows else full
        )


def _settle_falcon(out: dict[str, Any], tensors: Mapping[str, Sequence[int]]) -> None:
    """Falcon's decoder of 7B is one of a single key head, that of 40B and 11B one of several."""
    groups = out["num_kv_heads"]
    out["new_decoder_architecture"] = groups > 1
    out["multi_query"] = True
    if groups > 1:
        out["num_ln_in_parallel_attn"] = 2 if "blk.0.attn_norm_2.weight" in tensors else 1


# -- the layout -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundLayout(Layout):
    """The places of one model's tensors in a GGUF file, for a family that was read off modules."""

    family: Family
    config: Config

    @property
    def own(self) -> GgufFamily:
        """How GGUF has the family."""
        return GGUF_FAMILIES[self.family.name]

    @cached_property
    def _names(self) -> dict[str, str]:
        """State-dict name, as transformers has it, -> llama.cpp's."""
        family, measured = self.family, self.family.measured
        assert measured is not None
        table = gguf.get_tensor_name_map(ARCHITECTURES[self.own.arch], measured.n_layers)
        halves = {half: whole for whole in self.joined for half in family.halves(whole)}
        names = dict.fromkeys(
            [halves.get(n, n) for n in measured.shapes]
            + [family.head, family.head.removesuffix("weight") + "bias"]
        )
        out = {}
        for name in names:
            stem, _, kind = name.rpartition(".")
            # Some models' names are known without the base model's prefix alone.
            stored = table.get_name(stem) or table.get_name(stem.partition(".")[2])
            if stem == family.head.removesuffix(".weight"):
                stored = "output"
            if stored is not None:
                out[name] = f"{stored}.{kind}"
        return out

    @cached_property
    def joined(self) -> list[str]:
        """Names of the matrices (and biases) that hold gate and up."""
        family, measured = self.family, self.family.measured
        assert measured is not None
        if not family.fused:
            return []
        whole = [family.layer_prefix(i) + family.fused for i in range(measured.n_layers)]
        return [n for name in whole for n in (name, name.removesuffix("weight") + "bias")]

    @cached_property
    def _of_stored(self) -> dict[str, str]:
        return {stored: name for name, stored in self._names.items()}

    def stored_name(self, name: str) -> str | None:
        return self._names.get(name)

    def state_name(self, stored: str) -> str | None:
        return self._of_stored.get(stored)

    def is_plain(self, name: str) -> bool:
        return not self._is_norm(name) and not self._is_qkv(name) and self._heads(name) is None

    def as_stored(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        if self._is_norm(name):
            return tensor.float() + self.family.norm_offset
        if self._is_qkv(name):
            return self._apart(tensor)
        heads = self._heads(name)
        return tensor if heads is None else interleaved(tensor, heads)

    def as_state(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        if self._is_norm(name):
            return tensor - self.family.norm_offset
        if self._is_qkv(name):
            return self._together(tensor, name)
        heads = self._heads(name)
        return tensor if heads is None else parted(tensor, heads)

    # -- heads -------------------------------------------------------------------------------------------

    def _is_norm(self, name: str) -> bool:
        return bool(self.family.norm_offset) and "norm" in name.rpartition(".")[0] and name.endswith("weight")

    def _is_qkv(self, name: str) -> bool:
        family = self.family
        relative = family.relative(name)[1]
        return bool(self.own.qkv and family.qkv) and relative in (
            family.qkv,
            family.qkv.removesuffix("weight") + "bias",
        )

    def _heads(self, name: str) -> int | None:
        """Heads whose two rotary halves llama.cpp stores interleaved in the tensor's rows; None where it does not."""
        family, measured = self.family, self.family.measured
        assert measured is not None
        relative = family.relative(name)[1].removesuffix(".weight").removesuffix(".bias")
        heads = {family.q: measured.n_heads, family.k: measured.n_kv_heads}
        own = {name.removesuffix(".weight"): n for name, n in heads.items() if name}
        return own.get(relative) if self.own.permuted else None

    @cached_property
    def _groups(self) -> tuple[int, int, int]:
        """Groups of heads that share a key, queries in each, and the size of a head."""
        measured = self.family.measured
        assert measured is not None
        n_heads = measured.n_heads
        groups = n_heads
        if self.own.qkv == "groups":
            made = config_object(self.config, self.family.name)
            many = made.new_decoder_architecture or not made.multi_query
            groups = int(made.num_kv_heads) if many else 1
        return groups, n_heads // groups, measured.head_dim

    def _apart(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of q, k and v one after another, of rows that stand head by head or group by group."""
        groups, queries, size = self._groups
        rows = tensor.reshape(groups, queries + 2, size, *tensor.shape[1:])
        return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in rows.split([queries, 1, 1], 1)])

    def _together(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """What `_apart` made of rows, taken back."""
        groups, queries, size = self._groups
        n = groups * size
        if len(tensor) != n * (queries + 2):
            raise ModelError(
                f"tensor {name} has {len(tensor)} rows, {n * (queries + 2)} are expected", tensor=name
            )
        parts = tensor.split([n * queries, n, n])
        own = [part.reshape(groups, -1, size, *tensor.shape[1:]) for part in parts]
        return torch.cat(own, 1).reshape(tensor.shape)
