"""Text after a prompt, the chat template, settings, and memory that comes back."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from larql_duck.errors import LarqlError, ModelError
from larql_duck.inference.chat import chat_prompt, stop_ids
from larql_duck.inference.engine import Engine
from larql_duck.inference.generate import Draft, GeneratedToken, advance, stream
from larql_duck.inference.model import Model, open_source
from larql_duck.inference.settings import Settings
from larql_duck.vindex.store import Vindex
from tests.conftest import UPSTREAM
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_greedy_text_is_transformers_own(tiny: Tiny) -> None:
    ids = torch.tensor([tiny.ids[0]])
    with torch.no_grad():
        expected = tiny.reference.generate(
            ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    engine = tiny.engine
    found = [piece.token_id for piece in stream(engine, PROMPTS[0], max_tokens=8)]
    own = expected[0, ids.shape[1] :].tolist()
    special = next((i for i, token in enumerate(own) if engine.tokenizer.is_special(token)), 8)
    assert found == own[:special] and (found or special == 0)


def test_pieces_join_to_the_decoded_text(tiny: Tiny) -> None:
    engine = tiny.engine
    pieces = list(stream(engine, PROMPTS[0], max_tokens=12, temperature=1.5, seed=3))
    assert pieces == list(stream(engine, PROMPTS[0], max_tokens=12, temperature=1.5, seed=3))
    prompt = tiny.ids[0]
    whole = engine.tokenizer.decode([*prompt, *(p.token_id for p in pieces)])
    text = "".join(p.text for p in pieces)
    if "\ufffd" not in whole:
        assert whole == engine.tokenizer.decode(prompt) + text


def test_token_ids_start_a_text_as_they_are(llama: Tiny) -> None:
    engine = llama.engine
    assert list(stream(engine, llama.ids[0], max_tokens=4)) == list(stream(engine, PROMPTS[0], max_tokens=4))
    with pytest.raises(LarqlError, match="empty"):
        list(stream(engine, [], max_tokens=4))
    with pytest.raises(LarqlError, match="does not belong"):
        list(stream(engine, [10**6], max_tokens=4))


# -- chat ----------------------------------------------------------------------------------------------------


def test_the_models_own_template_is_used() -> None:
    settings = json.dumps({"eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}).encode()
    expected = "<user>Hi </s><assistant>"
    assert chat_prompt({"tokenizer_config.json": settings}, "Hi ") == expected
    files = {
        "tokenizer_config.json": json.dumps({"eos_token": "</s>"}).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }
    assert chat_prompt(files, "Hi ", system="Be brief.") == f"<system>Be brief.</s>{expected}"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    settings = json.dumps({"eos_token": "</s>", "chat_template": named}).encode()
    assert chat_prompt({"tokenizer_config.json": settings}, "Hi ") == expected


def test_templates_that_are_missing_or_fail() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        chat_prompt({}, "Hi")
    for broken in ("{% for %}", "{{ raise_exception('no system message') }}", "{{ ''.__class__.__mro__ }}"):
        with pytest.raises(ModelError, match="without --chat"):
            chat_prompt({"chat_template.jinja": broken.encode()}, "Hi")


def test_what_ends_an_answer(llama: Tiny) -> None:
    files = {"generation_config.json": b'{"eos_token_id": [5, 7]}'}
    found = stop_ids(files, {"eos_token_id": 9}, llama.engine.tokenizer)
    assert {5, 7, 9} <= set(found)
    assert stop_ids({}, {"eos_token_id": None}, llama.engine.tokenizer) == (
        () if llama.engine.tokenizer.eos_id is None else (llama.engine.tokenizer.eos_id,)
    )


def test_written_text_on_models_and_vindexes(tiny_model, tiny_vindex, tmp_path: Path) -> None:
    from_model = "".join(Model.open(tiny_model("llama")).generate(PROMPTS[0], tokens=6))
    from_vindex = "".join(Model.open(tiny_vindex("llama")).generate(PROMPTS[0], tokens=6))
    assert from_model == from_vindex != ""
    chat = "".join(Model.open(tiny_model("llama")).generate(PROMPTS[0], tokens=6, chat=True))
    assert chat != from_model
    live = Model.open(tiny_model("mistral"))
    for words, options in (
        ("chat template", {"chat": True}),
        ("add --chat", {"system": "x"}),
        ("at least 0", {"tokens": -1}),
        ("at least 0", {"temperature": -1.0}),
    ):
        with pytest.raises(LarqlError, match=words):
            list(live.generate(PROMPTS[0], **options))
    with pytest.raises(LarqlError, match="--level inference"):
        open_source(UPSTREAM / "browse-f16.vindex")


# -- settings ------------------------------------------------------------------------------------------------


def test_settings_from_the_environment() -> None:
    names = {"LARQL_DUCK_COMPUTE_DTYPE": "bf16", "LARQL_DUCK_DEVICE": "auto", "LARQL_DUCK_THREADS": "2"}
    assert Settings.from_environment(names) == Settings("bf16", "auto", 2)
    assert Settings.from_environment({}) == Settings()
    for name, value in (("COMPUTE_DTYPE", "f64"), ("THREADS", "many"), ("THREADS", "0")):
        with pytest.raises(LarqlError):
            Settings.from_environment({f"LARQL_DUCK_{name}": value})


def test_compute_dtype_is_what_the_model_runs_in(llama: Tiny) -> None:
    half = Engine.load(llama.source, Settings(compute_dtype="bf16"))
    assert half.model.dtype == torch.bfloat16
    assert torch.allclose(half.logits(PROMPTS[0]), llama.engine.logits(PROMPTS[0]), atol=1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_passes_on_a_gpu_equal_those_on_the_cpu(tiny: Tiny) -> None:
    from larql_duck.inference.explain import explain_infer
    from larql_duck.inference.trace import trace

    gpu = Engine.load(tiny.source, Settings(device="cuda"))
    assert torch.allclose(gpu.logits(PROMPTS).cpu(), tiny.engine.logits(PROMPTS), atol=1e-3)
    a, b = (trace(e, PROMPTS[0], target="Paris", decompose=True).table for e in (gpu, tiny.engine))
    assert a["residual_norm"].to_pylist() == pytest.approx(b["residual_norm"].to_pylist(), rel=1e-3)
    assert explain_infer(gpu, PROMPTS[0], attention=True).table.num_rows > 0


def test_a_missing_gpu_is_named(llama: Tiny) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(LarqlError, match="use device 'cpu'"):
        Engine.load(llama.source, Settings(device="cuda"))
    assert str(Engine.load(llama.source, Settings(device="auto")).device) == "cpu"


# -- memory --------------------------------------------------------------------------------------------------


def resident_anonymous() -> float:
    """MiB of anonymous memory of this process."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+)", status.read_text()) if status.exists() else None
    if found is None:
        pytest.skip("no RssAnon on this system")
    return int(found[1]) / 1024


