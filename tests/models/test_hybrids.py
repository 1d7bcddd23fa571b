"""Hybrids: layers without attention or without an FFN, and caches of states, which padding and other prompts must not reach."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import larql_duck as lq
from larql_duck.errors import LarqlError, ModelError
from larql_duck.extraction import extract
from larql_duck.inference.attribution import attribute
from larql_duck.inference.capture import FOR_ATTRIBUTION
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Heads, following, joined, prefill, read_prompts, run_heads
from larql_duck.models.called import find_called
from larql_duck.models.finding import find_family
from larql_duck.models.opening import open_model
from tests.families import PROMPTS, listed_types, make_family, tiny_config

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
# Decoders with FFNs that people use: what was asked of this package by name.
WANTED = [
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "granitemoe", "deepseek_v2", "deepseek_v3",
    "gpt_oss", "glm4_moe", "ernie4_5_moe",
    "hunyuan_v1_moe", "llama4_text", "phimoe", "minimax", "dots1", "afmoe", "exaone_moe", "gpt_neox",
    "gptj", "gpt_neo", "opt", "bloom", "olmo", "olmo2", "olmo3", "phi",
    "phi3", "gemma3n_text", "gemma4_text", "falcon", "mpt", "starcoder2", "stablelm", "cohere", "cohere2",
    "glm", "glm4", "nemotron", "exaone4", "arcee", "apertus", "nanochat", "seed_oss",
    "bitnet", "persimmon", "xglm", "gpt_bigcode", "codegen", "vaultgemma", "jais2", "lfm2", "lfm2_moe",
    "jamba", "falcon_h1", "granitemoehybrid",
    "recurrent_gemma",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers: Mamba, FFN, attention, FFN."""
    return make_family("nemotron_h", tmp_path_factory.mktemp("hybrid") / "model")


@pytest.fixture(scope="module")
def vindex(model: Path) -> Path:
    return extract(model, model.parent / "model.vindex", probe=False, context_tokens=20)


@pytest.fixture
def session(vindex: Path) -> Iterator[lq.Session]:
    with lq.connect(vindex) as session:
        yield session


def test_layers_say_what_they_are(session: lq.Session) -> None:
    rows = session.sql("SELECT layer, n_features, mixer FROM lq.layers ORDER BY layer").fetchall()
    assert rows == [(0, 0, "NemotronHMamba2Mixer"), (1, 64, None), (2, 0, "attention"), (3, 64, None)]
    features = session.sql("SELECT layer, count(*) FROM lq.features GROUP BY 1 ORDER BY 1").fetchall()
    assert features == [(1, 64), (3, 64)]
    assert [row["n_features"] for row in session.lql("SHOW LAYERS").dicts()] == [0, 64, 0, 64]
    assert len(session.lql("SHOW FEATURES 0")) == 0
    assert {row["layer"] for row in session.lql('WALK "France"').dicts()} == {1, 3}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ('INFER "The capital" ABLATE (0, 3)', "layer 0 has no FFN and no features"),
        (
            'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Paris") AT LAYER 2',
            "layer 2 has no FFN, so that no feature has a place in it; those that have one: 1, 3",
        ),
    ],
)
def test_features_of_a_layer_without_an_ffn_are_refused(
    statement: str, said: str, session: lq.Session
) -> None:
    with pytest.raises(LarqlError, match=said):
        session.lql(statement)


def test_parts_of_a_logit_with_what_mixes_without_heads(session: lq.Session) -> None:
    engine = session.model.engine
    capture = engine.capture(PROMPTS[0], {*FOR_ATTRIBUTION, "heads"})
    parts = attribute(engine, capture, [5], heads=True)
    assert parts.heads is not None
    torch.testing.assert_close(parts.heads.sum(-1) + parts.attn_bias, parts.attention, atol=1e-4, rtol=1e-4)
    rows = session.lql(f'EXPLAIN INFER "{PROMPTS[0]}" WITH ATTENTION').dicts()
    kinds = {(row["layer"], row["kind"]) for row in rows if row["kind"] in ("head", "mixer", "attention")}
    assert kinds == {(0, "mixer"), (2, "head"), (2, "attention")}
    traced = session.lql(f'TRACE "{PROMPTS[0]}" DECOMPOSE').dicts()
    assert {row["layer"] for row in traced if row["head"] is not None} == {2}


def test_what_a_layer_lacks_is_not_written(session: lq.Session, model: Path, tmp_path: Path) -> None:
    session.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "out"}" FORMAT SAFETENSORS')
    mine, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "out", model))
    # transformers saves the family under its older prefix.
    renamed = {name.replace("backbone.", "model.", 1): tensor for name, tensor in theirs.items()}
    assert {name: t.shape for name, t in mine.items()} == {name: t.shape for name, t in renamed.items()}


