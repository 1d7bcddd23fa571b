"""Families read off transformers' modules: against the table, against transformers' own numbers, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from larql_duck.cli.app import run
from larql_duck.errors import ModelError
from larql_duck.models.activations import ACTIVATIONS, activation_function, name_of_activation
from larql_duck.models.family import Family
from larql_duck.models.finding import find_family
from larql_duck.models.gguf_families import architecture
from larql_duck.models.opening import open_model
from tests.families import Checked, check_family, listed_types, make_family, tiny_config
from tests.models.conftest import Make
from tests.tiny import TINY_FAMILIES

# What the table says and the finding finds too; the rest is of GGUF, of configs, or of names that old files have.
SAME = (
    "embed", "head", "final_norm", "final_norm_bias", "layer", "gate", "up", "down", "attn_norm", "ffn_norm",
    "post_attn_norm", "post_ffn_norm", "q", "k", "v", "qkv", "o", "norm_offset", "transposed", "parallel", "between",
)  # fmt: skip
# One family for every kind of layer.
KINDS = {
    "phi3": "gate and up are one matrix",
    "glm4": "that, and norms on both branches",
    "gpt_neox": "plain FFN with biases beside attention",
    "gptj": "one norm for both, a head with a bias",
    "olmo2": "norms on what branches add, none in front",
    "olmo": "norms without weights",
    "cohere": "norms that centre, without a bias; scaled logits",
    "nemotron": "norms that add 1 to their weights",
    "bloom": "no positions; the FFN adds the residual itself",
    "opt": "no module for the FFN",
    "bitnet": "a norm behind the activation",
    "apertus": "an activation with numbers of its own",
    "mixtral": "experts, stored one by one",
    "qwen2_moe": "experts beside shared ones, whose share is learnt",
    "deepseek_v3": "the same behind a dense layer; a router that chooses by another score than it weighs with",
    "gpt_oss": "experts with biases and a gate of their own, stored in one array",
    "lfm2": "convolutions in attention's place; an activation that is called as a function",
    "nemotron_h": "layers without an FFN, layers without attention",
}
# Attention that needs the whole text's distances, features that change each other, a gate of its own: no layer by itself.
EMBEDDED = {"bloom", "bitnet", "gpt_oss"}


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_the_table_is_found_again(name: str, tiny: Make) -> None:
    source = open_model(tiny(name))
    found, _ = find_family(source.config)
    assert {f: getattr(found, f) for f in SAME} == {f: getattr(source.family, f) for f in SAME}
    assert found.expected(source.config) == source.family.expected(source.config)
    assert found.sizes(source.config) == source.family.sizes(source.config)
    mine, theirs = (f.activation(source.config) for f in (found, source.family))
    x = torch.linspace(-4, 4, 99)
    torch.testing.assert_close(activation_function(mine)(x), activation_function(theirs)(x))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_found_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    checked = check_family(name, tmp_path)
    holds(checked)
    # Nothing of these kinds is refused, and layers that run one by one give the model's own residual.
    assert isinstance(checked.parts, float) and isinstance(checked.edited, float)
    assert checked.basis == ("embedding" if name in EMBEDDED else "context")


@pytest.mark.extras
@pytest.mark.parametrize("name", [n for n in listed_types() if n not in KINDS])
def test_every_family_computes_what_transformers_does_or_is_refused(name: str, tmp_path: Path) -> None:
    try:
        checked = check_family(name, tmp_path)
    except ModelError as refusal:
        assert "\n" not in str(refusal) and f"'{name}'" in str(refusal)
        assert "complete copy" not in str(refusal)
        return
    holds(checked)


def holds(checked: Checked) -> None:
    assert checked.infer <= 1e-4
    assert checked.batch <= 1e-4
    assert checked.cached <= 1e-4
    assert checked.activations <= 1e-5
    assert isinstance(checked.parts, str) or checked.parts <= 1e-4
    assert checked.compiled
    assert isinstance(checked.edited, str) or checked.edited <= 1e-4
    if architecture(checked.family):
        assert isinstance(checked.gguf, float) and checked.gguf <= 1e-4
    else:
        assert "has no place in GGUF" in str(checked.gguf)


def test_a_family_comes_back_from_its_record() -> None:
    found, _ = find_family(tiny_config("phi3", 300).to_dict())
    record = json.loads(json.dumps(found.record()))
    again = Family.from_record("phi3", record)
    for field in fields(Family):
        mine, theirs = getattr(again, field.name), getattr(found, field.name)
        assert mine == theirs, field.name
    with pytest.raises(ModelError, match="record of family 'phi3' cannot be read"):
        Family.from_record("phi3", {"measured": {"shapes": 3}})


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("dbrx", "a mixture of experts (4 experts)"),
        ("bert", "an encoder"),
        ("t5", "an encoder-decoder"),
        ("bart", "an encoder-decoder"),
        ("mamba", "without attention"),
        ("zamba2", "without a feed-forward network that adds to the residual by itself"),
    ],
)
def test_what_is_not_read_is_said_to_be_what_it_is(name: str, what: str, tmp_path: Path, tiny: Make) -> None:
    from transformers import CONFIG_MAPPING

    for file in tiny("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = CONFIG_MAPPING[name]().to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as refusal:
        open_model(tmp_path)
    said = str(refusal.value)
    assert f"model_type '{name}' is {what}" in said
    assert "\n" not in said and "copy" not in said


def test_names_of_older_files_are_read(tmp_path: Path) -> None:
    """The base model's files lack its prefix, and old ones carry causal masks."""
    new = open_model(make_family("gpt_neox", tmp_path / "new"))
    old = make_family("gpt_neox", tmp_path / "old")
    tensors = load_file(old / "model.safetensors")
    changed = {name.removeprefix("gpt_neox."): tensor for name, tensor in tensors.items()}
    changed["layers.0.attention.bias"] = torch.ones(1, 1, 4, 4)
    changed["layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(changed, old / "model.safetensors", metadata={"format": "pt"})
    source = open_model(old)
    source.validate()
    assert sorted(source.names()) == sorted(new.names())
    for name in new.names():
        assert torch.equal(source.tensor(name), new.tensor(name))


def test_a_text_model_inside_another_is_read_and_the_rest_named(tmp_path: Path, tiny: Make) -> None:
    directory = tmp_path
    for file in tiny("qwen2").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    text = json.loads((directory / "config.json").read_text())
    whole = {"model_type": "qwen2_vl_of_somebody", "text_config": text, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps(whole))
    tensors = load_file(directory / "model.safetensors")
    inside = {name.replace("model.", "model.language_model.", 1): t for name, t in tensors.items()}
    inside["model.visual.patch_embed.weight"] = torch.zeros(4, 4)
    save_file(inside, directory / "model.safetensors", metadata={"format": "pt"})
    source = open_model(directory)
    source.validate()
    assert source.family.name == "qwen2"
    assert source.notices == ["not part of the text model, left out: model.visual.patch_embed.weight"]


def test_activations_have_transformers_names() -> None:
    from transformers.activations import ACT2CLS, ACT2FN

    plain = [name for name in ACT2CLS if name not in ("prelu", "xielu")]
    x = torch.linspace(-4, 4, 99)
    for name in plain:
        family = Family("any")
        known = family.activation({"hidden_act": name})
        torch.testing.assert_close(activation_function(known)(x), ACT2FN[name](x), atol=1e-6, rtol=1e-5)
        again = activation_function(name_of_activation(ACT2FN[name]))
        torch.testing.assert_close(again(x), ACT2FN[name](x), atol=1e-5, rtol=1e-5)
    assert set(ACTIVATIONS) <= {*plain, "gelu_tanh"}
    assert bool(activation_function("")(x).isnan().all())


# -- files that others ship ------------------------------------------------------------------------------------


def _rewrite(
    directory: Path, change: dict[str, object], drop: tuple[str, ...] = (), **tensors: torch.Tensor
) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    stored = load_file(directory / "model.safetensors")
    kept = {name: t for name, t in stored.items() if name not in drop} | tensors
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_tied_model_may_store_its_head_alone(copied: Make) -> None:
    directory = copied("qwen2")
    embed = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    _rewrite(directory, {}, ("model.embed_tokens.weight",), **{"lm_head.weight": embed})
    source = open_model(directory)
    source.validate()
    assert torch.equal(source.tensor("model.embed_tokens.weight"), embed)
    assert "lm_head.weight" not in source.names()
    assert source.notices == [
        "lm_head.weight is stored and model.embed_tokens.weight is not: the two are one"
    ]


def test_a_head_that_differs_is_kept_whatever_the_config_says(copied: Make) -> None:
    directory = copied("qwen2")
    embed = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    _rewrite(directory, {"tie_word_embeddings": True}, **{"lm_head.weight": embed + 1})
    source = open_model(directory)
    source.validate()
    assert torch.equal(source.tensor("lm_head.weight"), embed + 1)
    assert source.config["tie_word_embeddings"] is False
    assert len(source.notices) == 1 and "the two are kept apart" in source.notices[0]


def test_without_a_head_the_flag_decides(copied: Make) -> None:
    directory = copied("llama")
    _rewrite(directory, {"tie_word_embeddings": "absent"}, ("lm_head.weight",))
    source = open_model(directory)
    source.validate()
    assert source.config["tie_word_embeddings"] is True
    assert len(source.notices) == 1 and "the embedding is the output head" in source.notices[0]
    _rewrite(directory, {"tie_word_embeddings": False})
    with pytest.raises(ModelError, match=r'write "tie_word_embeddings": true into config\.json') as refusal:
        open_model(directory).validate()
    assert "copy" not in str(refusal.value)


def test_tensors_that_no_decoder_has(copied: Make) -> None:
    directory = copied("llama")
    _rewrite(directory, {}, **{"v_head.summary.weight": torch.zeros(1, 32)})
    source = open_model(directory)
    source.validate()
    assert source.notices == ["not part of the text model, left out: v_head.summary.weight"]
    _rewrite(directory, {}, **{"model.layers.0.self_attn.sinks": torch.zeros(4)})
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.sinks is not called for .*family 'llama'"):
        open_model(directory).validate()


@pytest.mark.parametrize("layers", [2, 4])
def test_other_numbers_of_layers_are_said(layers: int, copied: Make) -> None:
    directory = copied("llama")
    _rewrite(directory, {"num_hidden_layers": layers})
    with pytest.raises(ModelError, match=rf"the config says {layers} layers .* the files have 3") as refusal:
        open_model(directory).validate()
    assert "copy" not in str(refusal.value)


def test_a_stray_file_beside_an_index_is_named(copied: Make) -> None:
    directory = copied("llama")
    stored = load_file(directory / "model.safetensors")
    save_file(stored, directory / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(stored, "model-00001-of-00001.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    source = open_model(directory)
    assert source.notices == [
        "model.safetensors is not read: model.safetensors.index.json names other files, and they count"
    ]


def test_inspect_says_what_a_model_is_and_which_keys_nobody_reads(
    copied: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copied("llama")
    _rewrite(directory, {"rope_tehta": 5})
    assert run(["inspect", str(directory)]) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    said = {name.strip(): value.strip() for name, value in shown.items()}
    assert said["family"] == "llama (families.toml)"
    assert (said["layers"], said["features"]) == ("3", "64 a layer, 192 in all")
    assert (
        said["parameters"]
        == f"{sum(t.numel() for t in load_file(directory / 'model.safetensors').values()):,}"
    )
    assert said["config keys that nobody reads"] == "rope_tehta"
    assert run(["inspect", str(make_family("phi3", tmp_path / "phi3"))]) == 0
    out = capsys.readouterr().out
    assert "phi3 (found among transformers' modules)" in out
    assert "second half of mlp.gate_up_proj.weight" in out
