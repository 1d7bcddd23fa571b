"""PEFT adapters: what is read is the base model computing with the adapter beside it, and misfits are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from larql_duck.cli.app import run
from larql_duck.errors import ModelError
from larql_duck.inference.engine import Engine
from larql_duck.models.opening import open_model
from tests.families import make_family
from tests.models.conftest import Make
from tests.tiny import write_gguf

PROMPT = "The capital of France is"


def _adapter(directory: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": "org/base"} | settings
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {f"base_model.model.{n}": t.contiguous() for n, t in tensors.items()},
        directory / "adapter_model.safetensors",
    )
    return directory


def _low_rank(modules: dict[str, tuple[int, int]], rank: int = 4) -> dict[str, torch.Tensor]:
    """The two matrices of each module, by its outputs and inputs."""
    generator = torch.Generator().manual_seed(1)
    out = {}
    for module, (rows, columns) in modules.items():
        out[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.3
        out[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.3
    return out


def _beside(model: Any, tensors: dict[str, torch.Tensor], scale: float) -> None:
    """Let the modules of transformers' model add what the two matrices make of their input."""
    for name in [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith("lora_A.weight")]:
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]

        def hook(_: Any, args: Any, out: torch.Tensor, down: Any = down, up: Any = up) -> torch.Tensor:
            return out + scale * ((args[0] @ down.T) @ up.T)

        model.get_submodule(name).register_forward_hook(hook)


def _logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0, -1]


def _same(source: Any, model: Any) -> None:
    source.validate()
    engine = Engine.load(source)
    ours, theirs = (
        torch.as_tensor(engine.logits([PROMPT]))[0],
        _logits(model, engine.tokenizer.encode(PROMPT)),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


_LLAMA = {
    "model.layers.0.self_attn.q_proj": (32, 32),
    "model.layers.1.mlp.up_proj": (64, 32),
    "model.layers.2.mlp.down_proj": (32, 64),
}


@pytest.mark.parametrize(
    ("settings", "scale"), [({}, 6 / 4), ({"use_rslora": True}, 3.0), ({"lora_alpha": 2}, 0.5)]
)
def test_low_rank_changes_are_merged(
    settings: dict[str, Any], scale: float, tiny: Make, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    tensors = _low_rank(_LLAMA)
    adapter = _adapter(tmp_path / "a", tensors, **settings)
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    _beside(model, tensors, scale)
    source = open_model(adapter, tiny("llama"))
    _same(source, model)
    assert any("the adapter changes 3 tensors" in line for line in source.notices)
    assert {p.name for p in source.weight_files()} == {"model.safetensors", "adapter_model.safetensors"}


def test_a_gguf_file_may_be_the_base(tiny: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tensors = _low_rank(_LLAMA)
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    _beside(model, tensors, 1.5)
    file = write_gguf(tiny("llama"), tmp_path / "base.gguf")
    _same(open_model(_adapter(tmp_path / "a", tensors), file), model)


def test_gate_and_up_in_one_matrix_and_patterns_of_ranks(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = make_family("phi3", tmp_path / "base")
    fused, qkv = "model.layers.1.mlp.gate_up_proj", "model.layers.0.self_attn.qkv_proj"
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = {name: model.get_submodule(name).weight.shape for name in (fused, qkv)}
    wide, narrow = _low_rank({fused: tuple(rows[fused])}, 8), _low_rank({qkv: tuple(rows[qkv])})
    adapter = _adapter(
        tmp_path / "a", wide | narrow, rank_pattern={"gate_up_proj": 8}, alpha_pattern={"gate_up_proj": 4}
    )
    _beside(model, wide, 4 / 8)
    _beside(model, narrow, 6 / 4)
    _same(open_model(adapter, base), model)


def test_matrices_that_are_stored_the_other_way_round(tiny: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tensors = _low_rank({"transformer.h.1.mlp.c_fc": (64, 32), "transformer.h.0.attn.c_attn": (96, 32)})
    model = AutoModelForCausalLM.from_pretrained(tiny("gpt2"))
    _beside(model, tensors, 1.5)
    _same(open_model(_adapter(tmp_path / "a", tensors, fan_in_fan_out=True), tiny("gpt2")), model)


def test_lengths_of_rows_and_whole_tensors(tiny: Make, tmp_path: Path) -> None:
    """DoRA by its definition: a row of the changed matrix gets the length that the adapter says."""
    module = "model.layers.1.mlp.up_proj"
    tensors = _low_rank({module: (64, 32)})
    lengths = torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.5
    norm = torch.full((32,), 1.25)
    whole = {f"{module}.lora_magnitude_vector": lengths, "model.norm.modules_to_save.weight": norm}
    source = open_model(_adapter(tmp_path / "a", tensors | whole), tiny("llama"))
    source.validate()
    weight = load_file(tiny("llama") / "model.safetensors")[f"{module}.weight"]
    changed = weight + 1.5 * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
    for row in range(64):
        expected = changed[row] / changed[row].norm() * lengths[row]
        torch.testing.assert_close(source.tensor(f"{module}.weight")[row], expected)
    assert torch.equal(source.tensor("model.norm.weight"), norm)


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        (
            _low_rank({"model.layers.9.mlp.up_proj": (64, 32)}),
            {},
            r"layers\.9.*is no tensor of the base model",
        ),
        (
            _low_rank({"model.layers.0.mlp.up_proj": (64, 16)}),
            {},
            r"has shape \[64, 32\], the adapter's is \[64, 16\]",
        ),
        (
            _low_rank({"lm_head": (400, 32)}),
            {},
            r"lm_head\.weight is the embedding in the base model.*merge_and_unload",
        ),
        (
            _low_rank({"model.layers.0.mlp.up_proj": (64, 32)}),
            {"r": 8},
            "says rank 8 for model.layers.0.mlp.up_proj",
        ),
        (
            {"model.layers.0.mlp.up_proj.ia3_l": torch.ones(64)},
            {},
            "is nothing that an adapter of this kind has",
        ),
        ({}, {"peft_type": "IA3"}, "an adapter of the kind IA3, of which LORA is read"),
        ({}, {"target_parameters": ["experts"]}, "an adapter with target_parameters"),
    ],
)
def test_what_does_not_fit_is_named(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], words: str, tiny: Make, tmp_path: Path
) -> None:
    adapter = _adapter(tmp_path / "a", tensors, **settings)
    with pytest.raises(ModelError, match=words) as caught:
        open_model(adapter, tiny("qwen2"))
    assert "\n" not in str(caught.value)


def test_an_adapter_alone_and_a_model_with_a_base(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = _adapter(tmp_path / "a", _low_rank(_LLAMA))
    with pytest.raises(
        ModelError, match="this is an adapter: pass the model that it was trained on with --base"
    ):
        open_model(adapter)
    with pytest.raises(
        ModelError, match=r"has no adapter_config\.json, so it is no PEFT adapter; leave out --base"
    ):
        open_model(tiny("llama"), tiny("llama"))
    assert run(["inspect", str(adapter), "--base", str(tiny("llama"))]) == 0
    said = capsys.readouterr()
    assert (
        "model.safetensors, adapter_model.safetensors" in said.out and "merged as they are read" in said.err
    )


def test_extract_merges_the_adapter(tiny: Make, tmp_path: Path) -> None:
    from larql_duck.vindex.store import Vindex

    adapter = _adapter(tmp_path / "a", _low_rank(_LLAMA))
    out = tmp_path / "m.vindex"
    arguments = ["extract", str(adapter), "--base", str(tiny("llama")), "-o", str(out), "--no-probe"]
    assert run([*arguments, "--in-basis", "embedding"]) == 0
    source, name = open_model(adapter, tiny("llama")), "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(Vindex.open(out).tensor(name), source.tensor(name))


@pytest.mark.extras
def test_peft_merges_the_same(tiny: Make, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the package peft")
    from transformers import AutoModelForCausalLM

    for number, settings in enumerate(({}, {"use_rslora": True}, {"use_dora": True})):
        config = peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=["q_proj", "up_proj", "down_proj"], **settings
        )
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny("llama")), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(3))
        model.save_pretrained(tmp_path / f"a{number}")
        merged = model.merge_and_unload().state_dict()
        source = open_model(tmp_path / f"a{number}", tiny("llama"))
        source.validate()
        for name in source.names():
            torch.testing.assert_close(source.tensor(name), merged[name], rtol=1e-5, atol=1e-6)
