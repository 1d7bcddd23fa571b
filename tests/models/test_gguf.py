"""GGUF files: the same model as the Hugging Face directory, in layout, config, tokenizer and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from larql_duck.errors import ModelError
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.gguf_config import llama3_factors, shortest
from larql_duck.models.gguf_file import GgufFile
from larql_duck.models.gguf_tokenizer import score_merges
from larql_duck.models.opening import open_model
from larql_duck.models.tokenizer import load_tokenizer
from tests.models.conftest import Make
from tests.tiny import CHAT_TEMPLATE, TINY_FAMILIES, make_tiny, write_gguf

DATA = Path(__file__).parent.parent / "data" / "upstream"


def _is_shifted(source: ModelSource, name: str) -> bool:
    return bool(source.family.norm_offset) and "norm" in name


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_tensors_are_those_of_the_directory(family: str, tiny: Make, tiny_gguf: Callable[..., Path]) -> None:
    source, expected = open_model(tiny_gguf(family)), open_model(tiny(family))
    source.validate()
    assert source.dtype == "f32" and source.name == f"tiny {family}"
    assert sorted(source.names()) == sorted(expected.names())
    for name in expected.names():
        want = expected.tensor(name)
        want = (want + 1) - 1 if _is_shifted(source, name) else want
        assert torch.equal(source.tensor(name), want), name
        assert source.shape(name) == tuple(want.shape)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_config_means_the_same_to_transformers(
    family: str, tiny: Make, tiny_gguf: Callable[..., Path]
) -> None:
    from transformers import AutoConfig

    ours, theirs = (
        AutoConfig.for_model(**open_model(p).config).to_dict() for p in (tiny_gguf(family), tiny(family))
    )
    for config in (ours, theirs):
        for key in ("architectures", "dtype"):
            config.pop(key)
    assert ours == theirs


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_answers_on_long_text_are_those_of_the_directory(
    family: str, tiny: Make, tiny_gguf: Callable[..., Path]
) -> None:
    """A wrong row order in q and k shows on long text only, so every position of 60 tokens is compared."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = open_model(tiny_gguf(family))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**source.config)).eval()
    model.load_state_dict({n: source.tensor(n).clone() for n in source.names()}, strict=False)
    model.tie_weights()
    original = AutoModelForCausalLM.from_pretrained(tiny(family)).eval()
    ids = torch.randint(3, 400, (1, 60), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_file_does_store_q_and_k_in_another_order(
    family: str, tiny: Make, tiny_gguf: Callable[..., Path]
) -> None:
    stored, original = GgufFile(tiny_gguf(family)), open_model(tiny(family))
    for own, name in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        raw = stored.tensor(f"blk.0.{own}.weight")
        rows = original.tensor(f"model.layers.0.self_attn.{name}.weight")
        assert not torch.equal(raw, rows)
        # Within a head of 8 rows, llama.cpp's row 1 is the fifth: the first of the second rotary half.
        assert torch.equal(raw[1], rows[4]) and torch.equal(raw[8], rows[8])


def test_a_file_written_elsewhere_gives_the_same_tensors() -> None:
    source, expected = open_model(DATA / "tiny-llama.gguf"), open_model(DATA / "tiny-llama")
    source.validate()
    assert source.config["rms_norm_eps"] == expected.config["rms_norm_eps"] == 1e-5
    for name in expected.names():
        assert torch.equal(source.tensor(name), expected.tensor(name)), name


@pytest.mark.parametrize(
    ("quant", "dtype", "stored"),
    [
        ("F16", "f16", torch.float16),
        ("BF16", "bf16", torch.bfloat16),
        ("Q8_0", "f16", torch.float32),
        ("Q4_0", "f16", torch.float32),
        ("Q4_1", "f16", torch.float32),
        ("Q5_1", "f16", torch.float32),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantised_matrices(
    family: str, quant: str, dtype: str, stored: torch.dtype, tiny: Make, tiny_gguf: Callable[..., Path]
) -> None:
    """Rows are quantised one by one, so un-permuted rows are exactly the original rows, quantised and back."""
    source, original = open_model(tiny_gguf(family, quant)), open_model(tiny(family))
    source.validate()
    assert source.dtype == dtype
    kind = gguf.GGMLQuantizationType[quant]
    for name in original.names():
        want = original.tensor(name)
        got = source.tensor(name)
        if want.ndim == 1 or "wpe" in name:
            assert got.dtype == torch.float32 and torch.equal(got, want)
            continue
        assert got.dtype == stored
        turned = family == "gpt2" and ".h." in name
        rows = np.ascontiguousarray((want.T if turned else want).numpy())
        exact = torch.from_numpy(np.asarray(gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)))
        assert torch.equal(got.float(), exact.float().T if turned else exact.float()), name
        assert (got.float() - want).abs().max() < 0.2


@pytest.mark.parametrize(
    "kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"]
)
def test_every_other_quantisation_goes_through_the_gguf_package(kind: str, tmp_path: Path) -> None:
    own = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[own]
    # Small bytes keep the half-precision scales finite.
    raw = np.random.default_rng(0).integers(0, 60, (3, 512 // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("t", raw, raw_dtype=own)
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    tensor = GgufFile(tmp_path / "x.gguf").tensor("t")
    expected = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(raw, own)))
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 512)
    assert torch.equal(tensor, expected)


