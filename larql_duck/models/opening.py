"""From what a user names to a model source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from larql_duck.errors import ModelError
from larql_duck.files import open_regular
from larql_duck.models.adapter import ADAPTER_CONFIG, AdaptedSource
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.hf import HfSource
from larql_duck.models.hub import download, parse_spec
from larql_duck.models.installed import PREFIX, model_in_package
from larql_duck.models.misplaced import check_there, other_format


def open_model(spec: str | Path, base: str | Path | None = None) -> ModelSource:
    """The model that the spec names: a Hugging Face directory, a .gguf file, hf://org/name[@revision], org/name or pkg:NAME.

    With a `base`, which is named likewise, the spec is that of a PEFT adapter, which is merged over it.
    Headers are read and checked, values are not. org/name is looked up on the Hub when no such path exists.
    ModelError names what is missing; `ModelSource.validate` then checks config and tensors against each other.
    """
    if base is not None:
        return _adapted(spec, base)
    text = str(spec)
    if not text.strip() or "\0" in text:
        raise ModelError("no model is named; pass a directory, a .gguf file or hf://org/name")
    path = model_in_package(text) if text.startswith(PREFIX) else Path(text).expanduser()
    if not text.startswith("hf://"):
        try:
            check_there(path)
            if path.is_dir():
                return HfSource(path)
            if path.exists():
                return _open_file(path)
        except OSError as error:  # a name too long for the file system, for instance
            raise ModelError(
                f"{text[:200]}: cannot be opened: {error.strerror or error}", path=path
            ) from None
    repository = None if isinstance(spec, Path) else parse_spec(text)
    if repository is None:
        raise ModelError(
            f"{text[:200]}: there is no such file or directory; pass a Hugging Face directory, a .gguf file "
            "or hf://org/name",
            path=path,
        )
    try:
        directory, origin = download(*repository)
    except ModelError as error:
        if text.startswith("hf://"):
            raise
        raise ModelError(f"{text}: there is no such directory here, and {error}", path=path) from None
    return HfSource(directory, name=repository[0], origin=origin)


def name_elsewhere(spec: str | Path, origin: Mapping[str, Any] | None = None) -> str:
    """The spec by which another machine opens the same model: a whole path, or the Hub's name with the revision of `origin`."""
    path = Path(spec).expanduser()
    if not str(spec).startswith(PREFIX) and path.exists():
        return str(path.absolute())
    repository, revision = ((origin or {}).get(name) for name in ("huggingface_repo", "revision"))
    return f"hf://{repository}@{revision}" if repository and revision else str(spec)


def _adapted(spec: str | Path, base: str | Path) -> ModelSource:
    text = str(spec)
    path = Path(text).expanduser()
    repository = None if path.exists() or isinstance(spec, Path) else parse_spec(text)
    directory = path if repository is None else download(*repository)[0]
    if not (directory / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{text[:200]}: has no {ADAPTER_CONFIG}, so it is no PEFT adapter; leave out --base for a whole model",
            path=path,
        )
    return AdaptedSource(directory, open_model(base))


def _open_file(path: Path) -> ModelSource:
    # The package gguf takes a while to import, and few models come as such a file.
    from larql_duck.models.gguf import GgufSource

    with open_regular(path) as handle:
        magic = handle.read(4)
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        return GgufSource(path)
    if path.suffix.lower() in {".safetensors", ".json"}:
        raise ModelError.at(path, f"pass the directory that it lies in: {path.absolute().parent}")
    if what := other_format(path.parent) if path.suffix.lower() in {".onnx", ".pth", ".pt", ".bin"} else None:
        raise ModelError.at(path, what)
    raise ModelError.at(path, "neither a GGUF file nor a Hugging Face directory")
