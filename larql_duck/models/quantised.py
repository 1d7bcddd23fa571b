"""Quantised checkpoints: which stored tensors are the parts of one of the model's, told by names and dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from larql_duck.errors import ModelError
from larql_duck.models.dequantised import (
    Awq,
    BitsAndBytes4,
    Dequantised,
    Gptq,
    Mxfp4,
    PackedFp4,
    PackedInts,
    Plain,
    Scaled,
    Stored,
    int8_rows,
)
from larql_duck.models.mapped import READABLE

_Parts: TypeAlias = Mapping[str, Plain]
_Settings: TypeAlias = Mapping[str, Any]
# Scales of activations and of the cache, and what says how rows are laid out for a kernel.
_ASIDE = (
    "input_scale", "input_zero_point", "input_global_scale", "activation_scale", "output_scale", "k_scale", "v_scale",
    "q_scale", "kv_scale", "weight_format", "prob_output_scale", "q_proj.output_scale",
)  # fmt: skip
_BYTES = ("F8_E4M3", "F8_E5M2", "I8")
_BNB_STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
# Parts of a quantised tensor, behind its name.
_OF_SCALED = ("", "_scale", "_scale_inv", "_scale_2", "_zero_point")
_OF_PACKED = ("_packed", "_scale", "_global_scale", "_shape", "_zero_point", "_g_idx")
_OF_GPTQ = (".qweight", ".qzeros", ".scales", ".g_idx")
_OF_BNB = (
    "", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)  # fmt: skip
# Methods whose files only a package of their own reads.
_PACKAGES = {
    "aqlm": "aqlm", "bitnet": "transformers", "eetq": "eetq", "fp_quant": "fp_quant", "higgs": "flute", "hqq": "hqq",
    "quanto": "optimum-quanto", "spqr": "spqr_quant", "torchao": "torchao", "vptq": "vptq", "auto-round": "auto-round",
    "quark": "amd-quark", "sinq": "sinq", "bitsandbytes": "bitsandbytes", "modelopt": "nvidia-modelopt",
}  # fmt: skip


@dataclass(frozen=True)
class Assembled:
    """The model's tensors by their names in files, parts of quantised ones put together; notices for the user.

    formats: how many tensors are of which format.
    """

    tensors: dict[str, Stored]
    formats: Mapping[str, int]
    notices: list[str]


def assembled(stored: _Parts, settings: _Settings) -> Assembled:
    """What the `stored` tensors are; `settings` is the config's quantization_config.

    ModelError for a format that is not read, which names the package that does, and for parts that do not fit.
    """
    whole: dict[str, Stored] = {}
    used: set[str] = set()
    for name in stored:
        found = next((hit for find in _FINDERS for hit in [find(name, stored, settings)] if hit), None)
        if found is None:
            continue
        tensor, parts, own = found
        tensor.check()
        whole[own] = tensor
        used.update(parts)
    formats = Counter(t.label for t in whole.values() if isinstance(t, Dequantised))
    rest = {n: t for n, t in stored.items() if n not in used and not (whole and n.endswith(_ASIDE))}
    _check_rest(rest, settings)
    return Assembled({**rest, **whole}, formats, _notices(formats, settings))


def _notices(formats: Mapping[str, int], settings: _Settings) -> list[str]:
    if formats:
        kinds = ", ".join(f"{count} of {label}" for label, count in sorted(formats.items()))
        return [f"quantised tensors are dequantised as they are read: {kinds}"]
    if settings:
        return [
            f"config.json speaks of quantisation ({_method(settings)}), the weights are in full precision: they count"
        ]
    return []


def _check_rest(rest: _Parts, settings: _Settings) -> None:
    """Raise ModelError where what is no part of a format that is read is not in floats, or computes otherwise."""
    method = _method(settings)
    if method == "bitnet":
        raise ModelError(
            "bitnet's weights are rounded to three values whenever they are used, which is not done here; save the model "
            "with its weights rounded and without quantization_config"
        )
    # Causal masks that old checkpoints carry are called biases.
    odd = next(
        (
            n
            for n, t in rest.items()
            if len(t.shape) > 1 and t.dtype not in READABLE and not n.endswith("bias")
        ),
        None,
    )
    if odd is None or not settings:
        return
    package = _PACKAGES.get(method)
    with_it = f"its package {package}" if package else "the package that wrote it"
    raise ModelError(
        f"tensor {odd} ({rest[odd].dtype}) is quantised by the method {method!r}, which is not read; save the model "
        f"dequantised with {with_it}, or use its GGUF",
        tensor=odd,
    )


def _method(settings: _Settings) -> str:
    return str(settings.get("quant_method") or settings.get("quant_algo") or "unknown")[:40]


# -- formats --------------------------------------------------------------------------------------------------

_Found: TypeAlias = tuple[Dequantised, list[str], str]


def _mxfp4(name: str, stored: _Parts, settings: _Settings) -> _Found | None:
    base = name.removesuffix("_blocks")
    scales = stored.get(f"{base}_scales")
    if base == name or scales is None or stored[name].dtype != "U8":
        return None
    return Mxfp4(stored[name], "mxfp4", scales), [name, f"{base}_scales"], base


def _packed(name: str, stored: _Parts, settings: _Settings) -> _Found | None:
    base = name.removesuffix("_packed")
    scales = stored.get(f"{base}_scale")
    if base == name or scales is None:
        return None
    parts = [base + part for part in _OF_PACKED]
    values, overall, shape = stored[name], stored.get(f"{base}_global_scale"), stored.get(f"{base}_shape")
    if values.dtype == "U8":
        label = "mxfp4" if overall is None else "nvfp4"
        return PackedFp4(values, label, scales, overall=overall, divides=True), parts, base
    if shape is None:
        return None
    zero, index = stored.get(f"{base}_zero_point"), stored.get(f"{base}_g_idx")
    ints = PackedInts(values, "", scales, shape, zero, index)
    return replace(ints, label=f"int{ints.bits} (compressed-tensors)"), parts, base


def _scaled(name: str, stored: _Parts, settings: _Settings) -> _Found | None:
    values = stored[name]
    inverse, own = stored.get(f"{name}_scale_inv"), stored.get(f"{name}_scale")
    scales = own if inverse is None else inverse
    second = stored.get(f"{name}_scale_2")
    if scales is None:
        return None
    parts = [name + part for part in _OF_SCALED]
    if values.dtype == "U8" and second is not None:
        return PackedFp4(values, "nvfp4", scales, overall=second), parts, name
    if values.dtype == "I8" and inverse is not None:
        return PackedFp4(values, "fp4 with block scales", scales, block=_stated_block(settings)), parts, name
    if values.dtype not in _BYTES:
        return None
    label = "int8" if values.dtype == "I8" else "fp8"
    zero = stored.get(f"{name}_zero_point")
    return Scaled(values, label, scales, zero, _stated_block(settings)), parts, name


def _gptq(name: str, stored: _Parts, settings: _Settings) -> _Found | None:
    base = name.removesuffix(".qweight")
    scales, zeros = stored.get(f"{base}.scales"), stored.get(f"{base}.qzeros")
    if base == name or scales is None or zeros is None:
        return None
    method, bits = _method(settings), settings.get("bits", settings.get("w_bit"))
    parts = [base + part for part in _OF_GPTQ]
    own = f"{base}.weight"
    if method == "awq" and bits == 4 and str(settings.get("version", "gemm")).lower() == "gemm":
        return Awq(stored[name], "awq int4", scales, zeros), parts, own
    if method == "gptq" and bits in (2, 4, 8):
        plus = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
        index = stored.get(f"{base}.g_idx")
        return Gptq(stored[name], f"gptq int{bits}", scales, zeros, bits, plus, index), parts, own
    raise ModelError(
        f"tensor {name} is packed by the method {method!r} with {bits} bits; read are gptq with 2, 4 or 8 bits and awq "
        "(gemm) with 4: save the model dequantised with the package gptqmodel, or use its GGUF",
        tensor=name,
    )


def _bits_and_bytes(name: str, stored: _Parts, settings: _Settings) -> _Found | None:
    values = stored[name]
    scales = stored.get(f"{name.removesuffix('.weight')}.SCB")
    if values.dtype == "I8" and scales is not None and name.endswith(".weight"):
        return int8_rows(values, scales), [name, scales.key], name
    state = next((stored[name + part] for part in _BNB_STATES if name + part in stored), None)
    if values.dtype != "U8" or state is None:
        return None
    parts = [name + part for part in _OF_BNB]
    table, largest = stored.get(f"{name}.quant_map"), stored.get(f"{name}.absmax")
    inner, scale = stored.get(f"{name}.nested_quant_map"), stored.get(f"{name}.nested_absmax")
    if table is None or largest is None or (largest.dtype == "U8" and (inner is None or scale is None)):
        raise state.wrong(name)
    nested = None if inner is None or scale is None else (inner, scale)
    kind = state.key.rpartition("__")[2]
    return BitsAndBytes4(values, f"bitsandbytes {kind}", table, largest, state, nested), parts, name


_FINDERS: tuple[Callable[[str, _Parts, _Settings], _Found | None], ...] = (
    _mxfp4,
    _packed,
    _scaled,
    _gptq,
    _bits_and_bytes,
)


def _stated_block(settings: _Settings) -> tuple[int, int] | None:
    """Rows and columns of a block of scales, as the config has them."""
    for key in ("weight_block_size", "block_structure"):
        for value in _values(settings, key):
            if isinstance(value, str):
                value = [int(n) for n in value.split("x") if n.isdecimal()]
            if isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value):
                return value[0], value[1]
    return None


def _values(settings: _Settings, key: str) -> Iterator[Any]:
    """The values of a key at any depth."""
    for name, value in settings.items():
        if name == key:
            yield value
        elif isinstance(value, Mapping):
            yield from _values(value, key)
