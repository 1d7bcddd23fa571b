"""Quantised checkpoints: every number is what the format says, worked out apart; what is not read says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from larql_duck.errors import ModelError
from larql_duck.models.dequantised import Mxfp4, Plain
from larql_duck.models.hf import HfSource
from larql_duck.models.inspecting import facts_of
from larql_duck.models.opening import open_model
from larql_duck.models.quantised import assembled
from larql_duck.models.safetensors_file import SafetensorsFile
from tests import quantised
from tests.families import make_family
from tests.models.conftest import Make
from tests.quantised import Packer, quantise

_FP8 = {"quant_method": "fp8", "weight_block_size": [24, 12]}
_PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


@pytest.mark.parametrize(
    ("pack", "settings", "label"),
    [
        (quantised.fp8_blocks((16, 8)), {"quant_method": "fp8", "weight_block_size": [16, 8]}, "fp8"),
        (quantised.fp8_blocks((24, 12)), _FP8, "fp8"),
        (quantised.fp8_channels, {"quant_method": "compressed-tensors"}, "fp8"),
        (quantised.int8_groups(32), {"quant_method": "compressed-tensors"}, "int8"),
        (quantised.int8_groups(8), None, "int8"),
        (quantised.packed_ints(4, 16, False), _PACKED, "int4 (compressed-tensors)"),
        (quantised.packed_ints(4, 16, True), _PACKED, "int4 (compressed-tensors)"),
        (quantised.packed_ints(8, 32, True), _PACKED, "int8 (compressed-tensors)"),
        (quantised.gptq(4, 16), {"quant_method": "gptq", "bits": 4}, "gptq int4"),
        (quantised.gptq(4, 16, shuffled=True), {"quant_method": "gptq", "bits": 4}, "gptq int4"),
        (
            quantised.gptq(4, 8, version=2),
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
            "gptq int4",
        ),
        (quantised.gptq(8, 32), {"quant_method": "gptq", "bits": 8}, "gptq int8"),
        (quantised.gptq(2, 16), {"quant_method": "gptq", "bits": 2}, "gptq int2"),
        (quantised.awq(16), {"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq int4"),
        (quantised.nvfp4, {"quant_method": "modelopt"}, "nvfp4"),
        (quantised.compressed_nvfp4, {"quant_method": "compressed-tensors"}, "nvfp4"),
        (quantised.bnb_four_bits(False), {"quant_method": "bitsandbytes"}, "bitsandbytes nf4"),
        (quantised.bnb_four_bits(True), {"quant_method": "bitsandbytes"}, "bitsandbytes nf4"),
        (quantised.bnb_int8, {"quant_method": "bitsandbytes"}, "bitsandbytes int8"),
    ],
)
def test_numbers_are_those_of_the_format(
    pack: Packer, settings: dict[str, Any] | None, label: str, tiny: Make, tmp_path: Path
) -> None:
    meant = quantise(tiny("llama"), tmp_path / "m", pack, settings)
    source = HfSource(tmp_path / "m")
    source.validate()
    assert source.formats == {label: len(meant)}
    assert source.dtype == "f32" and "quantization_config" not in source.config
    assert facts_of(source)["quantised"] == f"{len(meant)} of {label}"
    for name, numbers in meant.items():
        got = source.tensor(name)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), numbers, rtol=1e-6, atol=1e-7, err_msg=name)
    plain = load_file(tiny("llama") / "model.safetensors")
    assert torch.equal(source.tensor("model.embed_tokens.weight"), plain["model.embed_tokens.weight"])


def test_blocks_of_scales_are_those_of_transformers(tiny: Make, tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    settings = {"quant_method": "fp8", "weight_block_size": [16, 8]}
    quantise(tiny("llama"), tmp_path / "m", quantised.fp8_blocks((16, 8)), settings)
    stored, source = load_file(tmp_path / "m" / "model.safetensors"), open_model(tmp_path / "m")
    for name in [n for n in stored if n.endswith("_proj.weight")]:
        theirs = Fp8Dequantize(None)._dequantize_one(stored[name], stored[f"{name}_scale_inv"], torch.float32)
        assert torch.equal(source.tensor(name), theirs), name


def test_mxfp4_experts_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (5, 6, 2, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(110, 130, (5, 6, 2), generator=generator).to(torch.uint8)
    base = "model.layers.0.mlp.experts.gate_up_proj"
    file = tmp_path / "x.safetensors"
    save_file({f"{base}_blocks": blocks, f"{base}_scales": scales, f"{base}_bias": torch.ones(5, 6)}, file)
    read = SafetensorsFile(file)
    parts = assembled({n: Plain(read, n) for n in read.entries}, {"quant_method": "mxfp4"})
    assert sorted(parts.tensors) == [base, f"{base}_bias"]
    experts = parts.tensors[base]
    assert isinstance(experts, Mxfp4) and experts.shape == (5, 64, 6)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(experts.tensor(), theirs)
    assert torch.equal(experts.rows(2, 4), theirs[2:4])


def test_a_mixture_in_mxfp4_is_that_of_the_numbers_that_transformers_makes_of_it(tmp_path: Path) -> None:
    """GPT-OSS as it is published, beside the same checkpoint with its experts dequantised by transformers."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    model = make_family("gpt_oss", tmp_path / "plain")
    packed = Path(shutil.copytree(model, tmp_path / "packed"))
    plain, bits = load_file(model / "model.safetensors"), {}
    for name, tensor in list(plain.items()):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            bits[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        groups = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*groups, 16), generator=generator).to(torch.uint8)
        scales = torch.randint(119, 123, groups, generator=generator).to(torch.uint8)
        bits |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    for directory, tensors in ((model, plain), (packed, bits)):
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}})
    )
    theirs, ours = open_model(model), open_model(packed)
    assert "6 of mxfp4" in " ".join(ours.notices)
    assert list(ours.names()) == list(theirs.names())
    for name in theirs.names():
        assert torch.equal(ours.tensor(name).float(), theirs.tensor(name).float()), name


def test_infer_equals_transformers_on_the_dequantised_model(tiny: Make, tmp_path: Path) -> None:
    """GPTQ with groups in any order: a wrong group or row order would show in every logit."""
    from transformers import AutoModelForCausalLM

    from larql_duck.inference.engine import Engine

    meant = quantise(
        tiny("llama"),
        tmp_path / "m",
        quantised.gptq(4, 16, shuffled=True),
        {"quant_method": "gptq", "bits": 4},
    )
    theirs = AutoModelForCausalLM.from_pretrained(tiny("llama")).eval()
    theirs.load_state_dict({n: torch.from_numpy(w) for n, w in meant.items()}, strict=False)
    source = open_model(tmp_path / "m")
    source.validate()
    ours = Engine.load(source)
    prompt = "The capital of France is"
    ids = torch.tensor([ours.tokenizer.encode(prompt)])
    with torch.no_grad():
        expected = theirs(ids).logits[0, -1]
    torch.testing.assert_close(torch.as_tensor(ours.logits([prompt]))[0], expected, rtol=1e-4, atol=1e-4)


def test_a_fused_matrix_may_be_quantised(tmp_path: Path) -> None:
    """phi3 keeps gate and up in one matrix: its halves are cut after it is dequantised."""
    from tests.families import make_family

    directory = make_family("phi3", tmp_path / "phi3")
    meant = quantise(directory, tmp_path / "m", quantised.fp8_blocks((16, 8)), _FP8)
    source = open_model(tmp_path / "m")
    source.validate()
    fused = meant["model.layers.0.mlp.gate_up_proj.weight"]
    gate, up = (source.tensor(f"model.layers.0.mlp.gate_up_proj.{half}.weight") for half in ("gate", "up"))
    np.testing.assert_array_equal(np.concatenate([gate, up]), fused)