@pytest.fixture(scope="module", params=["lfm2", "qwen3_next", "nemotron_h", "minimax"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(open_model(make_family(request.param, tmp_path_factory.mktemp("states"))))


def alone(engine: Engine, ids: list[int]) -> torch.Tensor:
    """The logits of a prompt that runs whole and by itself."""
    return engine.logits(engine.pad(ids))[0]


def close(found: torch.Tensor, wanted: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, torch.stack(wanted), atol=2e-5, rtol=1e-4)


def test_states_are_each_prompts_own(engine: Engine) -> None:
    """Prompts of unlike lengths, some of which begin alike; every way to go on is that of the prompt by itself."""
    assert engine.stateful
    ids = [engine.encode(p).row(0) for p in (*PROMPTS, PROMPTS[0] + " not", "hot")]
    assert len({len(row) for row in ids}) > 2
    prompts = [*PROMPTS, PROMPTS[0] + " not", "hot"]
    wanted = [alone(engine, row) for row in ids]
    prefix = prefill(engine, prompts)
    # Twice, and of some rows twice: a step changes nobody's state.
    for _ in range(2):
        close(prefix.step(), wanted)
    rows = torch.tensor([2, 0, 2])
    close(prefix.step(rows), [wanted[i] for i in rows])
    logits, read = read_prompts(engine, prompts)
    close(logits, wanted)
    tokens = torch.arange(7, 7 + len(prompts))
    longer = read.then(tokens)
    behind = [alone(engine, [*row, int(t)]) for row, t in zip(ids, tokens, strict=True)]
    close(longer.step(), behind)
    close(joined([longer, prefix]).step(), [*behind, *wanted])
    further = longer.advanced()[1]
    both = following([(read, tokens[rows], rows), (further, tokens[:1], torch.tensor([0]))])
    close(both.step(), [*(behind[i] for i in rows), alone(engine, [*ids[0], int(tokens[0]), int(tokens[0])])])


def test_heads_are_read_once_and_gone_on_from(engine: Engine) -> None:
    texts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    prompts = [f"{text}{rest}" for text, rest in zip(texts, (" not", " the best", " old"), strict=True)]
    ids = [engine.encode(p).row(0) for p in prompts]
    heads = Heads(engine).of(texts, ids)
    assert heads[0] is not None and heads[0] is heads[1]
    close(prefill(engine, prompts, heads).step(), [alone(engine, row) for row in ids])
    # A state cannot be cut: what has only its beginning in common with a head begins anew.
    [other] = run_heads(engine, [ids[0][:3]], [heads[0]])
    assert other is not None and len(other.ids) == 3
    close(prefill(engine, [prompts[0]], [other]).step(), [alone(engine, ids[0])])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("recurrent_gemma", "keeps its states in its modules instead of a cache"),
        ("dots3_note_text", "caches an index beside keys and values"),
        ("rwkv", "is without attention: its layers have RwkvSelfAttention"),
    ],
)
def test_states_that_nobody_can_fork_are_refused(name: str, what: str) -> None:
    with pytest.raises(ModelError) as refusal:
        find_family(tiny_config(name, 300).to_dict())
    assert f"model_type '{name}' {what}" in str(refusal.value) and "\n" not in str(refusal.value)


def test_activations_that_are_called_are_known_by_what_they_give() -> None:
    class Ffn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = (torch.nn.Linear(4, 4, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.w2(torch.nn.functional.gelu(self.w1(x), approximate="tanh") * self.w3(x))
            return out

    class Other(Ffn):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.w2(self.w1(x).softmax(-1) * self.w3(x))
            return out

    assert find_called([Ffn()]) == ("gelu_pytorch_tanh", 1.0, 1.0)
    assert find_called([Other()]) is None


@pytest.mark.parametrize(
    ("name", "text", "vision"),
    [
        ("mistral3", "mistral", "pixtral"),
        pytest.param("llava", "llama", "clip_vision_model", marks=pytest.mark.extras),
        pytest.param("internvl", "qwen2", "internvl_vision", marks=pytest.mark.extras),
        pytest.param("idefics3", "llama", "idefics3_vision", marks=pytest.mark.extras),
        pytest.param("smolvlm", "llama", "smolvlm_vision", marks=pytest.mark.extras),
        pytest.param("gemma4", "gemma4_text", "gemma4_vision", marks=pytest.mark.extras),
        pytest.param("lfm2_vl", "lfm2", "siglip2_vision_model", marks=pytest.mark.extras),
    ],
)
def test_the_text_half_says_what_the_whole_model_does(
    name: str, text: str, vision: str, tmp_path: Path
) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    make_family(text, tmp_path / "text")
    vocab = json.loads((tmp_path / "text" / "config.json").read_text())["vocab_size"]
    inner = tiny_config(text, vocab, pad_token_id=0).to_dict()
    tower = CONFIG_MAPPING[vision]()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for key, value in (sizes | {"image_size": 16, "patch_size": 8, "head_dim": 8}).items():
        if hasattr(tower, key):
            setattr(tower, key, value)
    config = CONFIG_MAPPING[name](text_config=inner, vision_config=tower.to_dict())
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    for file in (tmp_path / "text").glob("tokenizer*"):
        (tmp_path / "whole" / file.name).write_bytes(file.read_bytes())
    source = open_model(tmp_path / "whole")
    source.validate()
    assert any("not part of the text model" in notice for notice in source.notices)
    engine = Engine.load(source)
    for prompt in PROMPTS:
        ids = engine.encode(prompt).row(0)
        with torch.inference_mode():
            logits = whole(input_ids=torch.tensor([ids])).logits[0, -1].float()
        torch.testing.assert_close(alone(engine, ids).softmax(-1), logits.softmax(-1), atol=1e-5, rtol=0)


def test_the_page_lists_what_was_asked_for() -> None:
    lines = PAGE.read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")][2:]
    read = {line.split("|")[1].strip().strip("*") for line in table}
    [counts] = [line for line in lines if line.startswith("Read are ")]
    assert counts == f"Read are {len(read)} of {len(listed_types())} model types."
    assert len(read) == 110
    missing = sorted(set(WANTED) - read)
    assert missing == ["gemma3n_text", "recurrent_gemma"]
    assert 1 - len(missing) / len(WANTED) >= 0.95
    assert all(any(f"'{name}'" in line for line in lines if line.startswith("* ")) for name in missing)


def test_transformers_hints_at_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers.utils import logging

    logging.warning_once.cache_clear()
    model = make_family("lfm2", tmp_path / "model")
    with caplog.at_level("WARNING", "transformers"):
        extract(model, tmp_path / "out.vindex", probe=False)
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
