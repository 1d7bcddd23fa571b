"""The Hugging Face directory: config.json, safetensors files (one or shards with an index) and tokenizer files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.files import read_regular
from larql_duck.models.checkpoint import ModelSource, main_dtype
from larql_duck.models.converted_tokenizer import converted_tokenizer
from larql_duck.models.dequantised import Plain, Stored
from larql_duck.models.families import complete, text_config
from larql_duck.models.mapped import READABLE
from larql_duck.models.misplaced import check_there, other_format
from larql_duck.models.pieces import EmptyPlace, JoinedPlace, TensorPlace
from larql_duck.models.quantised import Assembled, assembled
from larql_duck.models.reading import read_names
from larql_duck.models.safetensors_file import SafetensorsFile
from larql_duck.models.source import MatrixRows
from larql_duck.models.tokenizer import TOKENIZER_FILES

_CONFIG = "config.json"
_FILES = (_CONFIG, *TOKENIZER_FILES, "chat_template.json")
_INDEX = "model.safetensors.index.json"
# Files of other layouts that may lie beside the model's own: adapters, and Mistral's original.
_OTHERS = re.compile(r"(adapter|consolidated).*\.safetensors")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PLAIN = re.compile(r"(?!\.\.)[^/\\\0]+\.safetensors")
_CACHED = re.compile(r"models--(.+?)--(.+)")


class HfSource(ModelSource):
    """A Hugging Face directory as a weight source."""

    def __init__(
        self, directory: Path, *, name: str | None = None, origin: dict[str, str | None] | None = None
    ):
        for path in [directory / name for name in (*_FILES, _INDEX)] + sorted(
            directory.glob("*.safetensors")
        ):
            check_there(path)
        if not (directory / _CONFIG).exists() and (what := other_format(directory)):
            raise ModelError.at(directory, what)
        whole = read_json(directory / _CONFIG)
        files = [SafetensorsFile(directory / f) for f in _weight_files(directory)]
        config = text_config(whole)
        origin = origin or _cache_origin(directory)
        settings = _quantisation(whole, config)
        try:
            parts = assembled(_stored(files), settings)
            # In the order of the layers, which the order of names as text is not.
            shapes_of_stored = {key: parts.tensors[key].shape for key in sorted(parts.tensors, key=_natural)}
            reading = read_names(config, shapes_of_stored)
        except ModelError as error:
            if error.path is not None:
                raise
            raise ModelError.at(directory, f"{error}", tensor=error.tensor) from None
        family = reading.family
        self._places: dict[str, TensorPlace] = {
            name: _Place(parts.tensors[key], half) for name, (key, half) in reading.places.items()
        }
        self._places |= {name: pieces.of(parts.tensors) for name, pieces in reading.pieces.items()}
        for name, shape in {} if family.measured is None else family.measured.shapes.items():
            if 0 in shape:
                self._places[name] = EmptyPlace(files[0].path, shape, torch.float16)
        shapes = {name: place.shape for name, place in self._places.items()}
        super().__init__(
            path=directory,
            name=name or origin.get("huggingface_repo") or directory.resolve().name,
            config=complete(config, family),
            family=family,
            shapes=shapes,
            dtype=_dtype(parts),
            origin=origin,
            notices=[*reading.notices, *parts.notices, *_stray(directory, files)],
            formats=parts.formats,
        )
        self._files = files
        if self.formats:
            self._drop_idle_biases()
        self._settle_head(config)

    def _read(self, name: str) -> torch.Tensor:
        return self._places[name].tensor()

    def rows(self, name: str) -> MatrixRows:
        """A matrix's rows, read piece by piece where the files hold it so; checked by whoever writes them."""
        place = self._places[name]
        return place if isinstance(place, JoinedPlace) else self.tensor(name)

    def _file_of(self, name: str) -> Path:
        return self._places[name].path

    def release(self) -> None:
        """Drop the pages that reading has made resident."""
        for file in self._files:
            file.release()

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of tokenizer.json and its companions, where the directory has them; tokenizer.json is made
        of a tokenizer in another form."""
        paths = [self.path / name for name in _FILES if name != _CONFIG]
        try:
            files = {path.name: path.read_bytes() for path in paths if path.is_file()}
        except OSError as error:
            raise ModelError.at(error.filename or self.path, f"cannot be read: {error}") from None
        if "tokenizer.json" not in files and self._converted_tokenizer is not None:
            files["tokenizer.json"] = self._converted_tokenizer
        return files

    @cached_property
    def _converted_tokenizer(self) -> bytes | None:
        return converted_tokenizer(self.path)

    def _drop_idle_biases(self) -> None:
        """Leave out biases of zeros that packers write for every matrix, where the model has none."""
        try:
            wanted = self.family.expected(self.config)
        except ModelError:
            return  # `validate` says what is wrong
        odd = [n for n in self.shapes if n.endswith(".bias") and n not in wanted and len(self.shapes[n]) == 1]
        for name in odd:
            if not self._places[name].tensor().any():
                del self.shapes[name]

    def _settle_head(self, config: Mapping[str, Any]) -> None:
        """Makes config and names agree on tying: a stored head that repeats the embedding is dropped, one that
        differs means untied whatever the config says, and a silent config without a head means tied."""
        family = self.family
        if family.head not in self.shapes:
            if "tie_word_embeddings" not in config and family.ties(config) is None:
                self.config["tie_word_embeddings"] = True
                self.notices.append(
                    f"no {family.head} is stored and config.json says nothing of it: the embedding is the output head"
                )
            return
        tied = family.ties(config) is not False and self._same_as_embedding()
        if tied:
            del self.shapes[family.head]
        elif family.ties(config) is True:
            self.notices.append(
                f"config.json says tie_word_embeddings, but {family.head} is not {family.embed}: the two are kept apart"
            )
        self.config["tie_word_embeddings"] = tied

    def _same_as_embedding(self) -> bool:
        head, embed = self._places[self.family.head], self._places.get(self.family.embed)
        if embed is None or head.shape != embed.shape:
            return False
        a, b = head.tensor(), embed.tensor()
        # Rows first: heads that differ mostly do so at once, and pieces keep the comparison's memory small.
        return a.dtype == b.dtype and all(
            torch.equal(x, y) for x, y in zip(a.split(4096), b.split(4096), strict=True)
        )


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: what is stored, and which half of its rows it is (None: all of them)."""

    stored: Stored
    half: int | None

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.stored.shape
        return shape if self.half is None or not shape else (shape[0] // 2, *shape[1:])

    def tensor(self) -> torch.Tensor:
        whole = self.stored.tensor()
        return whole if self.half is None else whole.tensor_split(2)[self.half]


def _stored(files: list[SafetensorsFile]) -> dict[str, Plain]:
    """Name -> tensor in the files; ModelError for one that two of them hold."""
    stored: dict[str, Plain] = {}
    for file in files:
        for key in file.entries:
            if key in stored:
                raise ModelError.at(
                    file.path,
                    f"tensor {key} is in {stored[key].path.name} as well; keep one of the files",
                    tensor=key,
                )
            stored[key] = Plain(file, key)
    return stored


def _quantisation(whole: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The config's quantization_config, taken out of `config`: what files hold says how they are read."""
    keys = ("quantization_config", "compression_config")
    said = [values.get(key) for values in (whole, config) for key in keys]
    for key in keys:
        config.pop(key, None)
    found: Any = next((value for value in said if value), {})
    return found if isinstance(found, dict) else {"quant_method": found}


def _dtype(parts: Assembled) -> str:
    """The dtype of most numbers that are not quantised, as transformers dequantises to it."""
    plain = [t for t in parts.tensors.values() if isinstance(t, Plain) and t.dtype in READABLE]
    short = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    return main_dtype((short[READABLE[t.dtype]], math.prod(t.shape)) for t in plain)


def _stray(directory: Path, files: list[SafetensorsFile]) -> list[str]:
    """That model.safetensors lies beside an index that does not name it."""
    alone = "model.safetensors"
    if not (directory / _INDEX).is_file() or not (directory / alone).is_file():
        return []
    if any(file.path.name == alone for file in files):
        return []
    return [f"{alone} is not read: {_INDEX} names other files, and they count"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelError when it is missing or anything else."""
    try:
        value = json.loads(read_regular(path))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent}: there is no {path.name}; a model is a Hugging Face directory (config.json, tokenizer.json, "
            "*.safetensors), a .gguf file or hf://org/name",
            path=path,
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError.at(path, f"not a JSON file: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise ModelError.at(path, "must be a JSON object")
    return value


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name[:512])]


# -- which files ---------------------------------------------------------------------------------------------


def _weight_files(directory: Path) -> list[str]:
    """Names of the safetensors files that make up the model; ModelError naming what is missing."""
    if (directory / _INDEX).is_file():
        return _indexed(directory)
    files = sorted(p.name for p in directory.glob("*.safetensors") if not _OTHERS.fullmatch(p.name))
    if "model.safetensors" in files:
        return ["model.safetensors"]
    if not files:
        what = "there is no *.safetensors file; download the model's weights"
        raise ModelError.at(directory, other_format(directory) or what)
    for name in files:
        shard = _SHARD.fullmatch(name)
        if shard:
            wanted = [f"{shard[1]}-{i:05d}-of-{shard[3]}.safetensors" for i in range(1, int(shard[3]) + 1)]
            _require(directory, wanted)
            return wanted
    if len(files) > 1:
        raise ModelError.at(
            directory,
            f"several safetensors files ({', '.join(files[:3])}) and no {_INDEX} that says which belong "
            "to the model; keep one, or add the index",
        )
    return files


def _indexed(directory: Path) -> list[str]:
    path = directory / _INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError.at(path, "weight_map is missing; get a complete copy of the model")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _PLAIN.fullmatch(file):
            raise ModelError.at(
                path,
                f"tensor {tensor!r:.80} is said to be in {file!r:.80}; only names of files in this directory are read",
                tensor=tensor,
            )
    files = sorted(set(weight_map.values()))
    _require(directory, files)
    headers = {f: SafetensorsFile(directory / f).entries for f in files}
    for tensor, file in weight_map.items():
        if tensor not in headers[file]:
            raise ModelError.at(
                directory / file,
                f"tensor {tensor!r:.80} is missing, though {_INDEX} says it is here; "
                "get a complete copy of the model",
                tensor=tensor,
            )
    return files


def _require(directory: Path, files: list[str]) -> None:
    missing = [f for f in files if not (directory / f).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError.at(
            directory / missing[0], f"this shard{more} of {len(files)} is missing; download it"
        )


def _cache_origin(directory: Path) -> dict[str, str | None]:
    """Repository and revision of a snapshot directory inside the Hub's local cache, else an empty dict."""
    resolved = directory.absolute()
    match = _CACHED.fullmatch(resolved.parent.parent.name)
    if resolved.parent.name == "snapshots" and match:
        return {"huggingface_repo": f"{match[1]}/{match[2]}", "revision": resolved.name}
    return {}
