"""Tiny vindexes in which facts can be inserted, and what is asked of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from larql_duck.inference.fact_prompts import answer_ids
from larql_duck.session import Session, connect
from tests.tiny import make_tiny

FAMILIES = ["llama", "gemma3_text", "qwen3"]
# Random attention hardly reads a subject from afar, so the prompt ends with it.
TEMPLATE = "The capital {}"


@pytest.fixture(scope="session")
def feature_vindex(tmp_path_factory: pytest.TempPathFactory):
    """A function family -> vindex of level all of a tiny model that is wide enough to tell subjects apart."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            from larql_duck.extraction import extract

            base = tmp_path_factory.mktemp("features")
            model = make_tiny(family, base / "model", hidden=128, intermediate=64)
            if family == "gemma3_text":
                _louder(model)
            made[family] = extract(model, base / "m.vindex", level="all", in_basis="embedding", probe=False)
        return made[family]

    return get


def _louder(model: Path) -> None:
    """None; the norm behind each FFN lets more through: as it is, no FFN could turn the model's answer."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if "post_feedforward_layernorm" in name:
            tensor += 8.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def session(request: pytest.FixtureRequest, feature_vindex, tmp_path: Path):
    """A session on a copy of the vindex of the family given as parameter; the copy may be written to."""
    import torch

    torch.set_num_threads(1)
    path = tmp_path / "m.vindex"
    shutil.copytree(feature_vindex(request.param), path)
    with connect(path) as made:
        yield made


def insert(session: Session, facts, tail: str = f'AT LAYER 1 TEMPLATE "{TEMPLATE}"'):
    """The result of an INSERT of these facts."""
    values = ", ".join(f'("{e}", "{r}", "{t}")' for e, r, t in facts)
    return session.lql(f"INSERT INTO EDGES (entity, relation, target) VALUES {values} {tail};")


def says(session: Session, prompt: str, target: str) -> bool:
    """Whether greedy decoding gives the whole target."""
    engine = session.engine()
    ids = engine.tokenizer.encode(prompt)
    for token in answer_ids(engine.tokenizer, prompt, target):
        if int(engine.logits(engine.pad(ids))[0].argmax()) != token:
            return False
        ids.append(token)
    return True
