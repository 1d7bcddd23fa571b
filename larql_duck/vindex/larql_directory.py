"""Directories that LARQL wrote: the Hugging Face config that their manifest amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from larql_duck.models.families import FAMILIES, complete, family_for
from larql_duck.vindex.manifest import Manifest

# LARQL runs every architecture with this norm epsilon and keeps none in its manifest.
_EPS = 1e-6
# LARQL's name in model_config -> the config's, for what both state; some only where the model has it.
OPTIONAL_FIELDS = {
    "sliding_window_pattern": "sliding_window_pattern",
    "layer_types": "layer_types",
    "rope_local_base": "rope_local_base_freq",
    "query_pre_attn_scalar": "query_pre_attn_scalar",
    "final_logit_softcapping": "final_logit_softcapping",
}
_CONFIG_FIELDS = {
    "head_dim": "head_dim",
    "num_q_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "rope_base": "rope_theta",
    "sliding_window": "sliding_window",
    **OPTIONAL_FIELDS,
}


def config_of_larql(manifest: Manifest, has_head: bool) -> dict[str, Any]:
    """A Hugging Face config from LARQL's manifest; `has_head` says whether lm_head.bin is there (untied).

    What LARQL does not keep is filled in: norm eps 1e-6, the family's own activation, a context of 131,072 tokens.
    """
    stated: Mapping[str, Any] = manifest.raw.get("model_config") or {}
    model_type = str(stated.get("model_type") or manifest.family)
    if model_type == "gemma3":
        model_type = "gemma3_text"
    features = [entry.num_features for entry in manifest.layers]
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": manifest.hidden_size,
        "intermediate_size": features[0] if len(set(features)) == 1 else features,
        "num_hidden_layers": manifest.num_layers,
        "vocab_size": manifest.vocab_size,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": _EPS,
        "tie_word_embeddings": not has_head,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config |= {key: stated[name] for name, key in _CONFIG_FIELDS.items() if stated.get(name) is not None}
    family, _ = family_for(config)
    if model_type in FAMILIES:
        spelled = {family.keys.get(key, key): value for key, value in config.items()}
        config = complete(spelled, family)
    else:
        config["hidden_act"] = "silu"
    return config
