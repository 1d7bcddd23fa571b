"""Hugging Face directories: layouts, shards, dtypes, checkpoints' historical names, and damage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from larql_duck.errors import ModelError
from larql_duck.inference.loading import skeleton
from larql_duck.models.opening import open_model
from tests.models.conftest import Make
from tests.tiny import TINY_FAMILIES, make_tiny


def _same(directory: Path, original: Path) -> None:
    source = open_model(directory)
    source.validate()
    expected = open_model(original)
    assert sorted(source.names()) == sorted(expected.names())
    for name in expected.names():
        assert torch.equal(source.tensor(name), expected.tensor(name)), name


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def _rename(directory: Path, change: Any) -> None:
    weights = {change(n): t for n, t in _weights(directory).items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_values_are_those_of_the_file(family: str, tiny: Make) -> None:
    source = open_model(tiny(family))
    stored = _weights(tiny(family))
    assert source.dtype == "f32"
    for name, tensor in stored.items():
        assert torch.equal(source.tensor(name), tensor), name


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_keeps_its_dtype(dtype: str, tmp_path: Path) -> None:
    directory = make_tiny("qwen3", tmp_path / "m", dtype=dtype)
    source = open_model(directory)
    stored = _weights(directory)
    assert source.dtype == dtype
    for name in source.names():
        tensor = source.tensor(name)
        assert tensor.dtype == {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        assert torch.equal(tensor, stored[name])


def test_tensors_are_mapped_not_copied(tiny: Make) -> None:
    source = open_model(tiny("llama"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert source.tensor(name).data_ptr() == source.tensor(name).data_ptr()
    before = source.tensor(name).clone()
    source.release()
    assert torch.equal(source.tensor(name), before)


def test_shards_are_read_through_their_index(copied: Make, tiny: Make) -> None:
    directory = copied("llama")
    _shard(directory)
    _same(directory, tiny("llama"))


def test_shards_without_an_index_are_found_by_their_names(copied: Make, tiny: Make) -> None:
    directory = copied("llama")
    _shard(directory)
    (directory / "model.safetensors.index.json").unlink()
    _same(directory, tiny("llama"))


def test_a_missing_shard_is_named(copied: Make) -> None:
    directory = copied("llama")
    _shard(directory)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors: this shard of 3 is missing"):
        open_model(directory)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors: this shard of 3 is missing"):
        open_model(directory)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..safetensors", 7, "x.bin"]
)
def test_an_index_cannot_point_outside(file: object, copied: Make) -> None:
    directory = copied("llama")
    _shard(directory)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = file
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"only names of files in this directory") as caught:
        open_model(directory)
    assert caught.value.tensor == "model.norm.weight"


def test_an_index_that_lies_about_a_tensor_is_refused(copied: Make) -> None:
    directory = copied("llama")
    _shard(directory)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00001.*model\.norm\.weight' is missing"):
        open_model(directory)


def _shard(directory: Path) -> None:
    weights = _weights(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        part = {n: weights[n] for n in names[i::3]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    weight_map = {n: weight_map[n] for n in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("gpt2", "transformer.", ""),
        ("llama", "model.", ""),
        ("gemma3", "language_model.model.", "model.language_model."),
    ],
)
def test_historical_prefixes_load(family: str, old: str, new: str, copied: Make, tiny: Make) -> None:
    directory = copied(family)
    _rename(directory, lambda n: n.replace(old, new, 1) if n.startswith(old) else n)
    _same(directory, tiny(family))


def test_gemma3_inside_its_image_model_is_the_text_model(tiny: Make) -> None:
    source, text = open_model(tiny("gemma3")), open_model(tiny("gemma3_text"))
    source.validate()
    assert source.config["model_type"] == "gemma3_text"
    assert sorted(source.names()) == sorted(text.names())
    assert torch.equal(source.tensor("model.norm.weight"), text.tensor("model.norm.weight"))


def test_mask_buffers_and_foreign_parts_are_left_out(copied: Make, tiny: Make) -> None:
    directory = copied("gpt2")
    weights = _weights(directory)
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, directory / "model.safetensors")
    _same(directory, tiny("gpt2"))


def test_a_stored_head_that_repeats_the_embedding_is_tied(copied: Make) -> None:
    directory = copied("gemma2")
    weights = _weights(directory)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, directory / "model.safetensors")
    source = open_model(directory)
    source.validate()
    assert "lm_head.weight" not in source.names() and source.config["tie_word_embeddings"] is True


def test_a_stored_head_that_differs_is_the_head(copied: Make) -> None:
    directory = copied("gemma2")
    weights = _weights(directory)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    save_file(weights, directory / "model.safetensors")
    source = open_model(directory)
    source.validate()
    assert "lm_head.weight" in source.names() and source.config["tie_word_embeddings"] is False


def test_an_untied_model_without_a_head_is_refused_and_a_silent_config_means_tied(copied: Make) -> None:
    directory = copied("llama")
    weights = _weights(directory)
    del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        open_model(directory).validate()
    path = directory / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config))
    source = open_model(directory)
    source.validate()
    assert source.config["tie_word_embeddings"] is True


# -- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"num_hidden_layers": 4}, r"says 4 layers \(num_hidden_layers\), the files have 3"),
        ("llama", {"num_hidden_layers": 2}, r"says 2 layers \(num_hidden_layers\), the files have 3"),
        (
            "llama",
            {"intermediate_size": 65},
            r"mlp\.gate_proj\.weight has shape \[64, 32\].*calls for \[65, 32\]",
        ),
        ("llama", {"num_attention_heads": 8}, r"q_proj\.weight has shape \[32, 32\].*calls for \[64, 32\]"),
        ("llama", {"num_key_value_heads": 4}, r"k_proj\.weight has shape \[16, 32\].*calls for \[32, 32\]"),
        ("llama", {"head_dim": 16}, r"q_proj\.weight has shape"),
        ("llama", {"vocab_size": 9}, r"embed_tokens\.weight has shape \[402, 32\].*calls for \[9, 32\]"),
        ("llama", {"attention_bias": True}, r"q_proj\.bias is missing"),
        ("gpt2", {"n_inner": 128}, r"c_fc\.weight has shape \[32, 64\].*calls for \[32, 128\]"),
        ("gpt2", {"n_positions": 65}, r"wpe\.weight has shape"),
        ("qwen3", {"head_dim": None, "hidden_size": 64}, r"has shape"),
    ],
)
def test_configs_that_do_not_fit_the_tensors(
    family: str, change: dict[str, object], message: str, copied: Make
) -> None:
    directory = copied(family)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message) as caught:
        open_model(directory).validate()
    assert caught.value.tensor and str(directory) in str(caught.value)


def test_missing_biases_and_norms_are_found(copied: Make) -> None:
    for family, name in (
        ("qwen2", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.2.self_attn.q_norm.weight"),
        ("gemma2", "model.layers.0.post_feedforward_layernorm.weight"),
        ("gpt2", "transformer.ln_f.bias"),
    ):
        directory = copied(family)
        weights = _weights(directory)
        del weights[name]
        save_file(weights, directory / "model.safetensors")
        with pytest.raises(ModelError) as caught:
            open_model(directory).validate()
        assert caught.value.tensor == name


def test_all_problems_are_counted_and_the_first_three_named(copied: Make) -> None:
    directory = copied("llama")
    weights = {n: t for n, t in _weights(directory).items() if "mlp" not in n}
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"layers\.0\.mlp\.gate.*layers\.0\.mlp\.up.*layers\.0\.mlp\.down.*and 6 more"
    ):
        open_model(directory).validate()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_refused_when_read(bad: float, dtype: torch.dtype, copied: Make) -> None:
    directory = copied("llama")
    weights = {n: t.to(dtype) for n, t in _weights(directory).items()}
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][7, 5] = bad
    save_file(weights, directory / "model.safetensors")
    source = open_model(directory)
    source.validate()
    assert source.tensor("model.norm.weight").shape == (32,)
    with pytest.raises(
        ModelError, match=r"down_proj\.weight has 1 values that are NaN or infinite"
    ) as caught:
        source.tensor(name)
    assert (caught.value.tensor, caught.value.path) == (name, directory / "model.safetensors")
    assert source.tensor(name, check=False).shape == (32, 64)


def test_large_finite_half_values_are_no_infinity(copied: Make) -> None:
    directory = copied("llama")
    weights = {n: torch.full_like(t, 65504.0).half() for n, t in _weights(directory).items()}
    save_file(weights, directory / "model.safetensors")
    source = open_model(directory)
    assert all(source.tensor(n).max() == 65504 for n in source.names())


def test_other_dtypes_are_refused_by_name(copied: Make) -> None:
    directory = copied("llama")
    weights = _weights(directory)
    weights["model.norm.weight"] = weights["model.norm.weight"].int()
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"model\.norm\.weight has dtype I32; floats of 64 to 8 bits are read"
    ):
        open_model(directory).tensor("model.norm.weight")


def test_pytorch_checkpoints_get_the_command(copied: Make) -> None:
    directory = copied("llama")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"only pytorch_model\.bin here: convert to safetensors with python -c"
    ) as caught:
        open_model(directory)
    assert "\n" not in str(caught.value)


def _lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def _dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("../blobs/gone")


@pytest.mark.parametrize(
    ("name", "becomes", "opened", "message"),
    [
        ("model.safetensors", _lfs, ".", "model.safetensors: a Git LFS pointer .*: run git lfs pull in"),
        ("tokenizer.json", _lfs, ".", "tokenizer.json: a Git LFS pointer"),
        ("config.json", _dangling, ".", "config.json: a link to ../blobs/gone, which is not there"),
        (
            "model.safetensors",
            _dangling,
            ".",
            "model.safetensors: a link to ../blobs/gone, which is not there",
        ),
        ("alone", _dangling, "alone", "alone: a link to ../blobs/gone"),
        ("model.gguf", _lfs, "model.gguf", "model.gguf: a Git LFS pointer"),
        ("onnx/model.onnx", Path.touch, ".", "this is an ONNX export"),
        ("consolidated.00.pth", Path.touch, ".", "these are pickled weights"),
        ("consolidated.00.pth", Path.touch, "consolidated.00.pth", "these are pickled weights"),
    ],
)
def test_what_stands_in_a_models_place_is_named(
    name: str, becomes: Callable[[Path], None], opened: str, message: str, copied: Make
) -> None:
    directory = copied("llama")
    if becomes is Path.touch:
        for file in ("config.json", "model.safetensors"):
            (directory / file).unlink()
    (directory / name).parent.mkdir(exist_ok=True)
    becomes(directory / name)
    with pytest.raises(ModelError, match=message):
        open_model(directory / opened)


def test_the_model_in_an_installed_package(copied: Make, tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "model_in_here"
    package.mkdir()
    (package / "__init__.py").write_text("import what_nobody_has_installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=r"holds no \.gguf file and no directory"):
        open_model("pkg:model_in_here")
    copied("llama").rename(package / "data")
    source = open_model("pkg:model-in-here")
    assert source.path == package / "data" and "model_in_here" not in sys.modules
    (package / "other.gguf").touch()
    with pytest.raises(ModelError, match="holds 2 models: pass one of them"):
        open_model("pkg:model_in_here")
    for name in ("pkg:no_such_package", "pkg:", "pkg:a.b"):
        with pytest.raises(ModelError, match="is installed here"):
            open_model(name)


def test_what_transformers_says_is_whole(copied: Make) -> None:
    directory = copied("llama")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"attention_dropout": "no number"}))
    with pytest.raises(ModelError, match=r"attention_dropout.*(float|str)") as caught:
        skeleton(open_model(directory))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["config.json"], "there is no config.json"),
        (["model.safetensors"], "there is no .*safetensors file"),
        (["tokenizer.json"], "tokenizer.json is missing"),
    ],
)
def test_missing_files_are_named(remove: list[str], message: str, copied: Make) -> None:
    directory = copied("llama")
    for name in remove:
        (directory / name).unlink()
    with pytest.raises(ModelError, match=message) as caught:
        open_model(directory).validate()
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


def test_things_that_are_no_model(tmp_path: Path, copied: Make) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"there is no config\.json"):
        open_model(empty)
    with pytest.raises(ModelError, match="no such file or directory"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no model is named"):
        open_model("")
    with pytest.raises(ModelError, match=r"cannot be opened|no such file"):
        open_model("x" * 5000)
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    with pytest.raises(ModelError, match="neither a GGUF file nor"):
        open_model(other)
    directory = copied("llama")
    with pytest.raises(ModelError, match="pass the directory"):
        open_model(directory / "model.safetensors")
    (directory / "config.json").write_text("[1, 2]")
    with pytest.raises(ModelError, match="must be a JSON object"):
        open_model(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a JSON file"):
        open_model(directory)


def test_a_tokenizer_of_another_model_is_refused(copied: Make, tiny: Make) -> None:
    directory = copied("llama")
    (directory / "tokenizer.json").write_bytes((tiny("gemma") / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match=r"token id 456, the embedding only 402 rows"):
        open_model(directory).validate()
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        open_model(directory).validate()
