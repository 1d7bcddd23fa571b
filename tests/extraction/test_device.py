"""Extraction on a graphics card: what it measures is the processor's, but for ties and last bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from larql_duck.cli.app import run
from larql_duck.extraction import extract
from larql_duck.extraction.resources import Resources
from larql_duck.vindex.store import Vindex
from tests.tiny import make_tiny

no_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA graphics card")


def test_a_device_that_is_not_there_is_refused_before_any_work(
    tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = str(tmp_path / "x.vindex")
    assert run(["extract", str(tiny_model("llama")), "-o", out, "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "error: device 'cuda' is not available here; use device 'cpu'\n"
    assert not list(tmp_path.iterdir())
    assert Resources(device="auto").settings().torch_device() == "cpu"
    monkeypatch.setenv("LARQL_DUCK_DEVICE", "auto")
    assert Resources().settings().device == "auto" and Resources(device="cpu").settings().device == "cpu"


@no_card
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("basis", ["context", "embedding"])
def test_a_graphics_card_measures_what_the_processor_does(family: str, basis: str, tmp_path: Path) -> None:
    model = make_tiny(family, tmp_path / "m")
    cpu, card = (
        Vindex.open(extract(model, tmp_path / f"{d}.vindex", probe=False, in_basis=basis, device=d))
        for d in ("cpu", "cuda")
    )
    left, right = (v.table("feature_tokens").to_pandas() for v in (cpu, card))
    for name in ("score", "z", "activation"):
        np.testing.assert_allclose(left[name], right[name], rtol=1e-3, atol=1e-4)
    assert (left["token_id"] == right["token_id"]).mean() > 0.99
    for name in ("gate_mean", "gate_std", "down_norm"):
        a, b = (v.table("features")[name].to_numpy() for v in (cpu, card))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@no_card
def test_f32_is_f32_there() -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
