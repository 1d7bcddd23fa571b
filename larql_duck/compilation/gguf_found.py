"""The config of a family that was read off modules as GGUF metadata, checked by reading it back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from larql_duck.compilation.gguf_metadata import ELSE, Expressed, rope_fields, token_ids
from larql_duck.errors import ModelError
from larql_duck.models.architecture import config_object
from larql_duck.models.family import Config, Family, as_mapping
from larql_duck.models.gguf_families import GGUF_FAMILIES, SIZES, FoundConfig, GgufFamily

_WHOLE = ("attention.sliding_window", "rope.scaling.original_context_length")
# OLMo's norms, whose epsilon no config has.
_FIXED_EPS = 1e-5
# Keys that say nothing of what a model computes when it is asked: how it was trained, stored or run.
_ASIDE = re.compile(
    r".*(dropout|pdrop|initializer|_token_id|use_cache|dtype|pretraining_tp).*|architectures|transformers_version|"
    r"_name_or_path|max_position_embeddings|n_positions|original_max_position_embeddings|max_seq_len|id2label|label2id|"
    r"problem_type|output_\w+|return_dict|chunk_size_feed_forward|tie_word_embeddings|is_decoder|use_mambapy|"
    r"_attn_implementation\w*|experts_implementation|init_device|learned_pos_emb|slow_but_exact|max_window_layers|"
    r"use_sliding_window|sliding_window_pattern|cache_implementation|scale_attention_softmax_in_fp32|scale_attn_weights|"
    r"attention_softmax_in_fp32|add_cross_attention|summary_\w+|num_ln_in_parallel_attn|rope_theta"
)


def express_found(
    config: Config, family: Family, tensors: Mapping[str, Sequence[int]], path: Path
) -> Expressed:
    """The metadata that say what the config says, of a family in gguf_families.toml; see `express`."""
    own = GGUF_FAMILIES[family.name]
    fields, rope_factors = _fields(own, config, family, path)
    metadata: dict[str, Any] = {"general.architecture": own.arch}
    metadata |= {f"{own.arch}.{key}": value for key, value in fields.items() if value is not None}
    metadata |= token_ids(config)
    try:
        found = FoundConfig(own, metadata, path).build(tensors, rope_factors)
    except ModelError as error:
        raise ModelError(f"{error}; {ELSE}", path=str(path)) from None
    if other := list(_differences(own, config, found)):
        raise ModelError.at(path, f"GGUF has no way to say {', '.join(other)} as this model has it; {ELSE}")
    return Expressed(metadata, rope_factors, [])


def _fields(
    own: GgufFamily, config: Config, family: Family, path: Path
) -> tuple[dict[str, Any], list[float] | None]:
    """Metadata by their names behind the architecture's, and the tensor rope_freqs.weight where there is one."""
    made, sizes = config_object(config, family.name), family.sizes(config)
    fields: dict[str, Any] = {
        stored: int(value) for key, stored in SIZES.items() if (value := getattr(made, key, None))
    }
    fields.setdefault("context_length", int(getattr(made, "max_seq_len", None) or 2048))
    fields |= {
        "feed_forward_length": sizes.intermediate[0],
        "attention.head_count_kv": _key_heads(own, made, sizes.n_heads),
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "vocab_size": sizes.vocab,
        own.eps_key: float(getattr(made, own.eps)) if own.eps else _FIXED_EPS,
    }
    fields |= {stored: _typed(stored, getattr(made, key, None)) for stored, key in own.keys.items()}
    if own.full_every:
        window = getattr(made, "sliding_window", None)
        slides = "sliding_attention" in (getattr(made, "layer_types", None) or [])
        fields["attention.sliding_window"] = window if slides else None
    rope = as_mapping(getattr(made, "rope_parameters", None))
    if not rope:
        return fields, None
    rope = as_mapping(rope.get("full_attention", rope))
    theta = float(rope["rope_theta"])
    rotary = int(sizes.head_dim * float(rope.get("partial_rotary_factor", 1.0)))
    fields |= {"rope.freq_base": theta, "rope.dimension_count": rotary}
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    kind = scaling.get("rope_type", "default")
    said, factors = rope_fields({} if kind == "default" else scaling, sizes.head_dim, theta, path)
    return fields | said, factors


def _typed(stored: str, value: Any) -> Any:
    """A config's value as llama.cpp wants it there: factors are floats, however the config writes them."""
    if value is None or isinstance(value, bool):
        return value
    return int(value) if stored in _WHOLE else float(value)


def _key_heads(own: GgufFamily, made: Any, n_heads: int) -> int:
    """Heads of keys and values, as the files' readers count them."""
    if getattr(made, "multi_query", False) and not getattr(made, "new_decoder_architecture", False):
        return 1
    return int(getattr(made, own.kv_heads, None) or n_heads) if own.kv_heads else n_heads


def _differences(own: GgufFamily, config: Config, found: Config) -> Iterator[str]:
    """The config's keys in which the config that a reader rebuilds says something else."""
    stated, rebuilt = (config_object(c, own.name).to_dict() for c in (config, found))
    # The tensors' shapes say how many features there are.
    aside = {own.features} | ({"num_key_value_heads"} if not own.kv_heads else set())
    if own.name == "falcon":  # which of its two decoders it is says which of these counts
        aside.add("multi_query" if stated["new_decoder_architecture"] else "num_kv_heads")
    for key in sorted((stated.keys() | rebuilt.keys()) - aside):
        if not _ASIDE.fullmatch(key) and not _same(key, stated.get(key), rebuilt.get(key)):
            yield key


def _same(key: str, a: Any, b: Any) -> bool:
    """Whether two values of a config say the same; numbers as single precision holds them."""
    if key == "rope_parameters":
        return _same_rotation(as_mapping(a), as_mapping(b))
    if (
        isinstance(a, bool)
        or isinstance(b, bool)
        or not isinstance(a, int | float)
        or not isinstance(b, int | float)
    ):
        return a == b or (not a and not b)
    return math.isclose(a, b, rel_tol=1e-6)


def _same_rotation(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two sets of rotary parameters agree in all that both state, the rest being defaults."""
    if any(isinstance(v, Mapping) for v in (*a.values(), *b.values())):
        return a.keys() == b.keys() and all(_same_rotation(a[key], b[key]) for key in a)
    a, b = ({"rope_type": "default", "partial_rotary_factor": 1.0, **x} for x in (a, b))
    return all(_same("", a[key], b[key]) for key in a.keys() & b.keys())
