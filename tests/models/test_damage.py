"""Truncated, flipped and lying files: a clear ModelError or a model that is whole, never anything else."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from larql_duck.errors import ModelError
from larql_duck.models.families import complete
from larql_duck.models.gguf_config import GgufConfig
from larql_duck.models.gguf_file import GgufFile
from larql_duck.models.gguf_tokenizer import tokenizer_files
from larql_duck.models.opening import open_model
from larql_duck.models.safetensors_file import SafetensorsFile
from larql_duck.models.tokenizer import load_tokenizer
from tests.models.conftest import Make

_FUZZ = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
_WORDS = [0, 1, 8, 9, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, 10**9]


def _damage(data: bytes, header: int) -> st.SearchStrategy[bytes]:
    """Bytes with one to three injuries, most of them in the header: cut, removed, flipped or overwritten."""
    place = st.one_of(st.integers(0, header - 1), st.integers(0, header - 1), st.integers(0, len(data) - 1))
    injury = st.tuples(st.sampled_from(["cut", "remove", "flip", "u32", "u64"]), place, st.integers(0, 255))

    def apply(injuries: list[tuple[str, int, int]]) -> bytes:
        out = bytearray(data)
        for kind, at, value in injuries:
            if kind == "cut":
                del out[at:]
            elif kind == "remove":
                del out[at : at + 1 + value % 24]
            elif kind == "flip" and at < len(out):
                out[at] ^= 1 << value % 8
            elif kind == "u32":
                out[at : at + 4] = struct.pack("<I", _WORDS[value % len(_WORDS)] & 0xFFFFFFFF)
            elif kind == "u64":
                out[at : at + 8] = struct.pack("<Q", _WORDS[value % len(_WORDS)])
        return bytes(out)

    return st.lists(injury, min_size=1, max_size=3).map(apply)


def _use(path: Path) -> None:
    """None: either the model opens, checks out and reads, or ModelError says why on one line, naming the file."""
    try:
        source = open_model(path)
        source.validate()
        for name in source.names():
            assert tuple(source.tensor(name).shape) == source.shape(name)
        load_tokenizer(source).encode("The capital of France")
    except ModelError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "quant"), [("llama", "Q4_1"), ("gemma3_text", "F32"), ("gpt2", "F16")])
def test_gguf(family: str, quant: str, tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    whole = tiny_gguf(family, quant)
    header = min(t.offset for t in GgufFile(whole).tensors.values())
    path = tmp_path / "m.gguf"

    @_FUZZ
    @given(data=_damage(whole.read_bytes(), header))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        _use(path)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_safetensors(family: str, copied: Make) -> None:
    directory = copied(family)
    path = directory / "model.safetensors"
    whole = path.read_bytes()

    @_FUZZ
    @given(data=_damage(whole, 8 + int.from_bytes(whole[:8], "little")))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        _use(directory)

    check()


_JUNK = st.one_of(
    st.none(), st.integers(-1, 2**64 - 1), st.floats(), st.booleans(), st.text(max_size=6),
    st.lists(st.integers(-1, 9), max_size=4), st.lists(st.text(max_size=3), max_size=4), st.lists(st.floats(), max_size=4),
    st.just([0] * 402), st.just(["a"] * 402), st.just([6] * 457), st.just([float("nan")] * 457),
)  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_gguf_metadata_of_any_kind(family: str, tiny_gguf: Callable[..., Path]) -> None:
    """Values of the wrong type, sign, size and length in every known key."""
    file = GgufFile(tiny_gguf(family))
    arch = file.metadata["general.architecture"]
    more = (
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.dimension_count",
        "attention.sliding_window_pattern",
    )
    ids = ("eot_token_id", "add_eos_token", "unknown_token_id", "add_space_prefix", "scores", "merges", "pre")
    keys = [*file.metadata, *(f"{arch}.{k}" for k in more), *(f"tokenizer.ggml.{k}" for k in ids)]

    @_FUZZ
    @given(changes=st.dictionaries(st.sampled_from(sorted(set(keys))), _JUNK, min_size=1, max_size=3))
    def check(changes: dict[str, Any]) -> None:
        metadata = {k: v for k, v in (file.metadata | changes).items() if v is not None}
        for attempt in (_config, _tokenizer):
            try:
                attempt(metadata)
            except ModelError as error:
                assert "\n" not in str(error)

    def _config(metadata: dict[str, Any]) -> None:
        reader = GgufConfig(metadata, "x.gguf")
        config = complete(reader.build({n: t.shape for n, t in file.tensors.items()}), reader.family)
        reader.family.expected(config)
        reader.family.activation(config)
        reader.family.norm_eps(config)

    def _tokenizer(metadata: dict[str, Any]) -> None:
        load_tokenizer(tokenizer_files(metadata, "x.gguf")).encode("The capital of France")

    check()


def _header(entries: dict[str, object], data: bytes = b"\0" * 16) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(**change: object) -> dict[str, object]:
    return {"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | change}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\1\0\0", "the header claims"),
        (struct.pack("<Q", 2**63) + b"{}", "the header claims 9223372036854775808 bytes"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "the header is not JSON"),
        (_header({"t": 1}), "is not described by an object"),
        (_header(_entry(dtype="F99")), "unknown dtype 'F99'"),
        (_header(_entry(shape=[-4])), r"has the shape \[-4\]"),
        (_header(_entry(shape=[2**61, 2**61])), "takes 16 bytes"),
        (_header(_entry(shape=[5])), "takes 16 bytes"),
        (_header(_entry(data_offsets=[0, 17])), "lies at"),
        (_header(_entry(data_offsets=[16, 0])), "lies at"),
        (_header(_entry(data_offsets=[0, 2**70])), "lies at"),
        (_header({**_entry(), "u": _entry()["t"]}), "overlaps the one before"),
        (_header(_entry(shape=[3], data_offsets=[4, 16])), "leaves a hole before it"),
        (_header(_entry(shape=[3], data_offsets=[0, 12])), "the tensors take 12 bytes, the file has 16"),
        (_header({"a\nb": _entry()["t"]}), "impossible name"),
        (struct.pack("<Q", 15) + b'{"a": 1,"a": 2}', "a name occurs twice"),
    ],
)
def test_every_lie_of_a_safetensors_header_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def _gguf(
    n_tensors: int = 0, n_fields: int = 0, body: bytes = b"", version: int = 3, magic: bytes = b"GGUF"
) -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_fields) + body + b"\0" * 64


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _tensor(name: bytes = b"t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "not a GGUF file"),
        (_gguf(magic=b"GGML"), "not a GGUF file"),
        (_gguf(version=1), "GGUF version 1 is not read"),
        (_gguf(version=3 << 24), "big-endian"),
        (_gguf(n_tensors=2**63), "do not fit into"),
        (_gguf(n_fields=2**64 - 1), "do not fit into"),
        (_gguf(n_fields=1, body=struct.pack("<Q", 2**40)), "takes 1099511627776 bytes"),
        (_gguf(n_fields=1, body=_text(b"k") + struct.pack("<I", 77)), "'k' has the unknown type 77"),
        (_gguf(n_fields=1, body=_text(b"k") + struct.pack("<IIQ", 9, 4, 2**61)), "'k' takes"),
        (
            _gguf(n_fields=1, body=_text(b"k") + struct.pack("<IIQ", 9, 8, 2**40)),
            "'k' claims 1099511627776 strings",
        ),
        (_gguf(n_fields=1, body=_text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 2**50)), "has a string 0 of"),
        (
            _gguf(n_fields=1, body=_text(b"k") + struct.pack("<IIQ", 9, 9, 1)),
            "an array of the unknown type 9",
        ),
        (_gguf(n_fields=1, body=_text(b"\xff\xff") + struct.pack("<I", 4)), "is not UTF-8"),
        (_gguf(n_fields=2, body=(_text(b"k") + struct.pack("<II", 4, 1)) * 2), "'k' occurs twice"),
        (_gguf(1, 1, _text(b"general.alignment") + struct.pack("<II", 4, 24) + _tensor()), "alignment is 24"),
        (_gguf(1, 0, _tensor(b"a\nb")), "impossible name"),
        (_gguf(1, 0, _text(b"t") + struct.pack("<I", 2**31)), "claims 2147483648 axes"),
        (_gguf(1, 0, _tensor(kind=999)), "has the unknown type 999"),
        (_gguf(1, 0, _tensor(dims=(2**62, 2**62))), "ends at byte"),
        (_gguf(1, 0, _tensor(dims=(0,))), "impossible for F32"),
        (_gguf(1, 0, _tensor(dims=(33,), kind=8)), "impossible for Q8_0"),
        (_gguf(1, 0, _tensor(offset=2**63)), "ends at byte"),
        (_gguf(2, 0, _tensor() + _tensor()), "t occurs twice"),
        (_gguf(2, 0, _tensor(b"a") + _tensor(b"b")), "tensor b overlaps a"),
    ],
)
def test_every_lie_of_a_gguf_header_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message) as caught:
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