# -- config --------------------------------------------------------------------------------------------------


def _edited(tiny: Make, family: str, tmp_path: Path, edit: Callable[[Any], None]) -> Path:
    return write_gguf(tiny(family), tmp_path / f"{family}.gguf", edit=edit)


def test_an_own_output_matrix_means_untied(tiny: Make, tmp_path: Path) -> None:
    head = np.random.default_rng(0).standard_normal((457, 32)).astype(np.float32)
    tied = open_model(_edited(tiny, "gemma", tmp_path, lambda w: None))
    assert "lm_head.weight" not in tied.names() and tied.config["tie_word_embeddings"] is True
    own = open_model(_edited(tiny, "gemma", tmp_path, lambda w: w.add_tensor("output.weight", head)))
    own.validate()
    assert own.config["tie_word_embeddings"] is False
    assert torch.equal(own.tensor("lm_head.weight"), torch.from_numpy(head))


def test_llama3_rope_scaling_is_recovered_from_its_frequencies(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
    }  # fmt: skip
    directory = make_tiny(
        "llama", tmp_path / "m", hidden=128, rope_parameters=scaling, max_position_embeddings=131072
    )
    factors = llama3_factors(500000.0, 32, 32.0, 1.0, 4.0, 8192)
    assert factors[0] == 1.0 and factors[-1] == 32.0 and any(1 < f < 32 for f in factors)

    def edit(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))

    source = open_model(write_gguf(directory, tmp_path / "m.gguf", edit=edit))
    source.validate()
    assert "rope_freqs.weight" not in source.names()
    ours, theirs = (AutoConfig.for_model(**open_model(p).config) for p in (tmp_path / "m.gguf", directory))
    assert ours.rope_parameters == theirs.rope_parameters
    frequencies = [AutoModelForCausalLM.from_config(c).model.rotary_emb.inv_freq for c in (ours, theirs)]
    torch.testing.assert_close(*frequencies, rtol=0, atol=0)

    factors[5] *= 3
    with pytest.raises(ModelError, match=r"rope_freqs\.weight does not follow Llama 3's rule"):
        open_model(write_gguf(directory, tmp_path / "m.gguf", edit=edit))