@pytest.mark.real
def test_weights_are_held_once_and_handed_back(smollm2_gguf: Path, smollm2_vindex: Path) -> None:
    """In a process of its own: what other tests have freed is not handed back to the system."""
    resident_anonymous()  # skips where it cannot be told
    paths = [str(UPSTREAM / "all-f32.vindex"), str(smollm2_vindex), str(smollm2_gguf)]
    code = f"from tests.inference.test_writing import weights_held; weights_held(*{paths!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def weights_held(small: str, vindex: str, gguf: str) -> None:
    Model.open(small).engine.logits(PROMPTS[0])
    gc.collect()
    before = resident_anonymous()
    engine = Model.open(vindex).engine
    engine.logits(PROMPTS[0])
    # An f32 vindex stays mapped: no copy of the weights is anonymous.
    assert resident_anonymous() - before < 200
    del engine
    live = Model.open(gguf)
    live.engine.logits(PROMPTS[0])
    weights = sum(p.numel() for p in live.engine.model.parameters()) * 4 / 2**20
    assert resident_anonymous() - before < weights + 200
    del live
    assert resident_anonymous() - before < 200


def test_a_dropped_engine_frees_its_weights(tiny_vindex) -> None:
    import weakref

    live = Model.open(Path(tiny_vindex("llama")))
    live.infer(PROMPTS[0], compare=True)
    live.trace(PROMPTS[0], decompose=True)
    model = weakref.ref(live.engine.model)
    gc.disable()
    try:
        del live
        assert model() is None
    finally:
        gc.enable()


def test_vindexes_of_every_family_predict_what_the_model_does(tiny: Tiny, tiny_vindex) -> None:
    live = Model.open(tiny_vindex(tiny.source.family.name))
    assert isinstance(live.source, Vindex)
    with torch.no_grad():
        expected = tiny.reference(torch.tensor([tiny.ids[2]])).logits[0, -1]
    assert torch.allclose(live.engine.logits(PROMPTS[2])[0], expected, atol=1e-4)


def test_texts_that_are_written_together_are_those_written_alone(tiny: Tiny) -> None:
    engine = tiny.engine
    options = [
        {"max_tokens": 9},
        {"max_tokens": 5, "temperature": 1.5, "seed": 3},
        {"max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 4},
        {"max_tokens": 0},
    ]
    prompts = [tiny.ids[0], tiny.ids[0][:2], [*tiny.ids[0], *tiny.ids[0][1:]], tiny.ids[0]]
    alone = [list(stream(engine, ids, **each)) for ids, each in zip(prompts, options, strict=True)]
    drafts = [Draft(engine, ids, **each) for ids, each in zip(prompts, options, strict=True)]
    found: list[list[GeneratedToken]] = [[] for _ in drafts]
    # The third comes while the others are being written; each leaves when it ends.
    for turn in range(5):
        group = [i for i in range(4) if turn or i != 2]
        for i, more in zip(group, advance([drafts[i] for i in group], 3), strict=True):
            found[i] += more
    assert all(draft.done for draft in drafts)
    for own, expected in zip(found, alone, strict=True):
        assert [t.token_id for t in own] == [t.token_id for t in expected]
        assert [t.text for t in own] == [t.text for t in expected]
        assert [t.p for t in own] == pytest.approx([t.p for t in expected], rel=1e-3, abs=1e-6)
