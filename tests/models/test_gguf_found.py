"""GGUF files of families that are found among transformers' modules: their layout, and what llama.cpp makes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import larql_duck as lq
from larql_duck.errors import ModelError
from larql_duck.extraction import extract
from larql_duck.inference.engine import Engine
from larql_duck.models.gguf_families import GGUF_FAMILIES
from larql_duck.models.gguf_file import GgufFile
from larql_duck.models.opening import open_model
from tests.families import PROMPTS, make_family

# Configs of one family whose files are laid out in different ways.
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("falcon", {}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("starcoder2", {}),
    ("gpt_neox", {"use_parallel_residual": False}),
]
# Sections of families.toml; of the others' windows llama.cpp has its own idea.
LISTED = ["llama", "qwen2", "qwen3", "gemma", "gpt2"]


def _compiled(name: str, root: Path, kind: str = "F32", **overrides: Any) -> tuple[Path, Path]:
    """The tiny model of that family, and the GGUF file that COMPILE wrote of it."""
    model = make_family(name, root / "model", **overrides)
    vindex = extract(model, root / "x.vindex", probe=False, in_basis="embedding")
    with lq.connect(vindex) as session:
        session.lql(f'COMPILE CURRENT INTO MODEL "{root / "x.gguf"}" FORMAT GGUF {kind}')
    return model, root / "x.gguf"


@pytest.mark.parametrize(("name", "overrides"), FORMS)
def test_what_is_written_is_read_back(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    model, file = _compiled(name, tmp_path, **overrides)
    source, original = open_model(file), open_model(model)
    source.validate()
    assert source.family.name == name and sorted(source.names()) == sorted(original.names())
    for tensor in original.names():
        torch.testing.assert_close(source.tensor(tensor), original.tensor(tensor), rtol=0, atol=0)
    ours, theirs = Engine.load(source), Engine.load(original)
    torch.testing.assert_close(ours.logits(list(PROMPTS)), theirs.logits(list(PROMPTS)), rtol=1e-4, atol=1e-4)


def test_llama_cpp_has_all_queries_before_keys(tmp_path: Path) -> None:
    """GPT-NeoX keeps each head's q, k and v together; a file has them one after another."""
    model, file = _compiled("gpt_neox", tmp_path)
    name = "gpt_neox.layers.1.attention.query_key_value"
    stored, original = GgufFile(file), open_model(model)
    for kind in ("weight", "bias"):
        rows, own = stored.tensor(f"blk.1.attn_qkv.{kind}"), original.tensor(f"{name}.{kind}")
        for part in range(3):
            for head in range(4):
                for row in range(8):
                    assert torch.equal(rows[part * 32 + head * 8 + row], own[head * 24 + part * 8 + row])


def test_what_gguf_has_no_words_for_is_refused_by_its_key(tmp_path: Path) -> None:
    model = make_family("starcoder2", tmp_path / "model", hidden_act="relu")
    vindex = extract(model, tmp_path / "x.vindex", probe=False, in_basis="embedding")
    with (
        lq.connect(vindex) as session,
        pytest.raises(ModelError, match=r"no way to say hidden_act.*SAFETENSORS"),
    ):
        session.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "x.gguf"}" FORMAT GGUF')
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize(
    ("name", "overrides"), [*FORMS, *((n, {}) for n in [*GGUF_FAMILIES, *LISTED] if n not in dict(FORMS))]
)
def test_llama_cpp_says_the_same_next_tokens(
    name: str, overrides: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    """npm install node-llama-cpp, and LARQL_DUCK_NODE_MODULES says where its node_modules is."""
    modules = os.environ.get("LARQL_DUCK_NODE_MODULES")
    if modules is None or shutil.which("node") is None:
        pytest.skip("needs node and node-llama-cpp, whose node_modules LARQL_DUCK_NODE_MODULES names")
    _, file = _compiled(name, tmp_path, kind, **overrides)
    engine = Engine.load(open_model(file))
    ids = [engine.encode(prompt).row(0) for prompt in PROMPTS]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    script = Path(__file__).parents[1] / "llama_cpp.mjs"
    command = ["node", str(script), modules, str(file), str(tmp_path / "ids.json")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    # BF16 is multiplied as such there, so tokens that are close may change places.
    apart = 1e-3 if kind == "F32" else 0.02
    for prompt, theirs in zip(PROMPTS, json.loads(said.stdout), strict=True):
        ours = engine.logits(prompt)[0].softmax(-1)
        for token, probability in theirs["probabilities"].items():
            assert abs(float(ours[int(token)]) - probability) < apart, prompt
        if kind == "F32":
            assert int(ours.argmax()) == theirs["token"], prompt
