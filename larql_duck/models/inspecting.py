"""What a model is, from its headers alone: family, sizes, what works with it, config keys that nobody reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from larql_duck.models.architecture import is_known, quiet
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.family import Family
from larql_duck.models.gguf_families import architecture

# Keys that say where a file comes from or how somebody ran it.
_ABOUT = {
    "architectures", "auto_map", "dtype", "torch_dtype", "model_type", "transformers_version", "_name_or_path",
    "use_cache", "unsloth_version", "unsloth_fixed", "quantization_config",
}  # fmt: skip


def facts_of(source: ModelSource) -> dict[str, str]:
    """What stands in the headers of a model that `validate` has passed, by name, in the order in which it is read."""
    family, sizes = source.family, source.sizes()
    features = sorted(set(sizes.intermediate))
    shown = str(features[0]) if len(features) == 1 else f"{features[0]} to {features[-1]}"
    facts = {
        "family": f"{family.name} ({'families.toml' if family.listed else _found(family)})",
        "files": ", ".join(path.name for path in source.weight_files()),
        "dtype": source.dtype,
        "parameters": f"{sum(math.prod(shape) for shape in source.shapes.values()):,}",
        "layers": str(sizes.n_layers),
        "hidden": str(sizes.hidden),
        "features": f"{shown} a layer, {sum(sizes.intermediate):,} in all",
        **_experts(family),
        "heads": f"{sizes.n_heads} of {sizes.head_dim}, {sizes.n_kv_heads} for keys and values",
        "tokens": str(sizes.vocab),
        "output head": "the embedding" if family.tied(source.config, source.names()) else family.head,
        "gate": (family.fused and f"first half of {family.fused}") or family.gate,
        "up": (family.fused and f"second half of {family.fused}") or family.up or "none: the FFN is plain",
        "down": family.down,
        "activation": family.activation(source.config) or "numbers of its own",
        "works": ", ".join(_works(family)),
    }
    if source.formats:
        facts["quantised"] = ", ".join(f"{count} of {name}" for name, count in sorted(source.formats.items()))
    if unread := _unread(source.config):
        facts["config keys that nobody reads"] = ", ".join(unread)
    return facts


def _experts(family: Family) -> dict[str, str]:
    experts = family.experts
    if experts is None:
        return {}
    shared = f", {experts.shared} more features that always run" if experts.shared else ""
    layers = f"in {len(experts.layers)} layers"
    return {"experts": f"{experts.count} of {experts.width} features{shared}, {layers}"}


def _found(family: Family) -> str:
    return "found among transformers' modules" if family.measured else "taken by Llama's tensor names"


def _works(family: Family) -> list[str]:
    works = ["browse"]
    if family.listed or family.measured:
        works.append("INFER")
    routed = family.experts is not None and not family.experts.shared
    if not family.between and not routed:
        works.append("INSERT")
    return [*works, "COMPILE to safetensors", *(["to GGUF"] if architecture(family) else [])]


def _unread(config: Mapping[str, Any]) -> list[str]:
    """Keys of the config that transformers' config of this type has no field for."""
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if not is_known(model_type):
        return []
    kind = CONFIG_MAPPING[model_type]
    with quiet():
        known = set(kind().to_dict()) | set(kind.attribute_map) | _ABOUT
    return sorted(key for key in config if key not in known and not hasattr(kind, key))
