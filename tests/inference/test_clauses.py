"""ABLATE, STEER and PATCH against hooks on a plain transformers model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.clauses import Ablate, Patch, Steer, edits_of, unlike_lengths
from larql_duck.inference.predict import infer_table
from larql_duck.inference.reference import Reference, spread
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS

PROBES = {
    "capital": ["The capital of France is", "The capital of Japan is", "The capital of Spain is"],
    "language": ["The language of France is", "The language of Italy is"],
    "currency": ["The currency of Germany is the"],
}


@contextlib.contextmanager
def hooked(tiny: Tiny, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """transformers' own model with a layer's output changed."""
    blocks = (
        tiny.reference.transformer.h
        if hasattr(tiny.reference, "transformer")
        else tiny.reference.model.layers
    )

    def hook(module: Any, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def plain(tiny: Tiny, prompt: str, hidden: bool = False, position: int = -1) -> torch.Tensor:
    """Last-position logits, or (hidden) every layer's output at a position, of transformers' own model."""
    ids = torch.tensor([tiny.engine.tokenizer.encode(prompt)])
    blocks = (
        tiny.reference.transformer.h
        if hasattr(tiny.reference, "transformer")
        else tiny.reference.model.layers
    )
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0, position])

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        with torch.no_grad():
            logits = tiny.reference(ids).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept) if hidden else logits


def ours(tiny: Tiny, prompt: str, *clauses: Any, reference: Reference | None = None) -> torch.Tensor:
    with tiny.engine.intervene(*edits_of(tiny.engine, prompt, clauses, reference)):
        return tiny.engine.logits(prompt)[0]


def test_patch_puts_another_prompts_residual_in_place(tiny: Tiny) -> None:
    last = tiny.engine.n_layers - 1
    for layer, position, source, at, taken in (
        (0, None, None, -1, -1),
        (1, 1, None, 1, 1),
        (1, None, 2, -1, 2),
        (1, 1, 2, 1, 2),
        (last, None, None, -1, -1),
    ):
        other = plain(tiny, PROMPTS[3], hidden=True, position=taken)

        def change(x: torch.Tensor, row: torch.Tensor = other[layer], at: int = at) -> torch.Tensor:
            x = x.clone()
            x[:, at] = row
            return x

        with hooked(tiny, layer, change):
            expected = plain(tiny, PROMPTS[2])
        got = ours(tiny, PROMPTS[2], Patch(PROMPTS[3], layer, position, source))
        assert torch.allclose(got, expected, atol=1e-4)
    assert torch.allclose(got, plain(tiny, PROMPTS[3]), atol=1e-4)


def test_one_position_in_prompts_of_unlike_length_is_told(llama: Tiny) -> None:
    longer = f"{PROMPTS[3]} and more"
    told = unlike_lengths(llama.engine, PROMPTS[3], [Patch(longer, 1, 1)])
    assert len(told) == 1 and "SOURCE POSITION" in told[0]
    same = [Patch(longer, 1), Patch(longer, 1, 1, 1), Patch(longer, 1, source=1), Patch(PROMPTS[3], 1, 1)]
    assert unlike_lengths(llama.engine, PROMPTS[3], same) == []


def test_steer_by_one_is_a_step_as_long_as_a_residual(tiny: Tiny) -> None:
    own = torch.stack([plain(tiny, p, hidden=True) for p in PROBES["capital"]])
    rest = PROBES["language"] + PROBES["currency"]
    others = torch.stack([plain(tiny, p, hidden=True) for p in rest])
    direction = own.mean(0) - others.mean(0)
    norm = torch.cat([own, others]).norm(dim=-1).mean(0)

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, -1] += 2.5 * norm[1] * direction[1] / direction[1].norm()
        return x

    with hooked(tiny, 1, change):
        expected = plain(tiny, PROMPTS[0])
    reference = Reference(tiny.engine, lambda: PROBES)
    got = ours(tiny, PROMPTS[0], Steer("Capital", 2.5, 1), reference=reference)
    assert torch.allclose(got, expected, atol=1e-3)
    assert not torch.allclose(got, plain(tiny, PROMPTS[0]), atol=1e-2)


def test_ablation_by_mean_sets_the_mean_of_the_probe_prompts(tiny: Tiny) -> None:
    engine = tiny.engine
    texts = [p for prompts in PROBES.values() for p in prompts]
    rows = []
    for text in texts:
        activation = engine.capture(text, ["activation"], positions="all").need("activation")
        rows.append(activation[:, 0, 1:])
    means = torch.cat(rows, dim=1).mean(1)
    reference = Reference(engine, lambda: PROBES)
    assert torch.allclose(reference.means, means, atol=1e-4)
    got = ours(tiny, PROMPTS[0], Ablate(((0, 3), (2, 7)), "mean"), reference=reference)
    with engine.intervene(*edits_of(engine, PROMPTS[0], [Ablate(((0, 3), (2, 7)))])):
        zero = engine.logits(PROMPTS[0])[0]
    assert not torch.allclose(got, zero, atol=1e-3)


def test_clauses_add_up_and_leave_nothing_behind(llama: Tiny) -> None:
    engine = llama.engine
    before = infer_table(engine, PROMPTS[0])
    reference = Reference(engine, lambda: PROBES)
    clauses = [Ablate(((0, 3),)), Steer("capital", 1.0, 0), Patch(PROMPTS[3], 2)]
    edits = edits_of(engine, PROMPTS[0], clauses, reference)
    both = infer_table(engine, PROMPTS[0], edits=edits)
    # A patch of the last residual decides alone.
    assert both["token_id"].to_pylist() == infer_table(engine, PROMPTS[3])["token_id"].to_pylist()
    assert infer_table(engine, PROMPTS[0]).equals(before)


def test_means_without_probes_come_from_single_words(llama: Tiny) -> None:
    means = Reference(llama.engine).means
    assert means.shape == (llama.engine.n_layers, llama.engine.n_features[0])
    assert float(means.abs().max()) > 0.01


def test_new_probes_are_seen(llama: Tiny) -> None:
    probes = {"capital": PROBES["capital"]}
    reference = Reference(llama.engine, lambda: probes)
    with pytest.raises(LarqlError, match="no other one was probed"):
        reference.direction("capital")
    probes["language"] = PROBES["language"]
    assert reference.direction("capital").shape == (llama.engine.n_layers, llama.engine.hidden)


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        (Ablate(((9, 0),)), "layers 0 to 2"),
        (Ablate(((0, 64),), "mean"), "features 0 to 63"),
        (Steer("capitol", 1.0, 0), "did you mean capital"),
        (Steer("xyzzy", 1.0, 0), "there are capital, currency, language"),
        (Steer("capital", 1.0, 3), "layers 0 to 2"),
        (Patch("The", -1), "layers 0 to 2"),
        (Patch("", 0), "empty"),
        (Patch("The", 0, 70), "positions 0 to"),
        (Patch("The", 0, 0, 70), "source position 70"),
    ],
)
def test_clauses_out_of_range(llama: Tiny, clause: Any, words: str) -> None:
    reference = Reference(llama.engine, lambda: PROBES)
    with pytest.raises(LarqlError, match=words):
        edits_of(llama.engine, PROMPTS[0], [clause], reference)


def test_prompts_are_spread_evenly() -> None:
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(["a"], 4) == ["a"]
