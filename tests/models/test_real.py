"""The real SmolLM2 from its GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.gguf_file import GgufFile
from larql_duck.models.opening import open_model
from larql_duck.models.tokenizer import load_tokenizer
from tests.models.test_tokenizer import TEXT

pytestmark = pytest.mark.real

LONG = (
    "The history of the city begins with a small settlement on the left bank of the river, where merchants from the "
    "north traded furs and amber for salt, wine and cloth. In the twelfth century the town received its first charter, "
    "and a stone wall replaced the wooden palisade that had protected the houses against raids. The cathedral, whose "
    "construction took almost two hundred years, is still the tallest building in the old quarter. After the great "
    "fire, the council decided that all new houses had to be built of brick, and the narrow lanes were widened so "
    "that carts could pass each other. Today the harbour is used mostly by pleasure boats, but the warehouses along "
    "the quay remind visitors of the time when the city was one of the richest ports of the whole region."
)


@pytest.fixture(scope="module")
def source(smollm2_gguf: Path) -> ModelSource:
    return open_model(smollm2_gguf)


@pytest.fixture(scope="module")
def model(source: ModelSource) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**source.config))
    made.load_state_dict({n: source.tensor(n) for n in source.names()}, strict=False, assign=True)
    made.tie_weights()
    made.model.rotary_emb = type(made.model.rotary_emb)(made.config)
    return made.eval()


def test_it_is_whole(source: ModelSource) -> None:
    source.validate()
    size = source.sizes()
    assert (size.n_layers, size.hidden, size.intermediate[0], size.vocab) == (30, 576, 1536, 49152)
    assert (size.n_heads, size.n_kv_heads, size.head_dim) == (9, 3, 64)
    assert (source.dtype, source.family.name) == ("f16", "llama")
    assert source.config["rms_norm_eps"] == 1e-5 and source.config["rope_theta"] == 100000.0
    assert source.config["tie_word_embeddings"] is True and "lm_head.weight" not in source.names()
    assert "<|im_start|>" in source.tokenizer_files()["chat_template.jinja"].decode()


def test_it_knows_the_capital_of_france(source: ModelSource, model: Any) -> None:
    tokenizer = load_tokenizer(source)
    with torch.no_grad():
        p = model(torch.tensor([tokenizer.encode("The capital of France is")])).logits[0, -1].softmax(-1)
    assert tokenizer.token(int(p.argmax())) == " Paris"
    assert float(p.max()) == pytest.approx(0.773, abs=0.01)


def test_long_text_is_likely_and_only_with_q_and_k_in_order(source: ModelSource, model: Any) -> None:
    """The wrong row order would answer Paris as well; a hundred and fifty tokens tell the two apart."""
    ids = torch.tensor([load_tokenizer(source).encode(LONG)])
    assert ids.shape[1] > 120

    def perplexity() -> float:
        with torch.no_grad():
            return float(model(ids, labels=ids).loss.exp())

    right = perplexity()
    file = GgufFile(source.path)
    for i, layer in enumerate(model.model.layers):
        for name in ("q", "k"):
            projection = getattr(layer.self_attn, f"{name}_proj")
            stored = file.tensor(f"blk.{i}.attn_{name}.weight")
            assert not torch.equal(projection.weight, stored)
            projection.weight = torch.nn.Parameter(stored, requires_grad=False)
    assert right < 25
    assert perplexity() > 3 * right


def test_tokenizer_is_that_of_transformers(source: ModelSource, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = source.tokenizer_files()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ours = load_tokenizer(source)
    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    independent = AutoTokenizer.from_pretrained(source.path.parent, gguf_file=source.path.name)
    text = TEXT.replace("\0", "") + LONG
    ids = ours.encode(text)
    assert ids == rebuilt(text).input_ids == independent(text).input_ids
    assert ours.decode(ids) == rebuilt.decode(ids)
    # Single digits, as the model was trained on.
    assert [ours.token(i) for i in ours.encode("in 1984")] == ["in", " ", "1", "9", "8", "4"]
    words = sum(word for *_, word in ours.vocabulary())
    assert 45_000 < words < 49_000


@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="transformers needs accelerate for GGUF"
)
def test_tensors_are_those_of_transformers(source: ModelSource) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(source.path.parent, gguf_file=source.path.name).state_dict()
    for name in source.names():
        if ".layers." not in name or name.startswith(("model.layers.0.", "model.layers.17.")):
            assert torch.equal(source.tensor(name), theirs[name]), name
