"""Asking: whole answers and their probabilities, against what a bigram model makes them to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tokenizers
import torch

from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Head, Heads, run_heads
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.probing.answers import Asked, ask
from larql_duck.probing.outcomes import NO_ARTICLE, Outcome
from tests.probing.support import bigram_engine

TABLE = {
    # a plain answer, and a rival
    " France": {" Paris": 0.7, " Rome": 0.15, " of": 0.05},
    " Paris": {".": 0.8},
    " Rome": {".": 0.9},
    # an article in front, with the same answer without it
    " Spain": {" the": 0.6, " Madrid": 0.2},
    " the": {" Madrid": 0.5, " euro": 0.4},
    " Madrid": {",": 0.9},
    " euro": {" and": 0.9},
    " and": {" cold": 0.9},
    # several tokens: "Tokyo" + "city" stays one answer, p of the string is the product
    " Japan": {" Tokyo": 0.8},
    " Tokyo": {" Paris": 0.5},
    # a function word in front
    " Germany": {" of": 0.6, " Berlin": 0.3},
    " Berlin": {".": 0.9},
    # a capitalised article belongs to the name
    " hot": {" The": 0.9},
    " The": {" Rome": 0.8},
    # an opening quotation mark
    " cold": {' "'[1:]: 0.9},
    '"': {"Paris": 0.9},
    "Paris": {'"': 0.9},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return bigram_engine(tmp_path_factory.mktemp("bigram"), TABLE)


def asked(engine: Engine, prompt: str, form: str = "name") -> Outcome:
    return ask(engine, [Asked(engine.tokenizer.encode(prompt), form)])[0]


def test_the_most_probable_next_token_is_the_prediction(engine: Engine) -> None:
    outcome = asked(engine, "The capital of France")
    assert (outcome.predicted, outcome.p) == (" Paris", pytest.approx(0.7, abs=1e-3))
    log_p = engine.logits("The capital of France")[0].double().log_softmax(-1)
    assert outcome.entropy == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-4)


def test_a_piece_of_several_words_keeps_its_blanks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ids, written as Metaspace pieces: its decoder drops all blanks of a text's first one."""
    pieces = {" Paris": "▁New▁York", ".": "▁."}
    vocabulary = {pieces.get(t, t): i for i, t, _, _ in engine.tokenizer.vocabulary() if t and "<0x" not in t}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "."))
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always")
    ids = engine.tokenizer.encode("The capital of France")
    monkeypatch.setattr(engine, "tokenizer", load_tokenizer({"tokenizer.json": backend.to_str().encode()}))
    assert ask(engine, [Asked(ids)])[0].candidates[0].object == "New York"


def test_answers_from_their_probability_on(engine: Engine) -> None:
    outcome = asked(engine, "The capital of France")
    assert [(c.object, c.article) for c in outcome.candidates] == [
        ("Paris", NO_ARTICLE),
        ("Rome", NO_ARTICLE),
    ]
    assert [c.p for c in outcome.candidates] == pytest.approx([0.7, 0.15], abs=1e-3)
    assert [c.p_string for c in outcome.candidates] == pytest.approx([0.7, 0.15], abs=1e-3)


def test_an_article_is_looked_past(engine: Engine) -> None:
    outcome = asked(engine, "The capital of Spain")
    assert outcome.predicted == " the"  # what the model says first stays what it says first
    best, second = outcome.candidates
    # Madrid comes directly and behind the article: both ways count.
    assert (best.object, best.p) == ("Madrid", pytest.approx(0.2 + 0.6 * 0.5, abs=2e-3))
    assert engine.tokenizer.token(best.article) == " the"
    assert (second.object, second.p) == ("euro", pytest.approx(0.6 * 0.4, abs=2e-3))
    (the,) = engine.tokenizer.encode(" the", special=False)
    assert the not in outcome.top


def test_a_longer_answer_has_the_product_of_its_tokens(engine: Engine) -> None:
    (answer,) = asked(engine, "The capital of Japan").candidates
    assert answer.object == "Tokyo Paris"
    assert answer.p == pytest.approx(0.8, abs=1e-3)
    assert answer.p_string == pytest.approx(0.8 * 0.5, abs=3e-3)


