"""COMPILE asks every edited fact again in what it wrote: what does not survive is named, with p before and after."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from larql_duck.commands.opening import connect
from larql_duck.commands.rows import appended
from larql_duck.editing.inserting import delete_facts
from larql_duck.errors import ModelError
from larql_duck.inference.engine import Engine
from larql_duck.inference.layered import layered_engine
from larql_duck.inference.model import open_source
from larql_duck.inference.scoring import target_probabilities
from larql_duck.inference.settings import Settings
from larql_duck.models.gguf_layout import GgufLayout
from larql_duck.models.opening import open_model
from larql_duck.session import Session
from tests.conftest import Make
from tests.editing.features import TEMPLATE, insert
from tests.edits import PROMPTS

FACTS = [("France", "capital", "Tokyo"), ("Spain", "capital", "Rome")]
OUT = {
    "VINDEX": 'VINDEX "{}"',
    "SAFETENSORS": 'MODEL "{}" FORMAT SAFETENSORS',
    "GGUF": 'MODEL "{}" FORMAT GGUF',
    "Q8_0": 'MODEL "{}.gguf" FORMAT GGUF Q8_0',
    "Q4_0": 'MODEL "{}.gguf" FORMAT GGUF Q4_0',
}


def asked(result) -> dict[str, dict]:
    return {row["name"]: row for row in result.dicts() if row["kind"] == "fact"}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3"])
def test_a_layered_engine_computes_what_a_loaded_one_does_and_keeps_no_layer(
    family: str, tiny_vindex: Make
) -> None:
    source = open_source(tiny_vindex(family))
    engine = layered_engine(source, Settings())
    expected = Engine.load(source).logits(PROMPTS)
    for _ in range(2):
        assert torch.allclose(engine.logits(PROMPTS), expected, atol=1e-5)
        kept = {name for name, p in engine.model.named_parameters() if not p.is_meta}
        assert kept and not any(source.family.layer_prefix(i) in name for name in kept for i in range(3))


@pytest.mark.parametrize("session", ["llama"], indirect=True)
@pytest.mark.parametrize("out", OUT)
def test_every_edited_fact_is_asked_in_what_was_written(out: str, session: Session, tmp_path: Path) -> None:
    insert(session, FACTS)
    result = session.lql(f"COMPILE CURRENT INTO {OUT[out].format(tmp_path / 'out')}")
    rows = asked(result)
    place = tmp_path / ("out.gguf" if "_0" in out else "out")
    written = Engine.load(open_source(place / "model.gguf" if out == "GGUF" else place))
    wanted = [(TEMPLATE, entity, target) for entity, _, target in FACTS]
    before = target_probabilities(session.model.engine, wanted)
    after = target_probabilities(written, wanted)
    for (entity, relation, target), b, a in zip(FACTS, before, after, strict=True):
        row = rows[f"{entity} {relation} {target}"]
        assert row["p_before"] == pytest.approx(b.p, abs=1e-4) and b.greedy
        assert row["p_after"] == pytest.approx(a.p, abs=1e-4)
        assert row["detail"] == ("holds" if a.greedy else "lost")
        assert (row["layer"], row["feature"]) == (1, session.patches.overlay.fact(entity, relation).feature)
    held = sum(a.greedy for a in after)
    assert any(n.startswith(f"{held} of 2 edited facts hold in what was written") for n in result.notices)
    # Its own number type is the session's.
    assert held == 2 or out == "Q4_0"


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_fact_that_the_number_type_loses_is_named(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(session, FACTS)
    lost = session.patches.overlay.fact("Spain", "capital").feature
    original = GgufLayout.as_stored

    def coarse(layout: GgufLayout, tensor: torch.Tensor, name: str) -> torch.Tensor:
        made = original(layout, tensor, name).clone()
        if name == "model.layers.1.mlp.down_proj.weight":
            made[:, lost] = 0
        return made

    monkeypatch.setattr(GgufLayout, "as_stored", coarse)
    result = session.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "m.gguf"}" FORMAT GGUF Q8_0')
    rows = asked(result)
    assert rows["France capital Tokyo"]["detail"] == "holds"
    row = rows["Spain capital Rome"]
    assert row["detail"] == "lost" and row["p_after"] < 0.2 < row["p_before"]
    [said] = [n for n in result.notices if n.startswith("lost: ")]
    assert f"Spain capital Rome (p {row['p_before']:.2g} -> {row['p_after']:.2g})" in said
    assert "France" not in said and said.endswith("; write a wider number type, such as F16")


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_facts_of_an_earlier_compilation_and_deletions_are_asked_too(
    session: Session, tmp_path: Path
) -> None:
    insert(session, [FACTS[0]])
    session.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "one"}"')
    with connect(tmp_path / "one") as other:
        edits = delete_facts(other.workspace, [("Spain", "capital")])
        appended(other.patches, edits)
        gone = other.patches.overlay.fact("Spain", "capital").target
        rows = asked(other.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "two"}" FORMAT SAFETENSORS'))
        other.patches.rollback()
    assert rows["France capital Tokyo"]["detail"] == "holds"
    deleted = rows[f"Spain capital not {gone}"]
    assert deleted["p_after"] == pytest.approx(deleted["p_before"], abs=1e-4)
    # A directory that is compiled unopened is asked without a second model in memory.
    result = session.lql(f'COMPILE "{tmp_path / "one"}" INTO MODEL "{tmp_path / "three"}"')
    assert asked(result)["France capital Tokyo"]["detail"] == "holds"


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_nothing_is_asked_where_nothing_was_edited(session: Session, tmp_path: Path) -> None:
    result = session.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "out"}"')
    assert not asked(result) and not session.model.loaded and not result.notices


# -- number types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_type_that_cannot_be_quantised_to_names_those_that_can(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        if kind.name == "Q4_K":
            raise NotImplementedError
        return original(data, kind)

    original = gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", quantize)
    with pytest.raises(ModelError, match=r"Q4_K: .* one of F32, F16, Q4_0, Q8_0, BF16 \(llama.cpp's"):
        session.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "m.gguf"}" FORMAT GGUF Q4_K')
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_four_bits_for_matrices_eight_for_the_head(session: Session, tmp_path: Path) -> None:
    session.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "m.gguf"}" FORMAT GGUF Q4_0')
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["output.weight"] == "Q8_0" and kinds["token_embd.weight"] == "Q4_0"
    assert kinds["blk.1.ffn_down.weight"] == "Q4_0" and kinds["output_norm.weight"] == "F32"
    assert open_model(tmp_path / "m.gguf").config["hidden_size"] == 128
