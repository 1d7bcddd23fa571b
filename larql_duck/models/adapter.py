"""A PEFT adapter merged over its base model: low-rank updates and tensors that take the place of the base's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.family import WRAPPED
from larql_duck.models.hf import read_json
from larql_duck.models.safetensors_file import SafetensorsFile
from larql_duck.models.source import MatrixRows

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(.+?)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_WHOLE = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?|\.base_layer)?\.(weight|bias)")
_MERGE = "merge it with peft (merge_and_unload) and pass what that saves"
# Settings that change what an adapter computes in ways that are not merged here.
_UNREAD = (
    "layer_replication",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)


@dataclass(frozen=True)
class _Update:
    """A low-rank change of a matrix as torch's linear modules have it: scale times `up` [out, r] times `down` [r, in].

    magnitude: what each row's length is set to (DoRA), None for nothing. turned: the matrix is stored [in, out].
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        shape = (self.up.shape[0], self.down.shape[1])
        return (shape[1], shape[0]) if self.turned else shape

    def applied(self, matrix: torch.Tensor) -> torch.Tensor:
        """The matrix with the change, f32."""
        own = (matrix.t() if self.turned else matrix).float()
        own = own + self.scale * (self.up.float() @ self.down.float())
        if self.magnitude is not None:
            own = own * (self.magnitude.float().reshape(-1) / own.norm(dim=1))[:, None]
        return own.t() if self.turned else own

    def half(self, i: int) -> _Update:
        """The change of one of the two matrices that the rows of this one's are."""
        magnitude = None if self.magnitude is None else self.magnitude.reshape(-1).tensor_split(2)[i]
        return replace(self, up=self.up.tensor_split(2)[i], magnitude=magnitude)


