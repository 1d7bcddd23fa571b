"""A model's config as GGUF metadata, checked by reading it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larql_duck.errors import ModelError
from larql_duck.models.family import Config, Family
from larql_duck.models.gguf_config import YARN, GgufConfig, llama3_factors
from larql_duck.models.gguf_families import architecture

ELSE = "write it with FORMAT SAFETENSORS instead"
# Keys of Gemma's configs that decide what it computes.
_OF_GEMMA = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")


@dataclass(frozen=True)
class Expressed:
    """metadata: key -> value; rope_factors: the tensor rope_freqs.weight, None where the file needs none; notices on
    what readers other than this package may leave out."""

    metadata: dict[str, Any]
    rope_factors: list[float] | None
    notices: list[str]


def check_architecture(family: Family, path: Path) -> None:
    """Raise ModelError for a family that GGUF has no name for."""
    if not architecture(family):
        raise ModelError.at(
            path, f"model_type {family.name!r} has no place in GGUF as far as is known here; {ELSE}"
        )


def express(config: Config, family: Family, tensors: Mapping[str, Sequence[int]], path: Path) -> Expressed:
    """The metadata that say what the config says; `tensors` are the file's names and shapes.

    Integers are u32 and floats f32 when written. ModelError that names SAFETENSORS where GGUF cannot say it.
    """
    arch = family.gguf_arch
    fields, rope_factors = _fields(config, family, path)
    metadata = {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in fields.items() if v is not None}
    metadata |= token_ids(config)
    _check(config, family, metadata, tensors, rope_factors, path)
    return Expressed(metadata, rope_factors, _notices(config, family))


def token_ids(config: Config) -> dict[str, int]:
    """Metadata of the config's special tokens; of several that end a text the first."""
    out = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = config.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int):
            out[f"tokenizer.ggml.{key}_token_id"] = value
    return out


def _notices(config: Config, family: Family) -> list[str]:
    """What llama.cpp computes otherwise, whatever the file says."""
    if family.name == "mistral" and (window := family.get(config, "sliding_window")):
        return [
            f"llama.cpp knows no sliding window for this architecture: texts above {window} tokens differ there"
        ]
    types = config.get("layer_types")
    period = {"gemma2": 2, "gemma3_text": 6}.get(family.name)
    if period is None or not isinstance(types, list):
        return []
    usual = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(len(types))]
    if types == usual:
        return []
    return [f"llama.cpp takes every {period}th layer for full attention, which this model has otherwise"]


def _fields(config: Config, family: Family, path: Path) -> tuple[dict[str, Any], list[float] | None]:
    sizes = family.sizes(config)
    context = family.get(config, "max_position_embeddings")
    fields: dict[str, Any] = {
        "context_length": int(context) if context else 2048,
        "embedding_length": sizes.hidden,
        "block_count": sizes.n_layers,
        "feed_forward_length": sizes.intermediate[0],
        "attention.head_count": sizes.n_heads,
        "vocab_size": sizes.vocab,
    }
    if family.norm == "layer":
        return fields | {"attention.layer_norm_epsilon": family.norm_eps(config)}, None
    theta = family.rope_theta(config)
    fields |= {
        "attention.head_count_kv": sizes.n_kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.layer_norm_rms_epsilon": family.norm_eps(config),
        "rope.dimension_count": sizes.head_dim,
        "rope.freq_base": 1e6 if theta is None and family.name == "gemma3_text" else float(theta or 1e4),
        "attn_logit_softcapping": family.get(config, "attn_logit_softcapping"),
        "final_logit_softcapping": family.get(config, "final_logit_softcapping"),
    }
    window = family.get(config, "sliding_window")
    if config.get("use_sliding_window") is False:
        window = None
    fields["attention.sliding_window"] = window
    if family.name == "gemma3_text":
        fields["rope.freq_base_swa"] = local_base(config, family)
        layer_types = config.get("layer_types")
        if isinstance(layer_types, list):
            fields["attention.sliding_window_pattern"] = [t == "sliding_attention" for t in layer_types]
    scaling, factors = rope_fields(
        rope_scaling(config, family), sizes.head_dim, fields["rope.freq_base"], path
    )
    return fields | scaling, factors


