"""Products by oneDNN beside torch's own: the same numbers, whatever is copied, and gradients as ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from larql_duck.inference import products
from larql_duck.inference.engine import Engine
from larql_duck.inference.products import QuickLinear, quicken
from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.store import Vindex
from tests.edits import PROMPTS, some

ROOM = 1 << 24


def quick(linear: nn.Linear, room: int = ROOM) -> QuickLinear:
    model = nn.Sequential(linear)
    quicken(model, room)
    (made,) = model
    assert isinstance(made, QuickLinear)
    return made


def linear(bias: bool = True, inside: int = 384, outside: int = 320) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(inside, outside, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (5, 4), (0, 2)])
def test_products_are_those_of_torch(bias: bool, shape: tuple[int, int]) -> None:
    plain = linear(bias)
    x = torch.randn(*shape, 384)
    expected = nn.functional.linear(x, plain.weight, plain.bias)
    made = quick(plain)
    with torch.inference_mode():
        for _ in range(2 * products._USES):
            assert torch.allclose(made(x), expected, atol=1e-5)
            # As the last positions of longer texts lie in memory.
            wider = torch.cat([torch.zeros(shape[0], 1, 384), x], 1)
            assert torch.allclose(made(wider[:, 1:]), expected, atol=1e-5)


def test_a_copy_changes_no_bit_and_keeps_to_its_room() -> None:
    plain = linear()
    x = torch.randn(6, 384)
    n_bytes = 4 * plain.weight.numel()
    for room, copied in ((n_bytes, True), (n_bytes - 1, False)):
        made = quick(linear(), room)
        with torch.inference_mode():
            first = made(x)
            assert made._laid_out is None
            for _ in range(products._USES):
                assert torch.equal(made(x), first)
        assert (made._laid_out is not None) == copied


def test_another_matrix_is_multiplied_at_once() -> None:
    made = quick(linear())
    x = torch.randn(6, 384)
    with torch.inference_mode():
        for _ in range(products._USES):
            made(x)
        assert made._laid_out is not None
        loaded: Any = made.weight
        made._parameters["weight"] = nn.Parameter(2 * loaded, requires_grad=False)
        assert torch.allclose(made(x), nn.functional.linear(x, 2 * loaded, made.bias), atol=1e-5)
        made._parameters["weight"] = loaded
        assert torch.allclose(made(x), nn.functional.linear(x, loaded, made.bias), atol=1e-5)


def test_gradients_flow() -> None:
    made = quick(linear())
    x = torch.randn(6, 384, requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, made.weight.sum(0).expand(6, -1), atol=1e-5)


def test_a_model_says_the_same_by_them(
    tiny_vindex: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vindex = Vindex.open(tiny_vindex("llama"))
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [some(vindex)])

    def logits(engine: Engine) -> list[torch.Tensor]:
        own = [engine.logits(PROMPTS)]
        with engine.under(overlay):
            own.append(engine.logits(PROMPTS))
        return own

    expected = logits(Engine.load(vindex, room=0))
    monkeypatch.setattr(products, "_MATRIX", 0)
    engine = Engine.load(vindex, room=ROOM)
    for _ in range(products._USES + 1):
        for one, other in zip(logits(engine), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    copied = [m for m in engine.model.modules() if isinstance(m, QuickLinear) and m._laid_out is not None]
    assert len(copied) > 7 * (vindex.n_layers - 1)