class AdaptedSource(ModelSource):
    """A base model with an adapter merged into its weights as they are read."""

    def __init__(self, directory: Path, base: ModelSource) -> None:
        config = adapter_config(directory)
        self._base, self._file = base, SafetensorsFile(_weights(directory))
        self._updates: dict[str, _Update] = {}
        self._whole: dict[str, torch.Tensor] = {}
        super().__init__(
            path=directory,
            name=f"{base.name} with {directory.resolve().name}",
            config=dict(base.config),
            family=base.family,
            shapes=dict(base.shapes),
            dtype=base.dtype,
            origin={},
            notices=[*base.notices],
            formats=base.formats,
        )
        self._collect(config)
        count = len(self._updates.keys() | self._whole.keys())
        self.notices.append(
            f"the adapter changes {count} tensor{'s' * (count != 1)} of {base.path}: merged as they are read"
        )

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._whole[name] if name in self._whole else self._base.tensor(name, check=False)
        update = self._updates.get(name)
        return tensor if update is None else update.applied(tensor)

    def rows(self, name: str) -> MatrixRows:
        """A matrix's rows; those that the adapter leaves alone as the base model gives them."""
        changed = name in self._updates or name in self._whole
        return self.tensor(name) if changed else self._base.rows(name)

    @property
    def mapped(self) -> bool:
        """False: the tensors that the adapter changes are made in memory."""
        return False

    def _file_of(self, name: str) -> Path:
        return self._base._file_of(name)

    def weight_files(self) -> list[Path]:
        """The base model's files and the adapter's."""
        return [*self._base.weight_files(), self._file.path]

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the base model's tokenizer files."""
        return self._base.tokenizer_files()

    def release(self) -> None:
        """Drop the pages that reading has made resident."""
        self._base.release()
        self._file.release()

    # -- what the adapter holds --------------------------------------------------------------------------

    def _collect(self, config: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key in self._file.entries:
            name = key.removeprefix(_PREFIX)
            if match := _LORA.fullmatch(name):
                parts.setdefault(match[1], {})[match[2]] = self._file.tensor(key)
            elif match := _WHOLE.fullmatch(name):
                self._replace(f"{match[1]}.{match[2]}", self._file.tensor(key))
            else:
                raise self._misfit(key, "is nothing that an adapter of this kind has")
        for module, own in parts.items():
            self._update(module, _update(module, own, config, self._file.path))

    def _update(self, module: str, update: _Update) -> None:
        names = self._names(f"{module}.weight")
        for i, name in enumerate(names):
            own = update if len(names) == 1 else update.half(i)
            if name == self.family.head and name not in self.shapes:
                raise self._misfit(name, f"is the embedding in the base model; {_MERGE}")
            if self.shapes.get(name) != own.shape:
                shape = list(self.shapes.get(name, ()))
                raise self._misfit(name, f"has shape {shape or 'none'}, the adapter's is {list(own.shape)}")
            self._updates[name] = own

    def _replace(self, name: str, tensor: torch.Tensor) -> None:
        names = self._names(name)
        if self.family.head not in self.shapes and {self.family.head, self.family.embed} & set(names):
            raise self._misfit(
                name, f"takes the place of one of two that are one in the base model; {_MERGE}"
            )
        for i, own in enumerate(names):
            part = tensor if len(names) == 1 else tensor.tensor_split(2)[i]
            if self.shapes.get(own) != tuple(part.shape):
                shape = list(self.shapes.get(own, ()))
                raise self._misfit(own, f"has shape {shape or 'none'}, the adapter's is {list(part.shape)}")
            self._whole[own] = part

    def _names(self, name: str) -> tuple[str, ...]:
        """The state-dict names for one of the adapter's; two where it is of gate and up in one."""
        for old, new in (("", ""), *WRAPPED):
            inner = new + name.removeprefix(old) if name.startswith(old) else name
            halves = self.family.halves(inner)
            if halves or inner in self.shapes or inner == self.family.head:
                return halves or (inner,)
            canonical = self.family.canonical(inner)
            if canonical in self.shapes:
                return (canonical,)
        raise self._misfit(
            name, f"is no tensor of the base model {self._base.path}; pass the adapter's own --base"
        )

    def _misfit(self, name: str, what: str) -> ModelError:
        return ModelError.at(self._file.path, f"tensor {name} {what}", tensor=name)


def adapter_config(directory: Path) -> dict[str, Any]:
    """The adapter's settings; ModelError for a kind that is not merged here."""
    config = read_json(directory / ADAPTER_CONFIG)
    kind = str(config.get("peft_type"))
    if kind.upper() != "LORA":
        raise ModelError.at(directory, f"an adapter of the kind {kind[:40]}, of which LORA is read; {_MERGE}")
    odd = next((key for key in _UNREAD if config.get(key)), None)
    if odd is not None:
        raise ModelError.at(directory, f"an adapter with {odd}, which is not read; {_MERGE}")
    return config


def _weights(directory: Path) -> Path:
    path = directory / _WEIGHTS
    if not path.is_file() and (directory / "adapter_model.bin").is_file():
        raise ModelError.at(
            directory / "adapter_model.bin",
            f"pickled weights are not read because they can run code; {_MERGE}",
        )
    return path


def _update(module: str, own: Mapping[str, torch.Tensor], config: Mapping[str, Any], path: Path) -> _Update:
    """The change that a module's tensors mean."""
    down, up, turned = own.get("lora_A"), own.get("lora_B"), bool(config.get("fan_in_fan_out"))
    if "lora_embedding_A" in own and "lora_embedding_B" in own:
        # An embedding [tokens, hidden] is a linear module the other way round.
        down, up, turned = own["lora_embedding_A"], own["lora_embedding_B"], True
    if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        raise ModelError.at(
            path, f"the two matrices of {module} are not both there, or do not fit", tensor=module
        )
    rank = _of_module(config.get("rank_pattern"), module, config.get("r", down.shape[0]))
    alpha = float(_of_module(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    if rank != down.shape[0]:
        raise ModelError.at(
            path,
            f"{ADAPTER_CONFIG} says rank {rank} for {module}, its matrices have {down.shape[0]}",
            tensor=module,
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return _Update(down, up, scale, own.get("lora_magnitude_vector"), turned)


def _of_module(pattern: Any, module: str, default: Any) -> Any:
    """What a pattern of settings says of a module, as peft matches names; the default where it says nothing."""
    for key, value in (pattern if isinstance(pattern, Mapping) else {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error:
            continue
    return default