def test_linear_and_yarn_scaling(tiny: Make, tmp_path: Path) -> None:
    from transformers import AutoConfig

    def linear(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    def yarn(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    gemma = AutoConfig.for_model(**open_model(_edited(tiny, "gemma3_text", tmp_path, linear)).config)
    full, local = gemma.rope_parameters["full_attention"], gemma.rope_parameters["sliding_attention"]
    assert (full["rope_type"], full["factor"], full["rope_theta"]) == ("linear", 8.0, 1e6)
    assert (local["rope_type"], local["rope_theta"]) == ("default", 1e4)
    qwen = AutoConfig.for_model(**open_model(_edited(tiny, "qwen2", tmp_path, yarn)).config)
    assert qwen.rope_parameters["rope_type"] == "yarn"
    assert qwen.rope_parameters["original_max_position_embeddings"] == 32


def test_floats_come_back_as_they_were_written() -> None:
    for value in (1e-5, 1e-6, 1e-12, 10000.0, 500000.0, 30.0, 0.1):
        assert shortest(float(np.float32(value))) == value


def test_window_patterns(tiny: Make, tmp_path: Path) -> None:
    every_third = open_model(
        _edited(tiny, "gemma3_text", tmp_path, lambda w: w.add_sliding_window_pattern(3))
    ).config
    assert every_third["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    with pytest.raises(ModelError, match="sliding_window_pattern has 2 entries for 3 layers"):
        open_model(
            _edited(tiny, "gemma3_text", tmp_path, lambda w: w.add_sliding_window_pattern([True, False]))
        )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda w: w.add_string("general.architecture", "rwkv7"),
            r"architecture 'rwkv7' is not known; known: .*falcon, gemma",
        ),
        (
            lambda w: w.add_tensor("blk.0.ffn_gate_exps.weight", np.ones((2, 2), np.float32)),
            "mixture-of-experts",
        ),
        (
            lambda w: w.add_tensor("blk.0.mystery.weight", np.ones((2, 2), np.float32)),
            r"blk\.0\.mystery\.weight has no",
        ),
        (lambda w: w.add_uint16("split.count", 3), "one of 3 parts of a model"),
        (lambda w: w.add_block_count(4), "says 4 layers .* the files have 3"),
        (lambda w: w.add_block_count(2), "says 2 layers .* the files have 3"),
        (lambda w: w.add_head_count(8), r"q_proj\.weight has shape \[32, 32\].*calls for \[64, 32\]"),
        (lambda w: w.add_feed_forward_length(65), r"gate_proj\.weight has shape"),
        (lambda w: w.add_feed_forward_length([64, 32, 64]), "feed_forward_length differs between layers"),
        (lambda w: w.add_rope_dimension_count(4), r"rope\.dimension_count is 4 and the heads have size 8"),
        (
            lambda w: w.add_tokenizer_pre("klingon"),
            r"pre-tokenizer 'klingon' is not known; known: .*llama-bpe",
        ),
        (lambda w: w.add_tokenizer_model("rwkv"), "tokenizer model 'rwkv' is not known"),
        (lambda w: w.add_token_merges(["no pair here"]), "an entry that is no pair of tokens"),
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
            "rope scaling 'longrope' is not supported",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    edit: Callable[[Any], None], message: str, tiny: Make, tmp_path: Path
) -> None:
    path = _edited(tiny, "llama", tmp_path, edit)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(path).validate()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tensor_with_nan_is_named(tiny: Make, tmp_path: Path) -> None:
    import shutil

    path = Path(shutil.copy(write_gguf(tiny("llama"), tmp_path / "a.gguf", "Q4_1"), tmp_path / "b.gguf"))
    entry = GgufFile(path).tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[entry.offset : entry.offset + 2] = np.float16("nan").tobytes()
    path.write_bytes(data)
    source = open_model(path)
    source.validate()
    with pytest.raises(
        ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has 32 values that are NaN"
    ) as caught:
        source.tensor("model.layers.1.mlp.up_proj.weight")
    assert caught.value.path == path


# -- tokenizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_tokenizer_is_that_of_the_directory(family: str, tiny: Make, tiny_gguf: Callable[..., Path]) -> None:
    ours, theirs = load_tokenizer(open_model(tiny_gguf(family))), load_tokenizer(open_model(tiny(family)))
    assert ours.vocabulary() == theirs.vocabulary()
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id, theirs.eos_id)
    for text in (
        "The capital of France is 2023",
        "  two  spaces\n\n",
        "Москва 日本 é",
        "<|im_start|>a<bos>b</s>",
        "",
    ):
        for special in (True, False):
            assert ours.encode(text, special) == theirs.encode(text, special), text


def test_flags_and_templates_are_carried_over(tiny: Make, tmp_path: Path) -> None:
    def edit(writer: Any) -> None:
        writer.add_add_bos_token(True)
        writer.add_eot_token_id(2)

    files = open_model(_edited(tiny, "llama", tmp_path, edit)).tokenizer_files()
    assert files["chat_template.jinja"].decode() == CHAT_TEMPLATE
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [0, 2]
    assert load_tokenizer(files).encode("The capital")[0] == 0
    plain = open_model(_edited(tiny, "llama", tmp_path, lambda w: None)).tokenizer_files()
    assert load_tokenizer(plain).encode("The capital")[0] != 0


def test_filling_rows_are_no_tokens(tiny_gguf: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(open_model(tiny_gguf("qwen2")))
    assert tokenizer.vocab_size == 407 and tokenizer.highest_learned_id == 401
    assert tokenizer.vocabulary()[406] == (406, "", "", False)


def test_score_merges_choose_the_best_scored_union_first() -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    merges = score_merges(vocab, [0, 0, 0, -2.0, -1.0, -3.0], [1] * 6)
    assert merges == [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", " x1234 y", ["Ġx", "1234", "Ġy"]),
        ("smollm", " x1234 y", ["Ġx", "1", "2", "3", "4", "Ġy"]),
        ("llama-bpe", " x1234 y", ["Ġx", "123", "4", "Ġy"]),
        ("qwen2", " x1234 y", ["Ġx", "1", "2", "3", "4", "Ġy"]),
        ("tekken", " fooBar1", ["Ġfoo", "Bar", "1"]),
        ("dbrx", " x1234 y", ["Ġx", "123", "4", "Ġy"]),
        ("falcon", " x1234 y--z", ["Ġx", "123", "4", "Ġy", "--", "z"]),
        ("llama-bpe", "It'S.\n\nHi", ["It", "'S", ".ĊĊ", "Hi"]),
    ],
)
def test_pre_tokenizer_kinds_cut_text_their_own_way(
    pre: str, text: str, pieces: list[str], tiny: Make, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    files = open_model(_edited(tiny, "llama", tmp_path, lambda w: w.add_tokenizer_pre(pre))).tokenizer_files()
    backend = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert [p for p, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces
