from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from larql_duck.commands.opening import connect
from larql_duck.inference.engine import Engine
from larql_duck.patches.operations import DeleteOp
from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.store import Vindex
from tests.editing.tables import FAMILIES, edited_model
from tests.edits import PROMPTS, insert, some


def logits(engine: object, prompt: str) -> torch.Tensor:
    found: torch.Tensor = engine.capture(engine.encode(prompt), ["residual"]).need("logits")  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_under_edits_are_those_of_a_model_with_the_edits_written_in(
    family: str, tiny_vindex: Callable[[str], Path], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    from larql_duck.inference.model import Model

    vindex = Vindex.open(tiny_vindex(family))
    operations = some(vindex)
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [operations])
    written = Model.open(edited_model(tiny_model(family), tmp_path / "edited", operations)).engine
    engine = Engine.load(vindex)
    base = {p: logits(engine, p) for p in PROMPTS}
    engine.apply_overlay(overlay)
    for prompt in PROMPTS:
        found = logits(engine, prompt)
        assert torch.allclose(found, logits(written, prompt), atol=1e-4)
        assert not torch.equal(found, base[prompt])
    engine.apply_overlay(None)
    assert all(torch.equal(logits(engine, p), base[p]) for p in PROMPTS)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
def test_without_edits_everything_is_the_tensor_that_was_loaded(
    family: str, tiny_vindex: Callable[[str], Path]
) -> None:
    vindex = Vindex.open(tiny_vindex(family))
    engine = Engine.load(vindex)
    before = {name: p.data_ptr() for name, p in engine.model.named_parameters()}
    name, sizes = engine.fingerprint, list(engine.n_features)
    engine.apply_overlay(Overlay.empty(vindex.n_features, vindex.hidden))
    assert engine.overlay is None
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [some(vindex)])
    with engine.under(overlay):
        changed = {n for n, p in engine.model.named_parameters() if p.data_ptr() != before[n]}
        assert changed and all(any(f".{layer}." in n for layer in overlay.layers()) for n in changed)
        assert engine.fingerprint != name and engine.n_features == overlay.n_features
    assert {n: p.data_ptr() for n, p in engine.model.named_parameters()} == before
    assert (engine.fingerprint, engine.n_features) == (name, sizes)


def test_layers_of_unequal_width_are_shown_with_zeros(tiny_vindex: Callable[[str], Path]) -> None:
    with connect(tiny_vindex("llama")) as s:
        vindex = s.vindex
        n = vindex.n_features[1]
        s.patches.append([insert(vindex, "Mu", "Ra"), insert(vindex, "Atlantis", "Zeus", number=1, seed=50)])
        engine = s.model.engine
        found = engine.capture(engine.encode(PROMPTS[0]), ["gate", "activation"])
        activation = found.need("activation")
        assert activation.shape[-1] == n + 2
        assert not activation[0, :, n:].any() and activation[1, :, n:].all()
        explained = s.lql(f'EXPLAIN INFER "{PROMPTS[0]}" TOP 500').arrow().to_pylist()
        assert max(r["feature"] for r in explained if r["layer"] == 0) < n
        assert {n, n + 1} <= {r["feature"] for r in explained if r["layer"] == 1}
        assert s.lql(f'TRACE "{PROMPTS[0]}" DECOMPOSE').rows()
        assert s.lql(f'INFER "{PROMPTS[0]}" ABLATE (1, {n + 1})').rows()


def test_an_engine_that_is_loaded_later_starts_under_the_edits(tiny_vindex: Callable[[str], Path]) -> None:
    ask = f'INFER "{PROMPTS[0]}" TOP 400'
    with connect(tiny_vindex("qwen2")) as s, connect(tiny_vindex("qwen2")) as t:
        edits = [DeleteOp(layer, f) for layer in range(2) for f in range(8)]
        base = s.lql(ask).rows()
        s.patches.append(edits)
        t.patches.append(edits)
        assert s.lql(ask).rows() == t.lql(ask).rows() != base
        s.patches.rollback()
        t.patches.rollback()
        assert s.lql(ask).rows() == t.lql(ask).rows() == base
