"""The model families as a table: one row of tensor names and traits each, and what follows from a row and a config."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from larql_duck.errors import ModelError

Config = Mapping[str, Any]

# Sizes above these are a damaged or lying config; the bounds keep loops and allocations finite.
_MAX_LAYERS = 10_000
_MAX_DIM = 1 << 28

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model: layer count, hidden, features per layer, vocabulary, heads, kv heads, head size."""

    n_layers: int
    hidden: int
    intermediate: list[int]
    vocab: int
    n_heads: int
    n_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Family:
    """One row of the family table. Names are Hugging Face state-dict names; per-layer ones are relative to `layer`."""

    name: str
    embed: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    final_norm: str = "model.norm.weight"
    final_norm_bias: str = ""
    positions: str = ""
    layer: str = "model.layers.{i}."
    gate: str = "mlp.gate_proj.weight"
    up: str = "mlp.up_proj.weight"
    down: str = "mlp.down_proj.weight"
    attn_norm: str = "input_layernorm.weight"
    ffn_norm: str = "post_attention_layernorm.weight"
    post_attn_norm: str = ""
    post_ffn_norm: str = ""
    q: str = "self_attn.q_proj.weight"
    k: str = "self_attn.k_proj.weight"
    v: str = "self_attn.v_proj.weight"
    qkv: str = ""
    o: str = "self_attn.o_proj.weight"
    q_norm: str = ""
    k_norm: str = ""
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    norm_biases: bool = False
    transposed: bool = False
    attn_bias: Literal["never", "config", "qkv", "always"] = "never"
    ffn_bias: Literal["never", "config", "always"] = "never"
    scaled_embedding: bool = False
    act_key: str = "hidden_act"
    eps_key: str = "rms_norm_eps"
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # Historical and base-model prefixes -> the prefix of the causal model's state dict, tried in this order.
    prefixes: tuple[tuple[str, str], ...] = (
        ("layers.", "model.layers."),
        ("embed_tokens.", "model.embed_tokens."),
        ("norm.", "model.norm."),
    )
    ignored: str = r".*\.rotary_emb\.inv_freq"
    gguf_arch: str = ""
    gguf_permuted: bool = False
    listed: bool = True

    # -- names -------------------------------------------------------------------------------------------

    def layer_prefix(self, i: int) -> str:
        """The prefix of layer i's tensors (0-based), e.g. 'model.layers.0.'."""
        return self.layer.format(i=i)

    def gate_name(self, i: int) -> str:
        """The name of layer i's gate matrix (the input matrix where the FFN is plain)."""
        return self.layer_prefix(i) + self.gate

    def up_name(self, i: int) -> str | None:
        """The name of layer i's up matrix, None where the FFN is plain."""
        return self.layer_prefix(i) + self.up if self.up else None

    def down_name(self, i: int) -> str:
        """The name of layer i's down matrix."""
        return self.layer_prefix(i) + self.down

    def ffn_norm_name(self, i: int) -> str:
        """The name of the norm right before layer i's FFN."""
        return self.layer_prefix(i) + self.ffn_norm

    def matrices(self) -> tuple[str, ...]:
        """Relative names of a layer's matrices: attention in the order q, k, v (or fused), o, then gate, up, down."""
        names = (self.qkv,) if self.qkv else (self.q, self.k, self.v)
        return tuple(n for n in (*names, self.o, self.gate, self.up, self.down) if n)

    def norms(self) -> tuple[str, ...]:
        """Relative names of a layer's norm weights, in the order in which a forward pass meets them."""
        names = (
            self.attn_norm,
            self.q_norm,
            self.k_norm,
            self.post_attn_norm,
            self.ffn_norm,
            self.post_ffn_norm,
        )
        return tuple(n for n in names if n)

    def canonical(self, name: str) -> str | None:
        """The state-dict name for a checkpoint's tensor name, None for buffers and parts of other modalities."""
        for old, new in self.prefixes:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        return None if re.fullmatch(self.ignored, name) else name

    # -- what a config says ------------------------------------------------------------------------------

    def get(self, config: Config, key: str) -> Any:
        """The config's value under the common key (the family's own spelling first), else the family's default."""
        own = self.keys.get(key, key)
        for k in (own, key):
            if config.get(k) is not None:
                return config[k]
        return self.defaults.get(key)

    def sizes(self, config: Config) -> ModelSizes:
        """The model's sizes as the config states them; ModelError when a value is missing or impossible."""
        hidden = self._int(config, "hidden_size")
        n_layers = self._int(config, "num_hidden_layers", _MAX_LAYERS)
        n_heads = self._int(config, "num_attention_heads")
        n_kv = self._int(config, "num_key_value_heads", default=n_heads)
        if n_heads % n_kv:
            raise ModelError(
                f"config.json: num_attention_heads {n_heads} is no multiple of num_key_value_heads {n_kv}"
            )
        if self.get(config, "head_dim") is None and hidden % n_heads:
            raise ModelError(
                f"config.json: hidden size {hidden} is no multiple of the {n_heads} attention heads"
            )
        head_dim = self._int(config, "head_dim", default=hidden // n_heads)
        value = self.get(config, "intermediate_size")
        if isinstance(value, list):
            if len(value) != n_layers or not all(_is_size(v) for v in value):
                raise ModelError(f"config.json: intermediate_size must be {n_layers} positive numbers")
            intermediate = list(value)
        else:
            default = 4 * hidden if not self.up else None
            intermediate = [self._int(config, "intermediate_size", default=default)] * n_layers
        return ModelSizes(
            n_layers, hidden, intermediate, self._int(config, "vocab_size"), n_heads, n_kv, head_dim
        )

    def _int(self, config: Config, key: str, limit: int = _MAX_DIM, default: int | None = None) -> int:
        value = self.get(config, key)
        value = default if value is None else value
        own = self.keys.get(key, key)
        if value is None:
            raise ModelError(f"config.json: {own} is missing (model_type {self.name})", expected=own)
        if not _is_size(value) or value > limit:
            raise ModelError(
                f"config.json: {own} must be a number from 1 to {limit}, found {value!r}",
                expected=own,
                found=value,
            )
        return int(value)

    def embed_scale(self, config: Config) -> float:
        """The factor between the stored embedding and the residual stream: sqrt(hidden) for Gemma, else 1."""
        return math.sqrt(self.sizes(config).hidden) if self.scaled_embedding else 1.0

    def norm_eps(self, config: Config) -> float:
        """The epsilon of the norms."""
        value = self.get(config, self.eps_key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise ModelError(f"config.json: {self.eps_key} must be a small number, found {value!r}")
        return float(value)

    def activation(self, config: Config) -> str:
        """The FFN's activation: 'silu', 'gelu', 'gelu_tanh', 'gelu_new' or 'relu'; ModelError for another one."""
        value = self.get(config, self.act_key)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            own = self.keys.get(self.act_key, self.act_key)
            raise ModelError(
                f"config.json: {own} {value!r} is not known; known: {', '.join(sorted(_ACTIVATIONS))}",
                found=value,
            )
        return _ACTIVATIONS[value]

    def tied(self, config: Config, names: Collection[str]) -> bool:
        """True when the output head is the embedding: no head is stored. (A stored head counts, whatever the config says.)"""
        return self.head not in names

    def ties(self, config: Config) -> bool | None:
        """What the config says about tied embeddings; None when it says nothing and the family has no default."""
        value = self.get(config, "tie_word_embeddings")
        return None if value is None else bool(value)

    # -- the tensors a config calls for ------------------------------------------------------------------

    def expected(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Name -> shape (Hugging Face layout) of every tensor that this config calls for; the head is left out."""
        size = self.sizes(config)
        out: dict[str, tuple[int, ...]] = {self.embed: (size.vocab, size.hidden)}
        if self.positions:
            out[self.positions] = (self._int(config, "max_position_embeddings"), size.hidden)
        for i in range(size.n_layers):
            prefix = self.layer_prefix(i)
            out.update((prefix + n, shape) for n, shape in self._layer(config, size, i))
        out[self.final_norm] = (size.hidden,)
        if self.final_norm_bias:
            out[self.final_norm_bias] = (size.hidden,)
        return out

    def _layer(self, config: Config, size: ModelSizes, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        q, kv = size.n_heads * size.head_dim, size.n_kv_heads * size.head_dim
        features, hidden = size.intermediate[i], size.hidden
        shapes = {self.o: (hidden, q), self.gate: (features, hidden), self.down: (hidden, features)}
        if self.qkv:
            shapes[self.qkv] = (q + 2 * kv, hidden)
        else:
            shapes |= {self.q: (q, hidden), self.k: (kv, hidden), self.v: (kv, hidden)}
        if self.up:
            shapes[self.up] = (features, hidden)
        attention = {self.o, self.qkv, self.q, self.k, self.v}
        for name in self.matrices():
            rows, columns = shapes[name]
            yield name, (columns, rows) if self.transposed else (rows, columns)
            if self._has_bias(config, name, name in attention):
                yield bias_of(name), (rows,)
        for name in self.norms():
            yield name, (size.head_dim,) if name in (self.q_norm, self.k_norm) else (hidden,)
            if self.norm_biases:
                yield bias_of(name), (hidden,)

    def _has_bias(self, config: Config, name: str, attention: bool) -> bool:
        rule = self.attn_bias if attention else self.ffn_bias
        if rule == "config":
            return bool(config.get("attention_bias" if attention else "mlp_bias", False))
        return rule == "always" or (rule == "qkv" and name != self.o)


def bias_of(weight: str) -> str:
    """The bias's name beside a weight's name."""
    return weight.removesuffix("weight") + "bias"


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_LLAMA = Family(
    name="llama",
    attn_bias="config",
    ffn_bias="config",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
    },
    gguf_arch="llama",
    gguf_permuted=True,
)

_GEMMA = replace(
    _LLAMA,
    name="gemma",
    norm_offset=1.0,
    ffn_bias="never",
    scaled_embedding=True,
    defaults={
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    gguf_arch="gemma",
    gguf_permuted=False,
)

_GEMMA2 = replace(
    _GEMMA,
    name="gemma2",
    act_key="hidden_activation",
    post_attn_norm="post_attention_layernorm.weight",
    ffn_norm="pre_feedforward_layernorm.weight",
    post_ffn_norm="post_feedforward_layernorm.weight",
    defaults={
        **_GEMMA.defaults,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    gguf_arch="gemma2",
)

_GEMMA3 = replace(
    _GEMMA2,
    name="gemma3_text",
    q_norm="self_attn.q_norm.weight",
    k_norm="self_attn.k_norm.weight",
    defaults={**_GEMMA2.defaults, "vocab_size": 262208},
    # Both layouts of the image-and-text checkpoints, older and newer.
    prefixes=(
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        *_LLAMA.prefixes,
    ),
    ignored=_LLAMA.ignored + r"|(model\.)?(vision_tower|multi_modal_projector)\..*",
    gguf_arch="gemma3",
)

_MISTRAL = replace(
    _LLAMA,
    name="mistral",
    attn_bias="never",
    ffn_bias="never",
    defaults={**_LLAMA.defaults, "intermediate_size": 14336, "num_key_value_heads": 8},
)

_QWEN2 = replace(
    _LLAMA,
    name="qwen2",
    attn_bias="qkv",
    ffn_bias="never",
    defaults={**_LLAMA.defaults, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32},
    gguf_arch="qwen2",
    gguf_permuted=False,
)

_QWEN3 = replace(
    _QWEN2,
    name="qwen3",
    attn_bias="config",
    q_norm="self_attn.q_norm.weight",
    k_norm="self_attn.k_norm.weight",
    defaults={**_QWEN2.defaults, "head_dim": 128},
    gguf_arch="qwen3",
)

_GPT2 = Family(
    name="gpt2",
    embed="transformer.wte.weight",
    final_norm="transformer.ln_f.weight",
    final_norm_bias="transformer.ln_f.bias",
    positions="transformer.wpe.weight",
    layer="transformer.h.{i}.",
    gate="mlp.c_fc.weight",
    up="",
    down="mlp.c_proj.weight",
    attn_norm="ln_1.weight",
    ffn_norm="ln_2.weight",
    q="",
    k="",
    v="",
    qkv="attn.c_attn.weight",
    o="attn.c_proj.weight",
    norm="layer",
    norm_biases=True,
    transposed=True,
    attn_bias="always",
    ffn_bias="always",
    act_key="activation_function",
    eps_key="layer_norm_epsilon",
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    },
    defaults={
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    prefixes=(
        ("h.", "transformer.h."),
        ("wte.", "transformer.wte."),
        ("wpe.", "transformer.wpe."),
        ("ln_f.", "transformer.ln_f."),
    ),
    # The causal mask that old checkpoints carry as a buffer.
    ignored=r".*\.attn\.(masked_)?bias",
    gguf_arch="gpt2",
)

FAMILIES: dict[str, Family] = {
    f.name: f for f in (_LLAMA, _MISTRAL, _QWEN2, _QWEN3, _GEMMA, _GEMMA2, _GEMMA3, _GPT2)
}


def family_for(config: Config, names: Collection[str] | None = None) -> tuple[Family, list[str]]:
    """The family of a config and notices for the user; ModelError when neither the table nor Llama's names fit.

    `names` are the checkpoint's tensor names; without them (a stored config) an unlisted model_type is taken as
    having Llama's names, which whoever stored it has checked.
    """
    model_type = config.get("model_type")
    known = ", ".join(FAMILIES)
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"config.json: model_type is missing; known: {known}", expected="model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type], []
    family = replace(_LLAMA, name=model_type, gguf_arch="", gguf_permuted=False, listed=False)
    if names is not None:
        have = {family.canonical(n) for n in names}
        needed = [
            family.embed,
            family.final_norm,
            *(family.layer_prefix(0) + n for n in _llama_layer(family)),
        ]
        missing = [n for n in needed if n not in have]
        if missing:
            raise ModelError(
                f"model_type {model_type!r} is not known and lacks Llama's tensor {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; known: {known}, "
                "and any model with Llama's tensor names",
                tensor=missing[0],
                expected=needed,
            )
    return family, [f"model_type {model_type!r} is not in the family table; taken by its Llama tensor names"]


def _llama_layer(family: Family) -> tuple[str, ...]:
    return (*family.matrices(), *family.norms())


def text_config(config: Config) -> dict[str, Any]:
    """The text model's config as a new dict: gemma3's `text_config` unwrapped, with model_type and head tying."""
    if config.get("model_type") != "gemma3" or not isinstance(config.get("text_config"), Mapping):
        return dict(config)
    text = dict(config["text_config"])
    text["model_type"] = "gemma3_text"
    for key in (
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
        "torch_dtype",
    ):
        if text.get(key) is None and config.get(key) is not None:
            text[key] = config[key]
    return text


def complete(config: Config, family: Family) -> dict[str, Any]:
    """The config with the family's defaults written out for keys that it leaves to the architecture."""
    out = dict(config)
    for key, value in family.defaults.items():
        own = family.keys.get(key, key)
        if out.get(own) is None and out.get(key) is None:
            out[own] = value
    return out
