"""The model families as a table, one row each, and how a config finds its row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from larql_duck.errors import ModelError
from larql_duck.models.family import Config, Family, ModelSizes, bias_of

__all__ = ["FAMILIES", "Family", "ModelSizes", "bias_of", "complete", "family_for", "text_config"]

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
    act_aliases={"gelu": "gelu_pytorch_tanh"},
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
    act_aliases={},
    post_attn_norm="post_attention_layernorm.weight",
    ffn_norm="pre_feedforward_layernorm.weight",
    post_ffn_norm="post_feedforward_layernorm.weight",
    defaults={
        **{k: v for k, v in _GEMMA.defaults.items() if k != "hidden_act"},
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

# Keys that gemma3 may keep outside of its text_config.
_OUTSIDE = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")


def family_for(config: Config, names: Collection[str] | None = None) -> tuple[Family, list[str]]:
    """The family of a config and notices for the user; ModelError when neither the table nor Llama's names fit.

    `names` are the checkpoint's tensor names; without them (a stored config) an unlisted model_type is taken as
    having Llama's names, which whoever stored it has checked.
    """
    model_type = config.get("model_type")
    known = ", ".join(FAMILIES)
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"config.json: model_type is missing; known: {known}")
    if model_type in FAMILIES:
        return FAMILIES[model_type], []
    family = replace(_LLAMA, name=model_type, gguf_arch="", gguf_permuted=False, defaults={}, listed=False)
    if names is not None:
        have = {family.canonical(n) for n in names}
        in_layer = (family.layer_prefix(0) + n for n in (*family.matrices(), *family.norms()))
        needed = [family.embed, family.final_norm, *in_layer]
        missing = [n for n in needed if n not in have]
        if missing:
            raise ModelError(
                f"model_type {model_type!r} is not known and lacks Llama's tensor {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; known: {known}, "
                "and any model with Llama's tensor names",
                tensor=missing[0],
            )
    return family, [f"model_type {model_type!r} is not in the family table; taken by its Llama tensor names"]


def text_config(config: Config) -> dict[str, Any]:
    """The text model's config as a new dict: gemma3's `text_config` unwrapped, with model_type and head tying."""
    if config.get("model_type") != "gemma3" or not isinstance(config.get("text_config"), Mapping):
        return dict(config)
    text = {**config["text_config"], "model_type": "gemma3_text"}
    outside = {key: config[key] for key in _OUTSIDE if config.get(key) is not None}
    return text | {key: value for key, value in outside.items() if text.get(key) is None}


def complete(config: Config, family: Family) -> dict[str, Any]:
    """The config with the family's defaults written out for keys that it leaves to the architecture."""
    spelled = ((family.keys.get(key, key), key, value) for key, value in family.defaults.items())
    return dict(config) | {
        own: value for own, key, value in spelled if own not in config and key not in config
    }
