"""Rotary frequencies that follow the length: each prompt's logits are those of transformers' on that prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.generate import greedy, stream
from larql_duck.inference.predict import infer_table
from larql_duck.inference.prefix import prefill
from larql_duck.probing.answers import Asked, ask
from tests.inference.conftest import Tiny
from tests.tiny import make_tiny

# The frequencies change behind 16 tokens.
SWITCH = 16
KINDS: dict[str, dict[str, Any]] = {
    "longrope": {
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SWITCH,
            "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 8.0, 16.0, 32.0],
        },
    },
    "dynamic": {
        "max_position_embeddings": SWITCH,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(make_tiny("llama", tmp_path_factory.mktemp("rope") / "m", **KINDS[request.param]))


def texts(*lengths: int) -> list[list[int]]:
    """Token ids of texts of these lengths, that begin alike."""
    return [[260 + (7 * i) % 130 for i in range(length)] for length in lengths]


def alone(tiny: Tiny, ids: list[int]) -> torch.Tensor:
    """Logits of one whole pass of transformers, [vocab], by a model that saw nothing else before."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=2e-4)


def test_a_prompt_does_not_feel_who_shares_its_batch(tiny: Tiny) -> None:
    rows = texts(5, SWITCH, SWITCH + 1, 40, 20)
    expected = [alone(tiny, ids) for ids in rows]
    for _ in range(2):  # nor what ran before
        assert all(map(close, tiny.engine.logits(pad(rows)), expected))
        assert all(map(close, prefill(tiny.engine, pad(rows)).step(), expected))
    for ids, logits in zip(rows, expected, strict=True):
        assert close(tiny.engine.logits(tiny.engine.pad(ids))[0], logits)


def test_a_cached_beginning_is_computed_anew_where_the_frequencies_change(tiny: Tiny) -> None:
    rows = texts(SWITCH - 2, SWITCH, 9)
    written = greedy(prefill(tiny.engine, pad(rows)), max_tokens=4, stop=lambda i, ids: False)
    for ids, more in zip(rows, written, strict=True):
        whole = list(ids)
        for token, p in zip(more.ids, more.p, strict=True):
            probabilities = alone(tiny, whole).softmax(-1)
            assert (int(probabilities.argmax()), float(probabilities.max())) == (
                token,
                pytest.approx(p, abs=1e-4),
            )
            whole.append(token)
    first = texts(SWITCH - 1)[0]
    streamed = list(stream(tiny.engine, first, max_tokens=3))
    assert [piece.token_id for piece in streamed] == list(
        greedy(prefill(tiny.engine, pad([first])), max_tokens=3, stop=lambda i, ids: False)[0].ids
    )[: len(streamed)]


def test_an_answer_does_not_feel_a_long_name_beside_it(tiny: Tiny) -> None:
    short, long = texts(6, 40)
    together = ask(tiny.engine, [Asked(short), Asked(long)])[0]
    single = ask(tiny.engine, [Asked(short)])[0]
    assert together.predicted_id == single.predicted_id and together.p == pytest.approx(single.p, abs=1e-5)


def test_dynamic_frequencies_know_no_longest_prompt(tiny: Tiny) -> None:
    kind = tiny.reference.config.rope_parameters["rope_type"]
    assert tiny.engine.context == (None if kind == "dynamic" else 64)
    prompt = "The capital of France is " + "the city of Paris in France and " * 4
    ids = tiny.engine.encode(prompt).row(0)
    assert SWITCH < len(ids) < 64
    best = int(alone(tiny, ids).argmax())
    assert infer_table(tiny.engine, prompt, top=1)["token_id"].to_pylist() == [best]


def test_a_text_at_the_end_of_the_context_stops_no_other(tiny_of: Callable[[str], Tiny]) -> None:
    engine = tiny_of("llama").engine
    assert engine.context == 128 and not engine.rope.modules
    short, long = texts(5, 126)
    both = greedy(prefill(engine, pad([short, long])), max_tokens=6, stop=lambda i, ids: False)
    assert [len(c.ids) for c in both] == [6, 3]
    assert (
        both[0].ids == greedy(prefill(engine, pad([short])), max_tokens=6, stop=lambda i, ids: False)[0].ids
    )
