"""The GGUF file, or the parts of one, as a weight source: tensors under Hugging Face names and in Hugging Face layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.models.checkpoint import ModelSource, check_finite, main_dtype
from larql_duck.models.families import complete
from larql_duck.models.finding import find_family
from larql_duck.models.gguf_config import GgufConfig
from larql_duck.models.gguf_families import GGUF_FAMILIES, FoundConfig, FoundLayout, family_of_metadata
from larql_duck.models.gguf_file import GgufTensor
from larql_duck.models.gguf_layout import POSITIONS, GgufLayout
from larql_duck.models.gguf_parts import GgufParts
from larql_duck.models.gguf_tokenizer import tokenizer_files
from larql_duck.models.mapped import FLOATS
from larql_duck.models.source import MatrixRows

# What only steers llama.cpp, or is part of the config here.
_IGNORED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight")


class GgufSource(ModelSource):
    """A GGUF file (or any part of a split one) as a weight source. Quantised tensors come dequantised as f32, and its dtype is then 'f16'."""

    def __init__(self, path: Path) -> None:
        self._file = file = GgufParts(path)
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        config, self._layout = _layout(file, shapes)
        family = self._layout.family
        self._places = self._state_names(path)
        title = file.metadata.get("general.name")
        super().__init__(
            path=path,
            name=title if isinstance(title, str) and title.strip() else path.stem,
            config=config,
            family=family,
            shapes={name: self._shape(name) for name in self._places},
            dtype=_dtype(file),
            origin=_origin(file),
            notices=_notices(file),
            formats=Counter(t.kind.name for t in file.tensors.values() if t.kind.name not in FLOATS),
        )

    def _state_names(self, path: Path) -> dict[str, _Place]:
        """State-dict name -> where it is; ModelError for a tensor that the family has no place for."""
        out: dict[str, _Place] = {}
        family = self._layout.family
        for stored, tensor in self._file.tensors.items():
            if _IGNORED.fullmatch(stored):
                continue
            name = self._layout.state_name(stored)
            if name is None:
                experts = "; mixture-of-experts models are not supported" if "_exps" in stored else ""
                raise ModelError.at(
                    path,
                    f"tensor {stored[:80]} has no place in a {family.name} model{experts}",
                    tensor=stored,
                )
            halves = family.halves(name)
            if len(halves) > 1:
                out |= {half: _Place(tensor, name, i) for i, half in enumerate(halves)}
            else:
                out[halves[0] if halves else name] = _Place(tensor, name)
        return out

    def _shape(self, name: str) -> tuple[int, ...]:
        place = self._places[name]
        shape = place.tensor.shape
        if self._layout.is_turned(place.name):
            shape = tuple(reversed(shape))
        return shape if place.half is None else (shape[0] // 2, *shape[1:])

    def _file_of(self, name: str) -> Path:
        return self._file.path_of(self._places[name].tensor.name)

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the tokenizer files, rebuilt from the metadata."""
        return dict(self._tokenizer_files)

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        # A vocabulary takes a quarter of a second to rebuild, and several stages ask for it.
        return tokenizer_files(self._file.metadata, self.path)

    def release(self) -> None:
        """Drop the pages that reading has made resident."""
        self._file.release()

    def rows(self, name: str) -> MatrixRows:
        """A matrix's rows; of a quantised one those are dequantised that are asked for."""
        self.shape(name)
        place = self._places[name]
        plain = len(place.tensor.shape) == 2 and place.half is None and self._layout.is_plain(place.name)
        if place.tensor.kind.name in FLOATS or not plain:
            return self.tensor(name)
        return _QuantisedRows(self._file, place.tensor, self.path, name)

    def _read(self, name: str) -> torch.Tensor:
        place = self._places[name]
        try:
            tensor = self._layout.as_state(self._file.tensor(place.tensor.name), place.name)
        except ModelError as error:
            if error.path is not None:
                raise
            raise self.error(f"{error}", tensor=error.tensor) from None
        return tensor if place.half is None else tensor.tensor_split(2)[place.half]


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: the file's, its name as transformers has it, and which half of its rows (None: all of them)."""

    tensor: GgufTensor
    name: str
    half: int | None = None


def _layout(
    file: GgufParts, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], GgufLayout | FoundLayout]:
    """The config, and where the tensors of its model are."""
    factors = _rope_factors(file)
    if (own := family_of_metadata(file.metadata)) is not None:
        config = FoundConfig(own, file.metadata, file.path).build(shapes, factors)
        try:
            family, _ = find_family(config)
        except ModelError as error:
            raise ModelError.at(file.path, f"{error}") from None
        return complete(config, family), FoundLayout(family, config)
    reader = GgufConfig(file.metadata, file.path, {own.arch for own in GGUF_FAMILIES.values()})
    config = complete(reader.build(shapes, factors), reader.family)
    return config, GgufLayout(reader.family, config)


class _QuantisedRows:
    """The rows of a quantised matrix, dequantised and checked as they are asked for."""

    def __init__(self, file: GgufParts, place: GgufTensor, path: Path, name: str) -> None:
        self.shape = place.shape
        self._file, self._stored, self._path, self._name = file, place.name, path, name

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> torch.Tensor:
        rows = self._file.rows(self._stored, at)
        check_finite(rows, self._path, self._name)
        return rows


def _dtype(file: GgufParts) -> str:
    """'f32', 'f16' or 'bf16' where the matrices are plain, 'f16' where any is quantised."""
    matrices = [t for t in file.tensors.values() if len(t.shape) > 1 and t.name != POSITIONS]
    if any(t.kind.name not in FLOATS for t in matrices):
        return "f16"
    return main_dtype((t.kind.name.lower(), t.n_bytes) for t in matrices)


def _rope_factors(file: GgufParts) -> list[float] | None:
    entry = file.tensors.get("rope_freqs.weight")
    if entry is None:
        return None
    if len(entry.shape) != 1 or entry.shape[0] > 1 << 16 or entry.kind.name not in FLOATS:
        raise ModelError.at(
            file.path_of(entry.name),
            f"tensor {entry.name} has shape {list(entry.shape)} ({entry.kind.name}), expected a short "
            "list of frequencies",
            tensor=entry.name,
        )
    return [float(v) for v in file.tensor(entry.name).float()]


def _notices(file: GgufParts) -> list[str]:
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and not file.metadata.get("tokenizer.ggml.pre"):
        return [f"{file.path}: the file does not say how text is cut before merging; GPT-2's rule is used"]
    return []


def _origin(file: GgufParts) -> dict[str, str | None]:
    url = file.metadata.get("general.source.huggingface.repository") or file.metadata.get("general.repo_url")
    match = re.fullmatch(r"(?:https://huggingface\.co/)?([\w.-]+/[\w.-]+)/?", str(url))
    return {"huggingface_repo": match[1] if match else None}
