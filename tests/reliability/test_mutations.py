"""A random byte changed in any kind of file: noticed, or read as what it says; never a traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck.catalog import SCHEMAS
from larql_duck.errors import LarqlError, PatchError, VindexError
from larql_duck.extraction.job import prepare
from larql_duck.extraction.options import Options
from larql_duck.inference.engine import Engine
from larql_duck.probing.packs import load_pack
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.reliability.test_damaged_bytes import ARRAYS
from tests.tiny import write_gguf

pytestmark = pytest.mark.extras
MUTATIONS = int(os.environ.get("LARQL_DUCK_MUTATIONS", "100"))


def mutated(*paths: Path, first: int | None = None) -> Iterator[bytes]:
    """The files in turn with another random byte changed (among the `first`); then it is again as it was."""
    rng = random.Random(paths[0].name)
    for i in range(max(MUTATIONS, len(paths))):
        path = paths[i % len(paths)]
        data = path.read_bytes()
        at = rng.randrange(min(first or len(data), len(data)))
        changed = data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]
        path.write_bytes(changed)
        yield changed
        path.write_bytes(data)


def line(work: Callable[[], object]) -> str | None:
    """The one line of our error that `work` ends with; None where it ends well."""
    try:
        work()
    except LarqlError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


@pytest.fixture
def copy(probed_vindex, tmp_path: Path) -> Path:
    return Path(shutil.copytree(probed_vindex("llama"), tmp_path / "copy.vindex"))


def ask(vindex: Path) -> None:
    with lq.connect(vindex) as s:
        s.lql('DESCRIBE "France"')
        s.lql("STATS")


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_by_whoever_loads_the_model(copy: Path, name: str) -> None:
    for _ in mutated(copy / f"{name}.bin"):
        with pytest.raises(VindexError, match=f"{name}.bin: its bytes changed"):
            Engine.load(Vindex.open(copy))
    Engine.load(Vindex.open(copy))


@pytest.mark.parametrize(
    "name", ["index.json", "tokenizer.json", "config.json", "weight_manifest.json", "down_meta.bin", "tables"]
)
def test_other_files_of_a_vindex_by_verify(copy: Path, name: str) -> None:
    paths = sorted((copy / name).glob("*.parquet")) if name == "tables" else [copy / name]
    # model_graph, a view, is a file as well.
    assert len(paths) == (len(SCHEMAS) + 1 if name == "tables" else 1)
    for _ in mutated(*paths):
        said = verify(copy)
        assert said and not any("\n" in text for text in said)
        line(lambda: ask(copy))
    assert verify(copy) == [] or name in ("index.json", "tables")


def test_the_database(copy: Path) -> None:
    for _ in mutated(copy / "model.duckdb"):
        assert not any("\n" in text for text in verify(copy))
        line(lambda: ask(copy))


def test_patches(copy: Path, tmp_path: Path) -> None:
    patch = tmp_path / "edits.vlp"
    with lq.connect(copy) as s:
        s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome")')
        s.lql(f'SAVE PATCH "{patch}"')
    whole = {k: v for k, v in json.loads(patch.read_bytes()).items() if k != "checksum"}
    for changed in mutated(patch):
        with lq.connect(copy) as s:
            try:
                s.lql(f'APPLY PATCH "{patch}"')
            except PatchError as error:
                assert "\n" not in str(error)
            else:
                content = json.loads(changed)
                assert {k: content[k] for k in whole} == whole


def test_packs(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        'name: own\nrelations:\n  capital:\n    templates: ["The capital of {} is"]\n    subjects: [France, Japan]\n'
    )
    for _ in mutated(path):
        line(lambda: load_pack(path))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_models(tiny_model, tmp_path: Path, name: str) -> None:
    model = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    for _ in mutated(model / name, first=2000):
        line(lambda: prepare(model, Options()))


def test_gguf(tiny_model, tmp_path: Path) -> None:
    path = write_gguf(tiny_model("llama"), tmp_path / "model.gguf")
    for _ in mutated(path, first=4000):
        line(lambda: prepare(path, Options()))