def test_one_word_answers_stop_at_the_word(engine: Engine) -> None:
    (answer,) = asked(engine, "The capital of Japan", "word").candidates
    assert (answer.object, answer.p_string) == ("Tokyo", pytest.approx(0.8, abs=1e-3))


def test_an_answer_behind_something_more_probable_needs_some_probability(
    engine: Engine, tmp_path: Path
) -> None:
    outcome = asked(engine, "The capital of Germany")
    assert [(c.object, c.p) for c in outcome.candidates] == [("Berlin", pytest.approx(0.3, abs=1e-3))]
    assert (outcome.predicted, outcome.p) == (" of", pytest.approx(0.6, abs=1e-3))
    table = {" Italy": {".": 0.6, " of": 0.38, " Rome": 0.01}, " Rome": {".": 0.9}}
    assert asked(bigram_engine(tmp_path, table), "The capital of Italy").candidates == ()


def test_what_stands_out_from_the_prior_is_decoded_too(engine: Engine, tmp_path: Path) -> None:
    table = {
        " hot": {" Paris": 0.8, " Rome": 0.05, " Tokyo": 0.01},
        " Paris": {".": 0.9},
        " Rome": {".": 0.9},
    }
    engine = bigram_engine(tmp_path, table)
    ids = engine.tokenizer.encode(" hot")
    (paris,) = engine.tokenizer.encode(" Paris", special=False)
    plain, set_against = ask(engine, [Asked(ids), Asked(ids, prior={paris: 0.8})])
    assert [c.object for c in plain.candidates] == ["Paris"]
    assert [(c.object, round(c.p, 2)) for c in set_against.candidates] == [("Paris", 0.8), ("Rome", 0.05)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen2", "mistral"])
def test_heads_change_no_answer(tiny_model, family: str) -> None:
    """Prompts with heads of several lengths, and with none, in one batch."""
    from larql_duck.models.opening import open_model

    engine = Engine.load(open_model(tiny_model(family)))
    prompts = {
        "The capital of France is Paris\nThe capital of": (" Japan is", " the city of Tokyo is"),
        "The language of": (" Spain is",),
        "": ("hot", "The capital of Italy and Germany is the"),
    }
    rows = []
    for beginning, rest in prompts.items():
        head_ids = engine.tokenizer.encode(beginning) if beginning else []
        [head] = run_heads(engine, [head_ids], [None])
        for text in rest:
            ids = engine.tokenizer.encode(beginning + text)
            assert ids[: len(head_ids)] == head_ids
            rows.append(Asked(ids, head=head))
    for asked_, together in zip(rows, ask(engine, rows), strict=True):
        (alone,) = ask(engine, [Asked(asked_.ids)])
        assert together.predicted_id == alone.predicted_id
        assert (together.p, together.entropy) == pytest.approx((alone.p, alone.entropy), abs=1e-4)
        assert [c.object for c in together.candidates] == [c.object for c in alone.candidates]
        assert [c.p_string for c in together.candidates] == pytest.approx(
            [c.p_string for c in alone.candidates], abs=1e-4
        )


def test_what_decoding_tells_of_the_whole_answer(engine: Engine) -> None:
    (answer,) = asked(engine, "The capital of Japan").candidates
    assert (answer.n_tokens, answer.closed) == (2, True)
    assert answer.least == pytest.approx(0.5, abs=3e-3)
    log_p = engine.logits("The capital of Japan Tokyo")[0].double().log_softmax(-1)
    assert answer.doubt == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-3)
    (single,) = asked(engine, "The capital of Japan", "word").candidates
    assert (single.n_tokens, single.least, single.doubt) == (1, 1.0, 0.0)


def test_a_capitalised_article_belongs_to_the_name(engine: Engine) -> None:
    assert asked(engine, " hot").candidates[0].object == "The Rome"