def test_words_of_quantisation_beside_full_precision_are_ignored(copied: Make, tiny: Make) -> None:
    directory = copied("llama")
    _say(directory, {"quant_method": "gptq", "bits": 4})
    source = open_model(directory)
    source.validate()
    assert "quantization_config" not in source.config
    assert any(
        "speaks of quantisation (gptq), the weights are in full precision" in n for n in source.notices
    )
    original = open_model(tiny("llama"))
    assert all(torch.equal(source.tensor(n), original.tensor(n)) for n in original.names())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "aqlm",
            r"mlp\.up_proj\.weight \(I32\) is quantised by the method 'aqlm'.*its package aqlm, or use its GGUF",
        ),
        ("hqq", "its package hqq"),
        ("nobodys", "the package that wrote it"),
    ],
)
def test_other_methods_name_their_package(method: str, words: str, copied: Make) -> None:
    directory = copied("llama")
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 32, dtype=torch.int32)
    save_file(weights, directory / "model.safetensors")
    _say(directory, {"quant_method": method})
    with pytest.raises(ModelError, match=words) as caught:
        open_model(directory)
    assert str(directory) in str(caught.value)


def test_weights_that_are_rounded_in_use_are_refused(copied: Make) -> None:
    directory = copied("llama")
    _say(directory, {"quant_method": "bitnet"})
    with pytest.raises(ModelError, match="rounded to three values whenever they are used"):
        open_model(directory)


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "gptq", "bits": 3}, {"quant_method": "awq", "bits": 4, "version": "gemv"}, {}],
)
def test_packings_that_are_not_read_say_which_are(
    settings: dict[str, Any], tiny: Make, tmp_path: Path
) -> None:
    quantise(tiny("llama"), tmp_path / "m", quantised.gptq(4, 16), settings)
    with pytest.raises(ModelError, match=r"read are gptq with 2, 4 or 8 bits and awq \(gemm\) with 4"):
        open_model(tmp_path / "m")


def test_scales_that_do_not_fit_are_named(tiny: Make, tmp_path: Path) -> None:
    quantise(tiny("llama"), tmp_path / "m", quantised.fp8_blocks((16, 8)), _FP8)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    stored[name] = torch.ones(3, 5)
    save_file(stored, tmp_path / "m" / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"up_proj\.weight_scale_inv of shape \[3, 5\] .*does not fit"
    ) as caught:
        open_model(tmp_path / "m")
    assert caught.value.tensor == name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_floats_are_read(dtype: torch.dtype, copied: Make) -> None:
    directory = copied("llama")
    weights = {n: t.to(dtype) for n, t in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors")
    source = open_model(directory)
    source.validate()
    assert source.dtype == ("f32" if dtype == torch.float64 else "bf16")
    for name, tensor in weights.items():
        assert torch.equal(source.tensor(name).double(), tensor.float().double()), name


def _say(directory: Path, settings: dict[str, Any]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))


@pytest.mark.extras
@pytest.mark.parametrize(
    ("pack", "compressor", "arguments"),
    [
        (
            quantised.packed_ints(4, 16, True),
            "pack-quantized",
            {"num_bits": 4, "symmetric": False, "group_size": 16},
        ),
        (
            quantised.packed_ints(8, 32, False),
            "pack-quantized",
            {"num_bits": 8, "symmetric": True, "group_size": 32},
        ),
        (
            quantised.compressed_nvfp4,
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "group_size": 16},
        ),
    ],
)
def test_compressed_tensors_decompresses_to_the_same(
    pack: Packer, compressor: str, arguments: dict[str, Any], tiny: Make, tmp_path: Path
) -> None:
    library = pytest.importorskip(
        "compressed_tensors.compressors", reason="needs the package compressed-tensors"
    )
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "tensor_group" if "nvfp4" in compressor else "group"
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(strategy=strategy, **arguments))
    meant = quantise(tiny("llama"), tmp_path / "m", pack, {"quant_method": "compressed-tensors"})
    stored, source = load_file(tmp_path / "m" / "model.safetensors"), open_model(tmp_path / "m")
    for name in meant:
        base = name.removesuffix("weight")
        own = {n.removeprefix(base): t for n, t in stored.items() if n.startswith(base)}
        theirs = library.BaseCompressor.get_value_from_registry(compressor).decompress(own, scheme)["weight"]
        torch.testing.assert_close(source.tensor(name), theirs.float(), rtol=1e-2, atol=1e-3)