def local_base(config: Config, family: Family) -> float:
    """Gemma 3's rotary base of the layers with a window."""
    return float(family.rope(config, "sliding_attention")["rope_theta"] or 1e4)


def rope_scaling(config: Config, family: Family) -> dict[str, Any]:
    """The rotary scaling of full attention without its base; {} for none."""
    out = {k: v for k, v in family.rope(config).items() if k not in ("rope_theta", "partial_rotary_factor")}
    return {} if out["rope_type"] == "default" else out


def rope_fields(
    scaling: Mapping[str, Any], head_dim: int, theta: float, path: Path
) -> tuple[dict[str, Any], list[float] | None]:
    """Metadata of a rotary scaling ({}: none), and the tensor rope_freqs.weight where it is one of Llama 3's.

    ModelError that names SAFETENSORS for another kind.
    """
    kind = scaling.get("rope_type")
    if kind is None:
        return {}, None
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}, None
    if kind == "llama3":
        factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        original = int(scaling["original_max_position_embeddings"])
        return {}, llama3_factors(theta, head_dim, factor, low, high, original)
    if kind == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling["factor"]),
            **{stored: scaling.get(key) for key, stored in YARN.items()},
        }, None
    raise ModelError.at(path, f"rope scaling {str(kind)[:40]!r} cannot be said in GGUF; {ELSE}")


def _check(
    config: Config,
    family: Family,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Sequence[int]],
    factors: list[float] | None,
    path: Path,
) -> None:
    """Raise ModelError where a reader of the metadata would build another model."""
    try:
        found = GgufConfig(metadata, path).build(tensors, factors)
    except ModelError as error:
        raise ModelError(f"{error}; {ELSE}", path=str(path)) from None
    differences = []
    read = GgufConfig(metadata, path).family
    if (read.activation(found), read.norm_eps(found)) != (family.activation(config), family.norm_eps(config)):
        differences.append(family.act_key)
    biases = ("mlp_bias", "attention_bias")
    differences += [name for name in biases if bool(found.get(name)) != bool(config.get(name))]
    if family.norm == "rms":
        differences += _differences(config, found, family)
    if differences:
        raise ModelError.at(
            path, f"GGUF has no way to say {', '.join(differences)} as this model has it; {ELSE}"
        )


def _differences(config: Config, found: Config, family: Family) -> list[str]:
    """The config's keys in which the config that a reader rebuilds says something else."""
    theta, types = family.rope_theta(config), config.get("layer_types")
    gemma = family.name in ("gemma2", "gemma3_text")
    if gemma or family.name == "mistral":
        window = _other(found, config, "sliding_window")
    else:
        window = bool(config.get("use_sliding_window", True) and config.get("sliding_window"))
    differs = {
        "rope_theta": theta is not None and family.rope_theta(found) != theta,
        "rope_scaling": not _same_scaling(found, config, family),
        "sliding_window": window,
        **{key: gemma and _other(found, config, key) for key in _OF_GEMMA},
        "rope_local_base_freq": family.name == "gemma3_text"
        and local_base(found, family) != local_base(config, family),
        "layer_types": gemma and isinstance(types, list) and found.get("layer_types") != types,
    }
    return [key for key, other in differs.items() if other]


def _same_scaling(found: Config, config: Config, family: Family) -> bool:
    """Whether two scalings agree in every number that both state, the rest being defaults."""
    a, b = rope_scaling(found, family), rope_scaling(config, family)
    return a.get("rope_type") == b.get("rope_type") and all(a[k] == b[k] for k in a.keys() & b.keys())


def _other(found: Config, config: Config, key: str) -> bool:
    return (found.get(key) or None) != (config.get(key) or None)