def test_an_opening_quotation_mark_is_looked_past(engine: Engine) -> None:
    (answer,) = asked(engine, " cold").candidates
    assert (answer.object, answer.p) == ("Paris", pytest.approx(0.81, abs=1e-2))


def test_batched_equals_single(engine: Engine) -> None:
    prompts = [f"The capital of {c}" for c in ("France", "Spain", "Japan", "Germany")] + [" hot", "of Spain"]
    together = ask(engine, [Asked(engine.tokenizer.encode(p)) for p in prompts])
    for prompt, outcome in zip(prompts, together, strict=True):
        single = asked(engine, prompt)
        assert outcome.predicted == single.predicted
        assert outcome.p == pytest.approx(single.p, abs=1e-4)
        assert [c.object for c in outcome.candidates] == [c.object for c in single.candidates]
        assert [c.p_string for c in outcome.candidates] == pytest.approx(
            [c.p_string for c in single.candidates], abs=1e-4
        )


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "qwen2", "mistral"])
def test_the_first_token_equals_a_plain_forward_pass(tiny_model, family: str) -> None:
    from larql_duck.models.opening import open_model

    engine = Engine.load(open_model(tiny_model(family)))
    prompts = ["The capital of France is", "The capital of the city of Tokyo is", "hot"]
    outcomes = ask(engine, [Asked(engine.tokenizer.encode(p)) for p in prompts])
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        p = torch.softmax(engine.logits(prompt)[0], -1)
        assert outcome.predicted_id == int(p.argmax())
        assert outcome.p == pytest.approx(float(p.max()), abs=1e-4)
        for candidate in outcome.candidates:
            if candidate.article == NO_ARTICLE:
                assert candidate.p >= float(p[candidate.first]) - 1e-4
            assert 0 < candidate.p_string <= candidate.p <= 1


def chain(*tokens: str) -> dict[str, dict[str, float]]:
    """A bigram table that says these tokens one after another, each with probability 0.9."""
    return {last: {token: 0.9} for last, token in itertools.pairwise(tokens)}


@pytest.mark.parametrize(
    ("tokens", "form", "answer"),
    [
        ((" ", "4", "\n"), "number", "4"),
        ((" ", "1", "9", "8", "4", "."), "number", "1984"),
        ((" ", "3", ".", "5", " city"), "number", "3.5"),
        ((" ", "3", ".", "5", " city", ","), "name", "3.5 city"),
        ((" ", "1", ",", "2", "3", "4", " city"), "number", "1,234"),
        ((" ", "1", ",", "2", "3", "4", ".", " "), "name", "1,234"),
        ((" ", *"123456789", "0", "\n"), "number", "1234567890"),
        (("7", "5", " euro", "."), "name", "75 euro"),
        ((" ", "Paris", "\n"), "name", "Paris"),
    ],
)
def test_numbers_come_whole(tmp_path: Path, tokens: tuple[str, ...], form: str, answer: str) -> None:
    """Digits stand alone in this tokenizer, behind a blank of their own."""
    engine = bigram_engine(tmp_path, chain(" hot", *tokens))
    (found,) = asked(engine, " hot", form).candidates
    blank = tokens[0] == " "
    assert found.object == answer
    assert found.p == pytest.approx(0.9 ** (1 + blank), abs=0.01)
    pieces = 1 if answer == "Paris" else len(answer.split()[0]) + answer.count(" ")
    assert found.p_string == pytest.approx(0.9 ** (pieces + blank), abs=0.02)
    assert (found.article != NO_ARTICLE) == blank


@pytest.mark.parametrize("after", ["\n", " ", " Paris", "."])
def test_a_blank_before_no_answer_is_none(tmp_path: Path, after: str) -> None:
    table = {" hot": {" ": 0.6, " Rome": 0.01}, " ": {after: 0.9}, " Rome": {".": 0.9}}
    assert asked(bigram_engine(tmp_path, table), " hot").candidates == ()


