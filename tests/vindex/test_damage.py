"""A damaged vindex is one clear line when it is opened or verified, never an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from larql_duck.errors import LarqlError, LevelError, VindexError
from larql_duck.vindex.publish import seal_manifest
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.conftest import UPSTREAM


@pytest.fixture
def copy(tiny_vindex, tmp_path: Path) -> Path:
    """A copy of the tiny Llama vindex that a test may damage."""
    return Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "copy.vindex"))


def stored_files(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def refused(directory: Path) -> str:
    with pytest.raises(VindexError) as caught:
        Vindex.open(directory)
    text = str(caught.value)
    assert "\n" not in text
    return text


def edit_index(directory: Path, change) -> None:
    raw = json.loads((directory / "index.json").read_bytes())
    change(raw)
    data = seal_manifest(raw) if "larql_duck" in raw else json.dumps(raw).encode()
    (directory / "index.json").write_bytes(data)


def test_a_fresh_vindex_verifies(copy: Path) -> None:
    assert verify(copy) == []


def test_every_missing_truncated_or_grown_file_is_refused_at_open(copy: Path) -> None:
    for name in stored_files(copy):
        if name in ("model.duckdb", "index.json"):
            continue
        path, data = copy / name, (copy / name).read_bytes()
        for damaged in (None, data[:-1], data + b"\0"):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            assert path.name in refused(copy)
            path.write_bytes(data)
    Vindex.open(copy)


def test_verify_finds_a_flipped_bit_in_every_file(copy: Path) -> None:
    for name in stored_files(copy):
        path, data = copy / name, (copy / name).read_bytes()
        if name == "model.duckdb":
            continue
        for at in (0, len(data) // 2, len(data) - 1):
            flipped = bytearray(data)
            flipped[at] ^= 0x10
            path.write_bytes(flipped)
            problems = verify(copy)
            assert problems and path.name in problems[0], (name, at)
        path.write_bytes(data)
    assert verify(copy) == []


def test_verify_compares_every_row_of_model_duckdb(copy: Path) -> None:
    import duckdb

    with duckdb.connect(str(copy / "model.duckdb")) as con:
        con.execute("UPDATE lq.features SET c_score = c_score + 1 WHERE layer = 1 AND feature = 3")
    problems = verify(copy)
    assert len(problems) == 1 and "features" in problems[0]
    (copy / "model.duckdb").write_bytes(b"no database")
    assert "model.duckdb" in verify(copy)[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r: r["larql_duck"]["tables"]["facts"].update(file="../facts.parquet"), "../facts"),
        (
            lambda r: r["larql_duck"]["files"].update({"/etc/passwd": {"bytes": 1, "sha256": ""}}),
            "/etc/passwd",
        ),
        (lambda r: r["larql_duck"].update(schema_version="1.0"), "schema version 1.0"),
        (lambda r: r.update(version=3), "version"),
        (lambda r: r.update(num_layers=4), "layers"),
        (lambda r: r.update(num_layers=10**9), "num_layers"),
        (lambda r: r["layers"][1].update(offset=0), "layers[1]"),
        (lambda r: r["layers"][1].update(num_features=10**7), "layers[1]"),
        (lambda r: r.update(hidden_size="32"), "hidden_size"),
        (lambda r: r.update(dtype="f8"), "dtype"),
        (lambda r: r.update(extract_level="some"), "extract_level"),
        (lambda r: r.update(embed_scale=None), "embed_scale"),
        (lambda r: r.update(layer_bands={"syntax": [0, 99]}), "layer_bands"),
        (lambda r: r["larql_duck"]["tables"].pop("edges"), "edges"),
        (lambda r: r["larql_duck"]["files"]["up_weights.bin"].update(bytes=7), "up_weights.bin"),
    ],
)
def test_a_lying_manifest_names_the_field(copy: Path, change, word: str) -> None:
    edit_index(copy, change)
    assert word in refused(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 2}', "[" * 100_000])
def test_an_index_that_is_no_manifest(copy: Path, text: str) -> None:
    (copy / "index.json").write_text(text)
    assert "index.json" in refused(copy)


def test_any_edit_of_the_manifest_breaks_its_seal(copy: Path) -> None:
    path = copy / "index.json"
    path.write_bytes(path.read_bytes().replace(b'"down_top_k": 10', b'"down_top_k": 11'))
    assert "seal" in refused(copy)


def test_no_vindex_at_all_names_the_command_that_makes_one(tmp_path: Path) -> None:
    assert "larql-duck extract" in refused(tmp_path / "nothing")
    assert "larql-duck extract" in refused(tmp_path)


def test_level_error_names_level_and_command(tiny_model, tmp_path: Path) -> None:
    from larql_duck.extraction import extract

    vindex = Vindex.open(extract(tiny_model("llama"), tmp_path / "b.vindex", level="browse", probe=False))
    with pytest.raises(LevelError) as caught:
        vindex.require("inference", "INFER")
    assert (caught.value.needed, caught.value.have) == ("inference", "browse")
    assert "--level inference" in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_larql_directory_damaged_anywhere_is_refused_or_opens_whole(data, tmp_path_factory) -> None:
    """Truncated, grown or deleted files of LARQL's own directories: one line, no traceback, no half answer."""
    level = data.draw(st.sampled_from(["all-f32", "inference-f16", "browse-f16"]))
    directory = tmp_path_factory.mktemp("larql") / "x.vindex"
    shutil.copytree(UPSTREAM / f"{level}.vindex", directory)
    needed = [
        p for p in sorted(directory.iterdir()) if p.name not in ("tokenizer_config.json", "down_meta.bin")
    ]
    path = data.draw(st.sampled_from(needed))
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    path.unlink() if data.draw(st.booleans()) else path.write_bytes(content[:cut])
    if path.suffix == ".json" and path.exists() and path.name == "tokenizer.json":
        return  # its size is not known; reading it says what is wrong
    with pytest.raises(LarqlError) as caught:
        Vindex.open(directory)
    assert "\n" not in str(caught.value)
