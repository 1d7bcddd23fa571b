"""A Hugging Face config, rebuilt from a GGUF file's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from larql_duck.errors import ModelError
from larql_duck.models.families import FAMILIES
from larql_duck.models.family import Family

# Of the config's names, what the metadata calls them (after "<architecture>.").
_SIZES = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_EPS = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
# What YaRN scaling is told, as a config and as the metadata name it.
YARN = {
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "attention_factor": "rope.scaling.attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
# Layer counts of the two largest Gemmas: only they scale queries by hidden / heads instead of the head size.
_WIDE_QUERIES = {"gemma2": 46, "gemma3_text": 62}
# Soft-caps that llama.cpp assumes where a Gemma 2 file leaves them out.
_GEMMA2_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
# The sizes of context that Llama 3's frequency rule may have started from.
_ORIGINAL_CONTEXTS = (8192, 4096, 16384, 32768, 2048, 131072)


class GgufMetadata:
    """One file's metadata. Errors name the key."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata = metadata
        self.error = partial(ModelError.at, path)
        self.arch = str(metadata.get("general.architecture", ""))

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.arch}.{key}")

    def number(self, key: str) -> int | float | None:
        """A number; a float as the shortest decimal that is the same f32 (9.99999975e-06 is 1e-05)."""
        value = self.get(key)
        if isinstance(value, list):
            if not value or any(v != value[0] for v in value):
                raise self.error(f"{self.arch}.{key} differs between layers, which is not supported")
            value = value[0]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"{self.arch}.{key} must be a number, found {str(value)[:60]!r}")
        return shortest(value) if isinstance(value, float) else value

    def required(self, key: str) -> int | float:
        value = self.number(key)
        if value is None:
            raise self.error(f"metadata field {self.arch}.{key} is missing; convert the model anew")
        return value

    def scaling(self) -> dict[str, Any] | None:
        """The rotary scaling that the metadata state; None for none."""
        kind = self.get("rope.scaling.type")
        factor = self.number("rope.scaling.factor") or self.number("rope.scale_linear")
        if kind in (None, "none") and not factor:
            return None
        if kind in (None, "none", "linear"):
            return {"rope_type": "linear", "factor": float(factor)} if factor and factor != 1 else None
        if kind == "yarn" and factor:
            out: dict[str, Any] = {"rope_type": "yarn", "factor": float(factor)}
            stated = {key: self.number(stored) for key, stored in YARN.items()}
            return out | {key: value for key, value in stated.items() if value is not None}
        raise self.error(f"rope scaling {str(kind)[:40]!r} is not supported; linear, yarn and Llama 3's are")

    def llama3(self, factors: Sequence[float], theta: float, head_dim: int) -> dict[str, Any]:
        """Llama 3's frequency rule, recovered from the divisors that the file stores one per frequency."""
        factor = shortest(max(factors))
        for original in _ORIGINAL_CONTEXTS:
            rule = llama3_factors(theta, head_dim, factor, 1.0, 4.0, original)
            if len(rule) == len(factors) and all(
                math.isclose(a, b, rel_tol=1e-4) for a, b in zip(rule, factors, strict=True)
            ):
                return {
                    "rope_type": "llama3",
                    "factor": float(factor),
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": original,
                }
        raise self.error(
            "tensor rope_freqs.weight does not follow Llama 3's rule, so the rope scaling cannot be "
            "rebuilt; use the Hugging Face directory of this model",
            tensor="rope_freqs.weight",
        )


