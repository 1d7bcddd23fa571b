"""Models split into several GGUF files: any part names the set, and a damaged set says which part it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from larql_duck.errors import ModelError
from larql_duck.models.gguf_file import GgufFile
from larql_duck.models.opening import open_model
from tests.models.conftest import Make

Gguf = Callable[..., Path]


def _split(whole: Path, folder: Path, parts: int = 3) -> list[Path]:
    """The files of the model in `parts`, as llama-gguf-split makes them: all metadata in the first, which holds no tensor."""
    file, paths = GgufFile(whole), []
    names = list(file.tensors)
    for number in range(parts):
        path = folder / f"tiny-{number + 1:05d}-of-{parts:05d}.gguf"
        writer = gguf.GGUFWriter(path, file.metadata["general.architecture"])
        for key, value in file.metadata.items() if number == 0 else ():
            if key != "general.architecture":
                writer.add_key_value(key, value, _type(value))
        writer.add_key_value("split.no", number, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.count", parts, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.tensors.count", len(names), gguf.GGUFValueType.INT32)
        for name in names[number - 1 :: parts - 1] if number else ():
            entry = file.tensors[name]
            writer.add_tensor(
                name, np.asarray(file._raw(entry)).reshape(*entry.shape[:-1], -1), raw_dtype=entry.kind
            )
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        paths.append(path)
    return paths


def _type(value: Any) -> gguf.GGUFValueType:
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    return gguf.GGUFValueType[kinds[type(value)]]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_any_part_names_the_set(part: int, tiny_gguf: Gguf, tmp_path: Path) -> None:
    paths = _split(tiny_gguf("llama", "Q8_0"), tmp_path)
    source, whole = open_model(paths[part]), open_model(tiny_gguf("llama", "Q8_0"))
    source.validate()
    assert source.name == "tiny llama" and source.dtype == whole.dtype and source.formats == whole.formats
    assert [p.name for p in source.weight_files()] == [p.name for p in paths[1:]]
    assert sorted(source.names()) == sorted(whole.names())
    for name in whole.names():
        assert torch.equal(source.tensor(name), whole.tensor(name)), name
    some = torch.tensor([3, 1])
    assert torch.equal(
        source.rows("model.embed_tokens.weight")[some], whole.rows("model.embed_tokens.weight")[some]
    )


def test_a_part_that_is_missing_or_another_is_named(tiny_gguf: Gguf, tmp_path: Path) -> None:
    paths = _split(tiny_gguf("llama"), tmp_path)
    shutil.copyfile(paths[1], paths[2])
    with pytest.raises(ModelError, match=r"tiny-00003-of-00003\.gguf: says that it is no part 3 of 3"):
        open_model(paths[0])
    paths[2].unlink()
    with pytest.raises(
        ModelError, match=r"tiny-00003-of-00003\.gguf: this part of 3 is missing; download it"
    ):
        open_model(paths[0])


def test_a_part_under_another_name_says_what_it_is_called(tiny_gguf: Gguf, tmp_path: Path) -> None:
    path = _split(tiny_gguf("llama"), tmp_path)[1].rename(tmp_path / "part.gguf")
    with pytest.raises(
        ModelError, match=r"one of 3 parts of a model, which are called NAME-00001-of-00003\.gguf"
    ):
        open_model(path)


def test_extraction_reads_all_parts(tiny_gguf: Gguf, tiny: Make, tmp_path: Path) -> None:
    from larql_duck.extraction import extract
    from larql_duck.vindex.store import Vindex

    paths = _split(tiny_gguf("llama"), tmp_path)
    out = extract(paths[0], tmp_path / "x.vindex", probe=False, in_basis="embedding")
    original = open_model(tiny("llama"))
    assert all(torch.equal(Vindex.open(out).tensor(n), original.tensor(n)) for n in original.names())
