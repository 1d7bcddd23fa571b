"""The parts of a model that was split into several GGUF files, as one: any of them names the set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.models.gguf_file import GgufFile, GgufTensor

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MOST = 10_000


class GgufParts:
    """A model's GGUF files: `metadata` of the first, `tensors` of all. One file is a set of one part."""

    def __init__(self, path: Path) -> None:
        named = GgufFile(path)
        self.path = path
        self._files = [named] if _count(named) <= 1 else _set_of(named)
        self.metadata = self._files[0].metadata
        self._places: dict[str, GgufFile] = {}
        for file in self._files:
            for name in file.tensors:
                if name in self._places:
                    raise ModelError.at(
                        file.path, f"tensor {name} is in {self._places[name].path.name} as well", tensor=name
                    )
                self._places[name] = file
        self.tensors: dict[str, GgufTensor] = {n: f.tensors[n] for n, f in self._places.items()}
        stated = self.metadata.get("split.tensors.count")
        if len(self._files) > 1 and isinstance(stated, int) and stated != len(self.tensors):
            raise ModelError.at(
                path,
                f"the parts hold {len(self.tensors)} tensors, they say {stated}; get complete copies of all of them",
            )

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of the parts."""
        return [file.path for file in self._files]

    def path_of(self, name: str) -> Path:
        """The file that holds the named tensor."""
        return self._places[name].path

    def tensor(self, name: str) -> torch.Tensor:
        """The named tensor, as `GgufFile.tensor` gives it."""
        return self._places[name].tensor(name)

    def rows(self, name: str, at: Any) -> torch.Tensor:
        """Rows of a quantised matrix, as `GgufFile.rows` gives them."""
        return self._places[name].rows(name, at)

    def release(self) -> None:
        """Drop the pages that reading has made resident."""
        for file in self._files:
            file.release()


def _count(file: GgufFile) -> int:
    count = file.metadata.get("split.count", 0)
    return count if isinstance(count, int) else 0


def _set_of(named: GgufFile) -> list[GgufFile]:
    """All parts of the model that the named file is one of; ModelError that names the first one missing."""
    count, match = _count(named), _PART.fullmatch(named.path.name)
    if match is None or int(match[3]) != count or count > _MOST:
        raise ModelError.at(
            named.path,
            f"one of {count} parts of a model, which are called NAME-00001-of-{count:05d}.gguf and so on; give it that "
            "name again, or join them with llama-gguf-split --merge",
        )
    files = []
    for number in range(count):
        path = named.path.with_name(f"{match[1]}-{number + 1:05d}-of-{count:05d}.gguf")
        if not path.is_file():
            raise ModelError.at(path, f"this part of {count} is missing; download it")
        file = named if path == named.path else GgufFile(path)
        if _count(file) != count or file.metadata.get("split.no") != number:
            raise ModelError.at(path, f"says that it is no part {number + 1} of {count}; download it again")
        files.append(file)
    return files