class GgufConfig(GgufMetadata):
    """Reads one file's metadata for a section of families.toml; `build` returns the config.

    `others` are architectures that are read elsewhere, for the error about one that is not known.
    """

    def __init__(self, metadata: Mapping[str, Any], path: Path, others: Iterable[str] = ()) -> None:
        super().__init__(metadata, path)
        self.family = self._family(others)

    def _family(self, others: Iterable[str]) -> Family:
        # Of families that share a name the first one counts.
        by_arch = {family.gguf_arch: family for family in reversed(FAMILIES.values())}
        # llama.cpp writes Mistral as "llama"; the window tells them apart where there is one.
        if self.arch == "mistral" or (self.arch == "llama" and self.number("attention.sliding_window")):
            return FAMILIES["mistral"]
        if self.arch not in by_arch:
            known = ", ".join(sorted({*by_arch, *others}))
            raise self.error(
                f"GGUF architecture {self.arch!r} is not known; known: {known}; "
                "a Hugging Face directory of the same model may work"
            )
        return by_arch[self.arch]

    # -- the config --------------------------------------------------------------------------------------

    def build(
        self, tensors: Mapping[str, Sequence[int]], rope_factors: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """The config as a new dict: `tensors` are the file's names and shapes, `rope_factors` rope_freqs.weight."""
        family = self.family
        embedding = tensors.get("token_embd.weight")
        if embedding is None or len(embedding) != 2:
            raise self.error("tensor token_embd.weight is missing", tensor="token_embd.weight")
        out: dict[str, Any] = {"model_type": family.name, "vocab_size": int(embedding[0])}
        for key, stored in _SIZES.items():
            out[family.keys.get(key, key)] = self.required(stored)
        if family.norm != "layer":
            out["num_key_value_heads"] = self.number("attention.head_count_kv") or out["num_attention_heads"]
        out[family.eps_key] = self.required(_EPS[family.norm])
        out[family.act_key] = family.defaults[family.act_key]
        out["tie_word_embeddings"] = "output.weight" not in tensors
        for name, stored in TOKEN_IDS.items():
            token_id = self.metadata.get(stored)
            if isinstance(token_id, int) and 0 <= token_id < out["vocab_size"]:
                out[name] = token_id
        if family.norm == "layer":
            return out
        out["head_dim"] = self._head_dim(out)
        if family.attn_bias == "config":
            out["attention_bias"] = "blk.0.attn_q.bias" in tensors
        if family.ffn_bias == "config":
            out["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
        self._windows(out)
        self._rope(out, rope_factors)
        return out

    def _head_dim(self, config: Mapping[str, Any]) -> int:
        key, value = self.number("attention.key_length"), self.number("attention.value_length")
        head_dim = key or config["hidden_size"] // max(config["num_attention_heads"], 1)
        rotary = self.number("rope.dimension_count")
        for other, name in ((value, "attention.value_length"), (rotary, "rope.dimension_count")):
            if other is not None and other != head_dim:
                raise self.error(
                    f"{self.arch}.{name} is {other} and the heads have size {head_dim}; "
                    "only models where they agree are supported"
                )
        return int(head_dim)

    def _windows(self, out: dict[str, Any]) -> None:
        """Sliding windows, layer types, soft-caps and the query scale of the families that have them."""
        name, layers = self.family.name, int(out["num_hidden_layers"])
        window = self.number("attention.sliding_window")
        if name == "mistral":
            out["sliding_window"] = window or None
        if name not in _WIDE_QUERIES:
            return
        out["sliding_window"] = window or 4096
        if layers == _WIDE_QUERIES[name]:
            out["query_pre_attn_scalar"] = out["hidden_size"] // max(out["num_attention_heads"], 1)
        else:
            out["query_pre_attn_scalar"] = out["head_dim"]
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            out[key] = self.number(key) or (_GEMMA2_CAPS[key] if name == "gemma2" else None)
        if layers <= 1 << 16:
            sliding = self._sliding(layers, 2 if name == "gemma2" else 6)
            out["layer_types"] = ["sliding_attention" if s else "full_attention" for s in sliding]

    def _sliding(self, layers: int, period: int) -> list[bool]:
        """Which layers have the window: a list in the file, or all but every n-th."""
        pattern = self.get("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            if len(pattern) != layers:
                raise self.error(
                    f"{self.arch}.attention.sliding_window_pattern has {len(pattern)} entries for "
                    f"{layers} layers"
                )
            return [bool(p) for p in pattern]
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
            period = pattern
        return [(i + 1) % period != 0 for i in range(layers)]

    # -- rotary embedding --------------------------------------------------------------------------------

    def _rope(self, out: dict[str, Any], factors: Sequence[float] | None) -> None:
        gemma3 = self.family.name == "gemma3_text"
        theta = float(self.number("rope.freq_base") or (1e6 if gemma3 else 1e4))
        out["rope_theta"] = theta
        if gemma3:
            out["rope_local_base_freq"] = float(self.number("rope.freq_base_swa") or 1e4)
        scaling = self.scaling()
        if factors is not None and any(abs(f - 1) > 1e-6 for f in factors):
            scaling = self.llama3(factors, theta, int(out["head_dim"]))
        if scaling:
            out["rope_scaling"] = scaling


def llama3_factors(
    theta: float, head_dim: int, factor: float, low: float, high: float, original: int
) -> list[float]:
    """By how much Llama 3's rope scaling divides each of the head_dim / 2 frequencies, highest frequency first."""
    out = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(float(factor))
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return out


def shortest(value: float) -> float:
    """The shortest decimal that is the same number in f32: 9.999999747378752e-06 gives 1e-05."""
    import numpy as np

    if abs(value) > float(np.finfo(np.float32).max):
        return value
    return float(np.format_float_positional(np.float32(value), unique=True))
