"""The GGUF file as a weight source: tensors under Hugging Face names and in Hugging Face layout."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.models.checkpoint import ModelSource, check_finite, main_dtype
from larql_duck.models.families import complete
from larql_duck.models.gguf_config import GgufConfig
from larql_duck.models.gguf_file import GgufFile, GgufTensor
from larql_duck.models.gguf_layout import POSITIONS, GgufLayout, parted
from larql_duck.models.gguf_tokenizer import tokenizer_files
from larql_duck.models.mapped import FLOATS
from larql_duck.models.source import MatrixRows

# What only steers llama.cpp, or is part of the config here.
_IGNORED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight")


class GgufSource(ModelSource):
    """A GGUF file as a weight source. Quantised tensors come dequantised as f32, and its dtype is then 'f16'."""

    def __init__(self, path: Path) -> None:
        self._file = file = GgufFile(path)
        parts = file.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise ModelError.at(
                path, f"one of {parts} parts of a model; join them with llama-gguf-split --merge"
            )
        reader = GgufConfig(file.metadata, path)
        config = complete(
            reader.build({n: t.shape for n, t in file.tensors.items()}, _rope_factors(file)), reader.family
        )
        self._layout = GgufLayout(reader.family, config)
        self._places = self._state_names(path)
        title = file.metadata.get("general.name")
        super().__init__(
            path=path,
            name=title if isinstance(title, str) and title.strip() else path.stem,
            config=config,
            family=reader.family,
            shapes={
                name: tuple(reversed(t.shape)) if self._layout.is_turned(name) else t.shape
                for name, t in self._places.items()
            },
            dtype=_dtype(file),
            origin=_origin(file),
            notices=_notices(file),
        )

    def _state_names(self, path: Path) -> dict[str, GgufTensor]:
        """State-dict name -> the file's tensor; ModelError for a tensor that the family has no place for."""
        out: dict[str, GgufTensor] = {}
        for stored, tensor in self._file.tensors.items():
            if _IGNORED.fullmatch(stored):
                continue
            name = self._layout.state_name(stored)
            if name is None:
                experts = "; mixture-of-experts models are not supported" if "_exps" in stored else ""
                raise ModelError.at(
                    path,
                    f"tensor {stored[:80]} has no place in a {self._layout.family.name} model{experts}",
                    tensor=stored,
                )
            out[name] = tensor
        return out

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
        plain = (
            len(place.shape) == 2 and self._layout.heads(name) is None and not self._layout.is_turned(name)
        )
        if place.kind.name in FLOATS or not plain:
            return self.tensor(name)
        return _QuantisedRows(self._file, place, self.path, name)

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._file.tensor(self._places[name].name)
        heads = self._layout.heads(name)
        if heads is not None:
            rows = len(tensor)
            if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
                raise self.error(
                    f"tensor {name} has {rows} rows, which {heads} heads do not share evenly", tensor=name
                )
            return parted(tensor, heads)
        offset = self._layout.norm_offset(name)
        if offset:
            return tensor - offset
        return tensor.t() if self._layout.is_turned(name) else tensor


class _QuantisedRows:
    """The rows of a quantised matrix, dequantised and checked as they are asked for."""

    def __init__(self, file: GgufFile, place: GgufTensor, path: Path, name: str) -> None:
        self.shape = place.shape
        self._file, self._stored, self._path, self._name = file, place.name, path, name

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> torch.Tensor:
        rows = self._file.rows(self._stored, at)
        check_finite(rows, self._path, self._name)
        return rows


def _dtype(file: GgufFile) -> str:
    """'f32', 'f16' or 'bf16' where the matrices are plain, 'f16' where any is quantised."""
    matrices = [t for t in file.tensors.values() if len(t.shape) > 1 and t.name != POSITIONS]
    if any(t.kind.name not in FLOATS for t in matrices):
        return "f16"
    return main_dtype((t.kind.name.lower(), t.n_bytes) for t in matrices)


def _rope_factors(file: GgufFile) -> list[float] | None:
    entry = file.tensors.get("rope_freqs.weight")
    if entry is None:
        return None
    if len(entry.shape) != 1 or entry.shape[0] > 1 << 16 or entry.kind.name not in FLOATS:
        raise ModelError.at(
            file.path,
            f"tensor {entry.name} has shape {list(entry.shape)} ({entry.kind.name}), expected a short "
            "list of frequencies",
            tensor=entry.name,
        )
    return [float(v) for v in file.tensor(entry.name).float()]


def _notices(file: GgufFile) -> list[str]:
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and not file.metadata.get("tokenizer.ggml.pre"):
        return [f"{file.path}: the file does not say how text is cut before merging; GPT-2's rule is used"]
    return []


def _origin(file: GgufFile) -> dict[str, str | None]:
    url = file.metadata.get("general.source.huggingface.repository") or file.metadata.get("general.repo_url")
    match = re.fullmatch(r"(?:https://huggingface\.co/)?([\w.-]+/[\w.-]+)/?", str(url))
    return {"huggingface_repo": match[1] if match else None}
