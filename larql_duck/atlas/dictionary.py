"""Dictionaries from outside: sparse autoencoders and transcoders in SAELens' layout, read and checked.

The files, their fields and what encoders compute are those of SAELens (github.com/decoderesearch/SAELens, sae_lens/saes/ and
sae_lens/loading/pretrained_sae_loaders.py), of version 6 and of the flat configs before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from larql_duck.errors import LarqlError
from larql_duck.files import read_regular
from larql_duck.inference.hook_points import HookPoint, hook_point
from larql_duck.models.safetensors_file import SafetensorsFile
from larql_duck.vindex.fields import Positive, read_struct

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
# Their names in a vindex.
_KEPT_WEIGHTS, _KEPT_CONFIG = "dictionary_{}.safetensors", "dictionary_{}.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)
ARCHITECTURES = ("standard", "topk", "jumprelu", "transcoder", "jumprelu_transcoder")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_LONGEST_CONFIG = 1 << 20
_EPSILON = 1e-5
# What the fields were called before version 6.
_EARLIER = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}  # fmt: skip


class _Config(msgspec.Struct, kw_only=True):
    d_in: Positive
    d_sae: Positive
    hook_name: str
    architecture: str = "standard"
    d_out: Positive | None = None
    hook_name_out: str | None = None
    hook_head_index: int | None = None
    activation_fn: str = "relu"
    activation_fn_kwargs: dict[str, Any] | None = None
    k: Positive | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: bool | str = "none"
    reshape_activations: str = "none"
    rescale_acts_by_decoder_norm: bool = False


@dataclass(frozen=True)
class Codes:
    """What a dictionary makes of n vectors: activation f32 [n, features], none negative; a feature writes its activation
    times scale [n, 1] times its decoder row; shift [n, 1] is what the normalisation takes away and gives back.
    """

    activation: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Dictionary:
    """A sparse dictionary over what passes `point`, which it writes anew at `out` (the same, but for transcoders).

    encoder f32 [hidden, features], encoder_bias [features], decoder f32 [features, hidden], decoder_bias [hidden];
    threshold [features] of a jumprelu, k of a topk. before is taken from vectors before the encoder, gain [features]
    multiplies what a topk chooses by (1 for others).
    """

    architecture: str
    point: HookPoint
    out: HookPoint
    encoder: torch.Tensor
    encoder_bias: torch.Tensor
    decoder: torch.Tensor
    decoder_bias: torch.Tensor
    threshold: torch.Tensor | None
    k: int | None
    before: torch.Tensor | None
    gain: torch.Tensor | None
    normalization: str

    @property
    def n_features(self) -> int:
        """How many features it has."""
        return self.decoder.shape[0]

    @torch.inference_mode()
    def encode(self, x: torch.Tensor) -> Codes:
        """The Codes of vectors x f32 [n, hidden]."""
        scale, shift = torch.ones_like(x[:, :1]), torch.zeros_like(x[:, :1])
        if self.normalization == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            scale = (x - shift).std(-1, keepdim=True)
            x = (x - shift) / (scale + _EPSILON)
        elif self.normalization == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            x = x / scale.clamp_min(torch.finfo(x.dtype).tiny)
        if self.before is not None:
            x = x - self.before
        pre = x @ self.encoder + self.encoder_bias
        if self.gain is not None:
            pre = pre * self.gain
        if self.k is not None:
            values, places = pre.topk(min(self.k, pre.shape[-1]), dim=-1)
            activation = torch.zeros_like(pre).scatter_(-1, places, values.relu())
        elif self.threshold is not None:
            activation = pre.relu() * (pre > self.threshold)
        else:
            activation = pre.relu()
        if self.point != self.out:
            # What a transcoder writes is not scaled back.
            scale, shift = torch.ones_like(scale), torch.zeros_like(shift)
        return Codes(activation, scale, shift)

    @torch.inference_mode()
    def decode(self, codes: Codes) -> torch.Tensor:
        """The vectors at `out` that it reconstructs, f32 [n, hidden]."""
        return (codes.activation @ self.decoder + self.decoder_bias) * codes.scale + codes.shift


def checked_name(name: str) -> str:
    """The name of a dictionary, which files of a vindex are named by; LarqlError for one that is none."""
    if not _NAME.fullmatch(name):
        raise LarqlError(
            f"dictionary name {name!r}: use small letters, digits, '-', '_' and '.', as in --name res-12"
        )
    return name


def kept_files(name: str) -> tuple[str, str]:
    """The files of a dictionary in a vindex: weights and config."""
    return _KEPT_WEIGHTS.format(name), _KEPT_CONFIG.format(name)


def chosen_name(name: str | None, files: Iterable[str]) -> str:
    """The dictionary that is meant among those in a vindex with these files; None means the only one."""
    start, end = _KEPT_WEIGHTS.split("{}")
    names = sorted(f[len(start) : -len(end)] for f in files if f.startswith(start) and f.endswith(end))
    if name in names or (name is None and len(names) == 1):
        return names[0] if name is None else name
    if not names:
        raise LarqlError("this vindex has no dictionary; add one: larql-duck add-dictionary X.vindex DIR")
    which = "several dictionaries" if name is None else f"no dictionary {name!r}"
    raise LarqlError(f"this vindex has {which}; name one of: {', '.join(names)}")


def read_dictionary(
    weights: Path, config: Path, *, hidden: int, n_layers: int, device: torch.device | str = "cpu"
) -> Dictionary:
    """The Dictionary in a safetensors file and its config, for a model of this width and so many layers.

    LarqlError of one line for what is missing, has a wrong shape, is not finite, does not fit the model, or is of an
    architecture or kind that is not read.
    """
    settings, architecture, normalization = _settings(config)
    transcodes = "transcoder" in architecture
    d_out = (settings.d_out or settings.d_in) if transcodes else settings.d_in
    for name, width in (("d_in", settings.d_in), ("d_out", d_out)):
        if width != hidden:
            raise LarqlError(
                f"{config}: {name} is {width}, but this model is {hidden} wide; take a dictionary of it"
            )
    try:
        point = hook_point(settings.hook_name, n_layers)
        after = settings.hook_name_out or (f"blocks.{point.layer}.hook_mlp_out" if transcodes else None)
        out = hook_point(after, n_layers) if transcodes and after else point
    except LarqlError as error:
        raise LarqlError(f"{config}: {error}") from None
    if out.layer < point.layer:
        raise LarqlError(f"{config}: hook_name_out {out.name} comes before hook_name {point.name}")
    k = settings.k or (settings.activation_fn_kwargs or {}).get("k")
    if architecture == "topk" and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise LarqlError(f"{config}: k must be a number from 1 on, found {k!r}")
    file = SafetensorsFile(weights)
    n = settings.d_sae
    shapes = {"W_enc": (hidden, n), "b_enc": (n,), "W_dec": (n, hidden), "b_dec": (hidden,)}
    logarithm = "threshold" not in file.entries and "log_threshold" in file.entries
    if architecture.startswith("jumprelu"):
        shapes["log_threshold" if logarithm else "threshold"] = (n,)
    found = {name: _tensor(file, name, shape).to(device) for name, shape in shapes.items()}
    if "scaling_factor" in file.entries and not bool((_tensor(file, "scaling_factor", (n,)) == 1).all()):
        raise LarqlError(f"{weights}: has a scaling_factor that is not folded in; fold it into W_dec first")
    threshold = (
        found["log_threshold"].exp() if logarithm and "log_threshold" in found else found.get("threshold")
    )
    decoder, gain = found["W_dec"], None
    if architecture == "topk" and settings.rescale_acts_by_decoder_norm:
        gain = decoder.norm(dim=-1)
        decoder = decoder / gain.clamp_min(torch.finfo(gain.dtype).tiny)[:, None]
    return Dictionary(
        architecture, point, out, found["W_enc"], found["b_enc"], decoder, found["b_dec"], threshold,
        k if architecture == "topk" else None,
        found["b_dec"] if settings.apply_b_dec_to_input and not transcodes else None, gain, normalization,
    )  # fmt: skip


def _settings(path: Path) -> tuple[_Config, str, str]:
    """The config, the architecture that it means, and how inputs are normalised."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise LarqlError(
            f"{path}: cannot be read ({error.strerror or error}); a dictionary is a directory with {WEIGHTS} and {CONFIG}"
        ) from None
    try:
        raw = msgspec.json.decode(data) if len(data) <= _LONGEST_CONFIG else None
    except (ValueError, RecursionError, msgspec.DecodeError):
        raw = None
    if not isinstance(raw, dict):
        raise LarqlError(f"{path}: is no JSON object; write the config as SAELens does")
    metadata = raw.get("metadata")
    # Version 6 keeps what is about the model apart.
    flat = {**(metadata if isinstance(metadata, dict) else {}), **raw}
    flat = {_EARLIER.get(name, name): value for name, value in flat.items() if value is not None}

    def refuse(field: str, expected: str, found: str) -> LarqlError:
        return LarqlError(f"{path}: {field} must be {expected}, found {found}")

    config = read_struct(flat, _Config, refuse)
    architecture = config.architecture
    if architecture == "standard" and config.activation_fn != "relu":
        architecture = config.activation_fn
    if architecture not in ARCHITECTURES:
        raise LarqlError(
            f"{path}: the architecture {architecture!r} is not read; known: {', '.join(ARCHITECTURES)}"
        )
    normalization = config.normalize_activations
    if isinstance(normalization, bool):
        normalization = "expected_average_only_in" if normalization else "none"
    if normalization not in NORMALIZATIONS:
        raise LarqlError(
            f"{path}: normalize_activations {normalization!r} is not read; fold its factor into the weights first "
            f"(known: {', '.join(NORMALIZATIONS)})"
        )
    if config.hook_head_index is not None or config.reshape_activations != "none":
        raise LarqlError(f"{path}: dictionaries over single attention heads are not read")
    return config, architecture, normalization


def _tensor(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The named tensor in f32 after its shape and values were checked."""
    entry = file.entries.get(name)
    if entry is None:
        raise LarqlError(f"{file.path}: has no tensor {name}; a dictionary needs one of shape {list(shape)}")
    if entry.shape != shape:
        raise LarqlError(f"{file.path}: {name} has shape {list(entry.shape)}, it must be {list(shape)}")
    values = file.tensor(name).to(torch.float32, copy=True)
    if not bool(torch.isfinite(values).all()):
        raise LarqlError(f"{file.path}: {name} has values that are not finite; get a complete copy of it")
    return values
