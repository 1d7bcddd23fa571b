"""The engine against transformers on the original weights, every family; batches, caches, loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from larql_duck.errors import LarqlError, ModelError
from larql_duck.inference import loading
from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.generate import stream
from larql_duck.inference.prefix import following, joined, prefill, read_prompts
from larql_duck.inference.settings import Settings
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS, StateSource
from tests.tiny import make_tiny


def test_logits_equal_transformers(tiny: Tiny) -> None:
    with torch.no_grad():
        for ids in tiny.ids:
            expected = tiny.reference(torch.tensor([ids])).logits[0, -1]
            got = tiny.engine.logits(pad([ids]))[0]
            assert float((got - expected).abs().max()) <= 1e-4
            assert float(expected.std()) > 0.3  # flat logits would agree whatever we do


def test_all_positions_of_a_long_text_equal_transformers(tiny: Tiny) -> None:
    context = tiny.engine.context
    assert context is not None
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, tiny.engine.vocab, (1, context), generator=generator)
    batch = pad(ids.tolist())
    got = tiny.engine.run(batch.ids, None, batch.positions, keep=0)[0]
    with torch.no_grad():
        expected = tiny.reference(ids).logits[0]
    assert float((got - expected).abs().max()) <= 1e-4


def test_batched_equals_single(tiny: Tiny) -> None:
    together = tiny.engine.logits(PROMPTS).softmax(-1)
    for i, prompt in enumerate(PROMPTS):
        single = tiny.engine.logits(prompt)[0].softmax(-1)
        assert float((together[i] - single).abs().max()) <= 1e-4


def test_eager_attention_gives_weights_and_the_same_logits(tiny: Tiny) -> None:
    capture = tiny.engine.capture(PROMPTS, ["attention"])
    weights = capture.need("attention")
    assert weights.shape[:3] == (tiny.engine.n_layers, len(PROMPTS), 4)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:3]), atol=1e-5)
    shortest = min(range(len(PROMPTS)), key=lambda i: len(tiny.ids[i]))
    padding = weights.shape[-1] - len(tiny.ids[shortest])
    assert float(weights[:, shortest, :, :padding].abs().max()) == 0.0
    assert torch.allclose(capture.need("logits"), tiny.engine.logits(PROMPTS), atol=1e-4)


PREFIXED = {
    # Enough of each length that lengths run apart and their caches are joined, in an order that is not by length.
    "many lengths": [
        "The capital of France is",
        *["The capital of the city of Tokyo is"] * 9,
        *["The capital of a"] * 3,
        *["The capital of the language of the city of Tokyo and Paris is"] * 6,
        "The capital of Japan is",
    ],
    # Same length, shared start, longer than the tiny sliding window of 4.
    "shared": ["The capital of France is", "The capital of Spain is", "The capital of Japan is"],
    "padded": ["The capital of France is", "The capital of the city of Tokyo is", "The capital of a"],
    "nothing shared": ["Paris is the", "The capital of France is", "of"],
    "one prompt": ["The capital of France is"],
}


@pytest.mark.parametrize("case", PREFIXED)
def test_last_step_from_a_cached_prefix_equals_a_full_pass(tiny: Tiny, case: str) -> None:
    prompts = PREFIXED[case]
    prefix = prefill(tiny.engine, prompts)
    expected = tiny.engine.logits(prompts)
    for _ in range(2):  # the second step shows that the first left the prefix alone
        assert torch.allclose(prefix.step(), expected, atol=1e-4)
    rows = torch.tensor([0, len(prompts) - 1, 0])
    assert torch.allclose(prefix.step(rows), expected[rows], atol=1e-4)


@pytest.mark.parametrize("case", PREFIXED)
def test_prompts_read_at_once_go_on_as_a_full_pass_does(tiny: Tiny, case: str) -> None:
    prompts = PREFIXED[case]
    logits, texts = read_prompts(tiny.engine, prompts)
    assert torch.allclose(logits, tiny.engine.logits(prompts), atol=1e-4)
    more = tiny.engine.tokenizer.encode(" of Paris", special=False)
    rows = [tiny.engine.tokenizer.encode(prompt) for prompt in prompts]
    once = texts.then(torch.full((len(rows),), more[0]))
    twice = (
        texts.then(torch.full((1,), more[0]), torch.tensor([0])).advanced()[1].then(torch.tensor(more[1:2]))
    )
    # What has read different numbers of tokens goes on in one batch.
    expected = [tiny.engine.logits(pad([[*row, more[0]]]))[0] for row in rows]
    expected += [tiny.engine.logits(pad([[*rows[0], *more[:2]]]))[0]]
    assert torch.allclose(joined([once, twice]).step(), torch.stack(expected), atol=1e-4)
    # The same, picked from both in one go.
    some = torch.tensor([len(rows) - 1, 0, 0])
    first = texts.then(torch.full((1,), more[0]), torch.tensor([0])).advanced()[1]
    picked = [
        (texts, torch.full((3,), more[0]), some),
        (first, torch.tensor(more[1:2]), torch.tensor([0])),
    ]
    wanted = torch.stack([*(expected[i] for i in some), expected[-1]])
    assert torch.allclose(following(picked).step(), wanted, atol=1e-4)
    assert torch.allclose(following(picked[:1]).step(), wanted[:3], atol=1e-4)


def test_shared_tokens_run_once_for_the_whole_batch(llama: Tiny) -> None:
    calls: list[tuple[int, ...]] = []
    handle = llama.engine.modules.layers[0].block.register_forward_hook(
        lambda module, args, output: calls.append(tuple(args[0].shape[:2]))
    )
    try:
        prefix = prefill(llama.engine, PREFIXED["shared"])
        prefix.step()
    finally:
        handle.remove()
    assert calls == [(1, 3), (3, 1), (3, 1)]  # "The capital of" once, the countries, then " is"


def test_prompts_of_different_length_are_computed_with_little_padding(llama: Tiny) -> None:
    calls: list[tuple[int, ...]] = []
    handle = llama.engine.modules.layers[0].block.register_forward_hook(
        lambda module, args, output: calls.append(tuple(args[0].shape[:2]))
    )
    try:
        prefill(llama.engine, [" of" * 2] * 40 + [" of" * 9] * 10 + [" of" * 10])
    finally:
        handle.remove()
    # All share one token; a length of 10 alone is not worth a pass of its own.
    assert calls == [(1, 1), (11, 8)]
    calls.clear()


def test_greedy_generation_equals_transformers(tiny: Tiny) -> None:
    prompt = PROMPTS[0]
    pieces = list(stream(tiny.engine, prompt, max_tokens=8))
    with torch.no_grad():
        ids = torch.tensor([tiny.ids[0]])
        for piece in pieces:
            probabilities = tiny.reference(ids).logits[0, -1].softmax(-1)
            assert piece.token_id == int(probabilities.argmax())
            assert piece.p == pytest.approx(float(probabilities.max()), abs=1e-4)
            ids = torch.cat([ids, torch.tensor([[piece.token_id]])], dim=1)
    whole = tiny.engine.tokenizer.decode([p.token_id for p in pieces])
    if "\ufffd" not in whole:  # random models may write broken characters, which nothing can stream
        assert "".join(p.text for p in pieces) == whole


def test_sampling_is_reproducible_and_differs_by_seed(llama: Tiny) -> None:
    def sample(seed: int) -> list[int]:
        options = {"max_tokens": 12, "temperature": 2.0, "seed": seed}
        return [p.token_id for p in stream(llama.engine, PROMPTS[0], **options)]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_f32_parameters_are_the_sources_own_tensors(tiny: Tiny) -> None:
    for name, parameter in tiny.engine.model.named_parameters():
        assert parameter.data_ptr() == tiny.source.tensors[name].data_ptr(), name
    tied = tiny.source.family.head not in tiny.source.tensors
    assert (tiny.engine.head_weight is tiny.engine.model.get_input_embeddings().weight) == tied


def test_loading_leaves_the_sources_tensors_as_they_are(tiny: Tiny) -> None:
    before = StateSource(tiny.path).tensors
    Engine.load(tiny.source)
    for name, tensor in tiny.source.tensors.items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_weights_compute_in_f32_as_transformers_does(tmp_path: Path, dtype: str) -> None:
    from transformers import AutoModelForCausalLM

    path = make_tiny("gemma3_text", tmp_path, dtype=dtype)
    engine = Engine.load(StateSource(path))
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    batch = engine.encode(PROMPTS[0])
    with torch.no_grad():
        expected = reference(batch.ids).logits[0, -1]
    assert engine.model.dtype == torch.float32
    assert float((engine.logits(batch)[0] - expected).abs().max()) <= 1e-4


ROPE = {
    "llama3": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPE)
def test_rope_scaling_is_honoured(tmp_path: Path, kind: str) -> None:
    tiny = Tiny(make_tiny("llama", tmp_path, rope_parameters=ROPE[kind]))
    ids = torch.arange(3, 83)[None, :]
    batch = pad(ids.tolist())
    with torch.no_grad():
        expected = tiny.reference(ids).logits[0, -1]
    assert float((tiny.engine.logits(batch)[0] - expected).abs().max()) <= 1e-4


def test_a_stored_head_is_used_even_where_the_config_says_tied(tmp_path: Path) -> None:
    source = StateSource(make_tiny("llama", tmp_path, tied=False))
    source.config["tie_word_embeddings"] = True
    engine = Engine.load(source)
    assert torch.equal(engine.head_weight, source.tensors["lm_head.weight"])


def test_prompts_that_cannot_run_are_one_clear_line(llama: Tiny) -> None:
    context = llama.engine.context
    for prompts, words in (
        ([], "no prompt"),
        ("", "empty"),
        (["The", ""], "empty"),
        (" of" * (context or 0) + " of", f"holds {context}"),
    ):
        with pytest.raises(LarqlError, match=words) as caught:
            llama.engine.logits(prompts)
        assert "\n" not in str(caught.value)
    assert llama.engine.logits(" of" * (context or 0)).isfinite().all()


def _broken(path: Path, change: Callable[[StateSource], object]) -> StateSource:
    source = StateSource(path)
    change(source)
    return source


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.tensors.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda s: s.tensors.update({"model.norm.weight": torch.ones(7)}), r"shape \[7\].*\[32\]"),
        (lambda s: s.config.update(model_type="no_such_thing"), "no architecture 'no_such_thing'"),
        (lambda s: s.config.update(num_attention_heads="four"), "config"),
    ],
)
def test_a_source_that_makes_no_model_is_one_clear_line(
    llama: Tiny, change: Callable[[StateSource], object], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        loading.build_model(_broken(llama.path, change))
    assert "\n" not in str(caught.value)
    assert caught.value.path == llama.path


def test_runtime_settings_in_a_config_do_not_matter(llama: Tiny) -> None:
    source = StateSource(llama.path)
    source.config |= {
        "attn_implementation": "flash_attention_2",
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "auto_map": {"AutoModelForCausalLM": "somebody/code--modeling.Model"},
        "torch_dtype": "bfloat16",
    }
    assert torch.equal(Engine.load(source).logits(PROMPTS), llama.engine.logits(PROMPTS))


def test_a_source_without_weights_says_so(llama: Tiny) -> None:
    def require(level: str, why: str) -> None:
        raise LarqlError(f"needs level {level}: {why}")

    with pytest.raises(LarqlError, match="needs level inference"):
        Engine.load(SimpleNamespace(require=require))  # type: ignore[arg-type]


def test_unknown_dtype_and_absent_device(llama: Tiny) -> None:
    with pytest.raises(LarqlError, match="f64"):
        Engine.load(llama.source, Settings(compute_dtype="f64"))
    if not torch.cuda.is_available():
        with pytest.raises(LarqlError, match="cuda"):
            Engine.load(llama.source, Settings(device="cuda"))


def test_the_fingerprint_names_the_weights(tmp_path: Path, llama: Tiny) -> None:
    other = StateSource(make_tiny("llama", tmp_path, seed=5))
    assert loading.fingerprint(StateSource(llama.path)) == llama.engine.fingerprint
    assert loading.fingerprint(other) != llama.engine.fingerprint
