"""The family table against transformers: names, shapes and traits of every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from larql_duck.errors import ModelError
from larql_duck.models.families import FAMILIES, complete, family_for, text_config
from larql_duck.models.opening import open_model
from larql_duck.models.source import ffn_matrix, final_norm_multiplier, head_matrix
from tests.models.conftest import Make
from tests.tiny import TINY_FAMILIES


def test_the_tiny_models_cover_the_table() -> None:
    assert sorted(TINY_FAMILIES) == sorted(FAMILIES)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_names_and_shapes_are_those_of_transformers(family: str, tiny: Make) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = tiny(family)
    source = open_model(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    theirs = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    if source.family.tied(source.config, source.names()):
        del theirs[source.family.head]
    ours = source.family.expected(source.config)
    if not source.family.tied(source.config, source.names()):
        ours[source.family.head] = (source.sizes().vocab, source.sizes().hidden)
    assert ours == theirs
    assert sorted(source.names()) == sorted(theirs)
    assert {n: source.shape(n) for n in theirs} == theirs
    source.validate()


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family).to_dict()
    ours = complete({"model_type": family}, FAMILIES[family])
    assert {k: theirs[k] for k in ours} == ours
    size = FAMILIES[family].sizes({"model_type": family})
    row = FAMILIES[family]
    assert size.n_layers == theirs[row.keys.get("num_hidden_layers", "num_hidden_layers")]
    assert size.n_kv_heads == (theirs.get("num_key_value_heads") or size.n_heads)
    assert size.head_dim == (theirs.get("head_dim") or size.hidden // size.n_heads)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_ffn_matrices_reproduce_the_ffn_of_transformers(family: str, tiny: Make) -> None:
    """Layout, gate/up order, biases aside: the matrices alone give what the model's own FFN module gives."""
    from transformers import AutoModelForCausalLM
    from transformers.activations import ACT2FN

    source = open_model(tiny(family))
    model = AutoModelForCausalLM.from_pretrained(tiny(family))
    size = source.sizes()
    x = torch.randn(5, size.hidden, generator=torch.Generator().manual_seed(1))
    activation = ACT2FN[
        {"gelu_tanh": "gelu_pytorch_tanh"}.get(a := source.family.activation(source.config), a)
    ]
    for layer in range(size.n_layers):
        gate, up, down = (ffn_matrix(source, layer, w) for w in ("gate", "up", "down"))
        assert gate.shape == (size.intermediate[layer], size.hidden)
        assert down.shape == (size.hidden, size.intermediate[layer])
        if up is None:
            mlp = model.transformer.h[layer].mlp
            inner = activation(x @ gate.T + mlp.c_fc.bias)
            ours, theirs = inner @ down.T + mlp.c_proj.bias, mlp(x)
        else:
            ours, theirs = (activation(x @ gate.T) * (x @ up.T)) @ down.T, model.model.layers[layer].mlp(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_head_norm_and_embedding_scale(family: str, tiny: Make) -> None:
    """The final norm's multiplier, the head and the embedding's scale, seen through transformers' modules."""
    from transformers import AutoModelForCausalLM

    source = open_model(tiny(family))
    model = AutoModelForCausalLM.from_pretrained(tiny(family))
    row, hidden = source.family, source.sizes().hidden
    norm = model.get_submodule(row.final_norm.removesuffix(".weight"))
    # A vector of mean 0 and mean square 1 passes either kind of norm unscaled.
    x = torch.cat([torch.ones(hidden // 2), -torch.ones(hidden // 2)])
    bias = source.tensor(row.final_norm_bias) if row.final_norm_bias else 0.0
    torch.testing.assert_close(norm(x), x * final_norm_multiplier(source) + bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head_matrix(source), model.lm_head.weight.detach(), rtol=0, atol=0)
    ids = torch.tensor([[5, 300]])
    with torch.no_grad():
        first = model(ids, output_hidden_states=True).hidden_states[0][0]
    expected = source.tensor(row.embed)[ids[0]] * row.embed_scale(source.config)
    if row.positions:
        expected = expected + source.tensor(row.positions)[:2]
    torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-6)


def test_gemma3_config_is_unwrapped() -> None:
    config = text_config(
        {
            "model_type": "gemma3",
            "eos_token_id": [1, 106],
            "text_config": {"hidden_size": 2560, "num_hidden_layers": 34},
        }
    )
    family, notices = family_for(config)
    size = family.sizes(config)
    assert (family.name, notices) == ("gemma3_text", [])
    assert (size.hidden, size.n_layers, size.vocab, size.head_dim) == (2560, 34, 262208, 256)
    assert config["eos_token_id"] == [1, 106]


def test_other_families_are_found_with_a_notice(copied: Make) -> None:
    directory = copied("llama")
    _edit(directory, model_type="granite")
    source = open_model(directory)
    source.validate()
    assert source.family.name == "granite"
    assert source.family.gate_name(1) == "model.layers.1.mlp.gate_proj.weight"
    [notice] = source.notices
    assert "'granite': its parts were found among the modules that transformers builds" in notice


def test_unknown_models_are_refused_by_what_they_lack(copied: Make) -> None:
    directory = copied("gpt2")
    _edit(directory, model_type="nobodys")
    with pytest.raises(
        ModelError, match=r"nobodys.*model\.embed_tokens\.weight.*known: llama, mistral"
    ) as caught:
        open_model(directory)
    assert caught.value.tensor == "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a number from 1"),
        ({"num_hidden_layers": 10**15}, "num_hidden_layers must be a number from 1"),
        ({"hidden_size": "32"}, "hidden_size must be a number"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"hidden_act": "mystery"}, "hidden_act 'mystery' is not known"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a small number"),
        ({"intermediate_size": [64, 64]}, "intermediate_size must be 3 positive numbers"),
    ],
)
def test_impossible_configs_are_named(change: dict[str, object], message: str, copied: Make) -> None:
    directory = copied("llama")
    _edit(directory, **change)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(directory).validate()
    assert str(directory) in str(caught.value)


def test_gemma_reads_the_old_gelu_as_the_tanh_form() -> None:
    assert FAMILIES["gemma"].activation({"hidden_act": "gelu"}) == "gelu_tanh"
    assert FAMILIES["llama"].activation({"hidden_act": "gelu"}) == "gelu"


def _edit(directory: Path, **change: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