@pytest.mark.parametrize("sign", ["$", "-"])
def test_a_sign_belongs_to_the_number_behind_it(tmp_path: Path, sign: str) -> None:
    engine = bigram_engine(tmp_path, chain(" hot", sign, "2", "5", "."))
    (found,) = asked(engine, " hot", "number").candidates
    assert (found.object, engine.tokenizer.token(found.article)) == (f"{sign}25", sign)
    assert asked(bigram_engine(tmp_path / "word", chain(" hot", sign, "Paris", ".")), " hot").candidates == ()


def test_answers_in_quotation_marks_come_whole(tmp_path: Path) -> None:
    title = ("Paris", ",", " the", " city", " of", " Rome", " and", " hot")
    engine = bigram_engine(
        tmp_path, chain(" cold", '"', *title, " in", " French", ".") | {" French": {'"': 0.9}}
    )
    (found,) = asked(engine, " cold").candidates
    assert found.object == "Paris, the city of Rome and hot in French"
    # Marks that nobody closes bound nothing.
    engine = bigram_engine(tmp_path / "open", chain(" cold", '"', "Paris", ",", " Rome", "\n"))
    assert asked(engine, " cold").candidates[0].object == "Paris"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_head_grown_from_another_is_the_same(tiny_model, family: str) -> None:
    from larql_duck.models.opening import open_model

    engine = Engine.load(open_model(tiny_model(family)))
    long = engine.tokenizer.encode("The capital of France is Paris\nThe capital of Japan is")
    other = engine.tokenizer.encode("The capital of France is Paris\nThe language of")
    short = engine.tokenizer.encode("of")
    # In one batch with others, and each alone.
    together = run_heads(engine, [long, short, other, other[:3]], [None] * 4)
    [whole] = run_heads(engine, [long], [None])
    _same(together[0], whole)
    for begun in (whole, *together[2:]):
        grown, beside, same = run_heads(engine, [long, short, other], [begun, None, begun])
        _same(grown, whole)
        _same(beside, together[1])
        _same(same, together[2])


def test_a_head_keeps_nothing_of_those_that_were_run_with_it(tiny_model) -> None:
    from larql_duck.models.opening import open_model

    engine = Engine.load(open_model(tiny_model("llama")))
    texts = [engine.tokenizer.encode(text) for text in ("The capital of", "The language of France is", "of")]
    for head in run_heads(engine, texts, [None] * 3):
        assert head is not None
        for layer in head.cache.layers:
            kept = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in _tensors(vars(layer).values())
            }
            assert sum(kept.values()) == 2 * layer.keys.numel() * layer.keys.element_size()


def _tensors(values: Iterable[object]) -> Iterator[torch.Tensor]:
    """The tensors among these values and in what they hold."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            yield from _tensors(vars(value).values())


def _same(a: Head | None, b: Head | None) -> None:
    assert a is not None and b is not None and a.ids == b.ids
    for one, other in zip(a.cache.layers, b.cache.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_heads_are_run_together_once(tiny_model, family: str) -> None:
    from larql_duck.models.opening import open_model

    engine = Engine.load(open_model(tiny_model(family)))
    examples = (
        "The capital of France is Paris\nThe capital of Spain is Madrid\nThe capital of Italy is Rome\n"
    )
    begins = ["The language of", f"{examples}The capital of", f"{examples}The river of the city of", "", "of"]
    ids = [engine.tokenizer.encode(f"{begin} Japan is") for begin in begins]
    heads = Heads(engine)
    assert engine.cache_bytes  # which takes a pass
    rows: list[int] = []
    handle = engine.modules.layers[0].block.register_forward_hook(
        lambda module, args, output: rows.append(args[0].shape[0])
    )
    try:
        found = heads.of(begins, ids)
        # The third goes on from the second.
        assert sum(rows) == 4 and (family != "llama" or len(rows) == 3)
        assert heads.of(begins[::-1], ids[::-1]) == found[::-1] and sum(rows) == 4
    finally:
        handle.remove()
    for begin, head in zip(begins, found, strict=True):
        if begin:
            [alone] = run_heads(engine, [engine.tokenizer.encode(begin)], [None])
            _same(head, alone)
        else:
            assert head is None
