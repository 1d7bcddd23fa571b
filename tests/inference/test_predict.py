"""INFER against transformers, the sparse walk against gate search, and what a prompt must not break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.gate_search import GateSearch
from larql_duck.inference.interventions import ResidualEdit, Sparse
from larql_duck.inference.predict import infer_table, prediction, predictions
from larql_duck.inference.targets import find_target, top_tokens
from larql_duck.inference.whole_words import MOST, word_end
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.vindex.store import Vindex
from tests.conftest import UPSTREAM
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS


@pytest.fixture(scope="module")
def upstream() -> Engine:
    return Engine.load(Vindex.open(UPSTREAM / "all-f32.vindex"))


def test_the_table_is_what_transformers_predicts(tiny: Tiny) -> None:
    with torch.no_grad():
        logits = tiny.reference(torch.tensor([tiny.ids[0]])).logits[0, -1]
    table = infer_table(tiny.engine, PROMPTS[0], top=7)
    assert table.schema == SCHEMAS["infer"]
    best = logits.topk(7)
    assert table["token_id"].to_pylist() == best.indices.tolist()
    assert table["logit"].to_numpy() == pytest.approx(best.values.numpy(), abs=1e-4)
    assert table["probability"].to_numpy() == pytest.approx(
        logits.softmax(-1)[best.indices].numpy(), abs=1e-5
    )
    assert table["rank"].to_pylist() == list(range(1, 8))
    assert table["token"].to_pylist() == [tiny.engine.tokenizer.token(i) for i in best.indices.tolist()]
    assert set(table["source"].to_pylist()) == {"dense"}


def test_the_reference_systems_figures(upstream: Engine) -> None:
    expected = json.loads((UPSTREAM / "expected.json").read_text())
    for prompt, rows in expected["infer"].items():
        table = infer_table(upstream, prompt, top=len(rows))
        # LARQL shows the piece of a lone byte, we the byte.
        pieces = {
            t: upstream.tokenizer.piece(i) for t, i in _columns(table, "token", "token_id") if "<0x" in t
        }
        found = [[pieces.get(t, t), round(p, 4)] for t, p in _columns(table, "token", "probability")]
        assert found == rows, prompt


def _columns(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _word(tokenizer: Tokenizer, ids: list[int], next_token: Callable[[list[int]], int]) -> str:
    """What the last of ids becomes by whole passes, without a cache, until a token no longer lengthens the word."""
    word = ids[-1:]
    for _ in range(MOST):
        text = tokenizer.text(word)
        if not any(c.isalnum() for c in text) or word_end(text) < len(text):
            break
        best = next_token(ids)
        if tokenizer.is_special(best):
            break
        ids, word = [*ids, best], [*word, best]
    text = tokenizer.text(word)
    return text[: word_end(text)].strip()


def test_the_text_is_the_token_continued_to_the_end_of_its_word(tiny: Tiny) -> None:
    def transformers(ids: list[int]) -> int:
        with torch.no_grad():
            return int(tiny.reference(torch.tensor([ids])).logits[0, -1].argmax())

    for number, prompt in enumerate(PROMPTS[:3]):
        rows = _columns(infer_table(tiny.engine, prompt, verbose=True), "token_id", "text")
        for token, text in rows:
            assert text == _word(tiny.engine.tokenizer, [*tiny.ids[number], token], transformers)
        first, *others = infer_table(tiny.engine, prompt)["text"].to_pylist()
        assert (first, others) == (rows[0][1], [None] * 4)


def test_an_edit_of_one_position_stays_there_while_a_word_goes_on(llama: Tiny) -> None:
    engine, ids = llama.engine, llama.ids[2]
    vector = torch.linspace(-2, 2, engine.hidden)

    def edited(ids: list[int]) -> int:
        with engine.intervene(ResidualEdit(1, vector, "add", None, len(llama.ids[2]) - 1)):
            return int(engine.logits(engine.pad(ids))[0].argmax())

    table = infer_table(engine, PROMPTS[2], edits=[ResidualEdit(1, vector, "add", None, -1)], verbose=True)
    for token, text in _columns(table, "token_id", "text"):
        assert text == _word(engine.tokenizer, [*ids, token], edited)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (" Paris, the", " Paris"), ("Jean-Paul.", "Jean-Paul"), ("Jean- ", "Jean"), ("don't", "don't"),
        (" हिन्दी में", " हिन्दी"), (", then", ", then"), ("日本語。", "日本語"), ("", ""), ("'s", "'s"),
    ],
)  # fmt: skip
def test_where_a_word_ends(text: str, word: str) -> None:
    assert text[: word_end(text)] == word


def test_f16_storage_gives_the_same_five_tokens(upstream: Engine) -> None:
    half = Engine.load(Vindex.open(UPSTREAM / "inference-f16.vindex"))
    for prompt in ("The capital of France", "The capital of Germany", "The language of Spain is"):
        a, b = infer_table(upstream, prompt), infer_table(half, prompt)
        assert a["token_id"].to_pylist() == b["token_id"].to_pylist()
        assert (upstream.logits(prompt) - half.logits(prompt)).abs().max() <= 5e-2


# -- the walk ------------------------------------------------------------------------------------------------


def test_a_walk_over_all_features_is_dense(tiny: Tiny) -> None:
    table = infer_table(tiny.engine, PROMPTS[2], walk_k=max(tiny.engine.n_features), compare=True)
    rows = table.to_pylist()
    dense, walk = ([r for r in rows if r["source"] == source] for source in ("dense", "walk"))
    assert len(dense) == len(walk) == 5
    for a, b in zip(dense, walk, strict=True):
        assert a["token_id"] == b["token_id"]
        assert a["logit"] == pytest.approx(b["logit"], abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_walk_keeps_the_features_that_gate_search_returns(family: str, tiny_vindex, tiny_of) -> None:
    tiny, search = tiny_of(family), GateSearch(Vindex.open(tiny_vindex(family)))
    engine = tiny.engine
    with engine.intervene(Sparse(6)):
        capture = engine.capture(PROMPTS, ["ffn_input", "activation"])
    for layer in range(engine.n_layers):
        for row in range(len(PROMPTS)):
            vector = capture.need("ffn_input")[layer, row].numpy()
            hits = search.search([layer], vector, 6, "absolute")
            activation = capture.need("activation")[layer, row].numpy()
            # gelu makes some of them zero, so what counts is that nothing else is left.
            assert not np.delete(activation, hits.feature).any()
            assert activation[hits.feature] == pytest.approx(hits.activation, abs=1e-4)
            assert activation.any()


def test_a_walk_alone_names_its_source(llama: Tiny) -> None:
    table = infer_table(llama.engine, PROMPTS[0], walk_k=3)
    assert set(table["source"].to_pylist()) == {"walk"}
    dense = infer_table(llama.engine, PROMPTS[0])
    assert not np.allclose(table["logit"].to_numpy(), dense["logit"].to_numpy(), atol=1e-2)
    with pytest.raises(LarqlError, match="at least 1"):
        infer_table(llama.engine, PROMPTS[0], walk_k=0)


# -- order, batches, tokens ----------------------------------------------------------------------------------


def test_equal_logits_come_in_the_order_of_their_ids() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, -1.0])
    assert top_tokens(logits, 4).tolist() == [1, 3, 2, 4]
    assert top_tokens(logits, 0).tolist() == []
    assert top_tokens(logits, 99).tolist() == [1, 3, 2, 4, 5, 0, 6]
    assert float(prediction(logits, 7).probability.sum()) == pytest.approx(1.0)


def test_many_prompts_give_what_each_gives_alone(tiny: Tiny) -> None:
    prompts = [PROMPTS[2], PROMPTS[1], PROMPTS[0], PROMPTS[1], *PROMPTS]
    for prompt, found in zip(prompts, predictions(tiny.engine, prompts, 5), strict=True):
        alone = infer_table(tiny.engine, prompt)
        assert found.ids.tolist() == alone["token_id"].to_pylist()
        assert found.probability.numpy() == pytest.approx(alone["probability"].to_numpy(), abs=1e-5)


def test_the_same_prompt_twice_gives_the_same_bits(tiny: Tiny) -> None:
    first = infer_table(tiny.engine, PROMPTS[2], compare=True)
    assert infer_table(tiny.engine, PROMPTS[2], compare=True).equals(first)


def test_a_target_is_the_token_as_running_text_has_it(upstream: Engine) -> None:
    tokenizer = upstream.tokenizer
    assert find_target(tokenizer, "Paris").token == " Paris"
    assert find_target(tokenizer, " Paris").token == " Paris"
    assert find_target(tokenizer, "~").token in ("~", " ~")
    several = find_target(tokenizer, "Paris Berlin")
    assert several.token == " Paris" and "2 tokens" in several.notices[0]
    with pytest.raises(LarqlError, match="empty"):
        find_target(tokenizer, "")


# -- prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    ["\U0001f600" * 9, "\x00\x07\x1b[31m", "\u202eabc\u200d\ufeff", "\n\n\t ", "日本 Москва", "a" * 300],
)
def test_odd_prompts_give_a_result(tiny_of, prompt: str) -> None:
    for family in ("llama", "gemma3_text", "mistral"):
        engine = tiny_of(family).engine
        limit = engine.context or 10**9
        if len(engine.tokenizer.encode(prompt)) > limit:
            continue
        table = infer_table(engine, prompt)
        assert np.isfinite(table["probability"].to_numpy()).all() and table.num_rows == 5


def test_prompts_without_a_result_give_one_clear_line(tiny: Tiny) -> None:
    engine = tiny.engine
    for prompt, words in (("", "empty"), ("a\ud800b", "surrogate"), ("of the " * 40000, "context holds")):
        with pytest.raises(LarqlError, match=words) as caught:
            infer_table(engine, prompt)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_browse_vindex_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(LarqlError, match=r"larql-duck extract .* --level inference"):
        Engine.load(Vindex.open(UPSTREAM / "browse-f16.vindex"))
