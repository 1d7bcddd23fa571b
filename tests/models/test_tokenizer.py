"""The tokenizer against transformers' AutoTokenizer, and what its vocabulary entries are."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from larql_duck.errors import ModelError
from larql_duck.extraction.job import prepare
from larql_duck.extraction.options import Options
from larql_duck.models.gguf_tokenizer import tokenizer_files
from larql_duck.models.opening import open_model
from larql_duck.models.tokenizer import load_tokenizer, token_text
from tests.models.conftest import Make
from tests.tiny import TINY_FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = (
    "The capital of France is Paris, and 1,234.5 others!  Two spaces\tand\na tab.\r\n\r\n"
    "Москва — столица. 日本の首都は東京です。 مرحبا بالعالم  Ça va? naïve e\u0301 🙂👩‍👩‍👧 "
    "don't DON'T we'll  <|endoftext|> <|im_start|>user<s> </s><bos>▁x<0x0A> \u0000 ﬁ Å\u200b"
) * 3


def _auto(directory: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_ids_and_text_are_those_of_transformers(family: str, tiny: Make) -> None:
    ours, theirs = load_tokenizer(open_model(tiny(family))), _auto(tiny(family))
    for text in (TEXT, "", " ", "The", " The", "\n", "x" * 3000):
        ids = ours.encode(text)
        assert ids == theirs(text).input_ids, text
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode_batch([TEXT, "The"]) == [ours.encode(TEXT), ours.encode("The")]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    special = {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert {i for i in range(len(theirs)) if ours.is_special(i)} == special


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_tokenized_as_transformers_does(text: str, any_pair: list[tuple[object, object]]) -> None:
    for ours, theirs in any_pair:
        assert ours.encode(text) == theirs(text).input_ids


@pytest.fixture(scope="module")
def any_pair(tiny: Make) -> list[tuple[object, object]]:
    return [
        (load_tokenizer(open_model(tiny(f))), _auto(tiny(f))) for f in ("llama", "mistral", "qwen2", "gemma2")
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"add_bos_token": True},
        {"add_bos_token": False, "add_eos_token": True},
        {"add_bos_token": True, "bos_token": {"content": "<|im_start|>", "__type": "AddedToken"}},
        {"bos_token": None},
        {"extra_special_tokens": ["<new>"]},
        {"pad_token": "<pad>"},
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "gemma"])
def test_settings_count_as_they_do_for_transformers(
    family: str, change: dict[str, object], tiny: Make, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny(family), tmp_path / "m"))
    (directory / "special_tokens_map.json").unlink()
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    ours, theirs = load_tokenizer(open_model(directory)), _auto(directory)
    ids = ours.encode("The capital<new> of<pad>")
    assert ids == theirs("The capital<new> of<pad>").input_ids
    assert ours.bos_id == theirs.bos_token_id
    # Gemma's post-processor puts the BOS there; gpt2's file has none that would.
    assert ids[0] == (2 if family == "gemma" else ours.encode("The", special=False)[0])


def test_truncation_and_padding_of_the_file_are_off(tiny: Make, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny("llama"), tmp_path / "m"))
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text())
    data["truncation"] = {"max_length": 2, "direction": "Right", "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(data))
    assert len(load_tokenizer(open_model(directory)).encode("The capital of France")) == 4


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_entries_of_the_vocabulary(family: str, tiny: Make) -> None:
    tokenizer = load_tokenizer(open_model(tiny(family)))
    entries = {token: (i, text, word) for i, token, text, word in tokenizer.vocabulary()}
    assert [i for i, *_ in tokenizer.vocabulary()] == list(range(tokenizer.vocab_size))
    for name in ("France", "Москва", "日本"):
        i, text, word = entries[f" {name}"]
        assert (text, word) == (name, True)
        assert tokenizer.entity_ids(name) == tokenizer.entity_ids(f" {name} ") == [i]
    assert entries["Paris"][2] is True
    assert len(tokenizer.entity_ids("capital of France")) == 3
    assert all(text.strip() for i, token, text, _ in tokenizer.vocabulary() if token)


def test_tokens_of_blanks_are_shown_as_their_bytes() -> None:
    shown = {
        " the ": "the",
        " ": "<0x20>",
        " \n": "<0x20><0x0A>",
        "\u00a0": "<0xC2><0xA0>",
        "\u3000": "<0xE3><0x80><0x80>",
    }
    assert {token: token_text(token) for token in shown} == shown
    assert token_text("") == ""


def test_a_piece_of_several_words_keeps_its_blanks() -> None:
    """Metaspace's decoder drops all blanks of a text's first piece: an answer begins with no first piece."""
    backend = tokenizers.Tokenizer(models.BPE({"<s>": 0, "▁New▁York": 1, "▁City": 2}, [], unk_token="<s>"))
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens(["<s>"])
    tokenizer = load_tokenizer({"tokenizer.json": backend.to_str().encode()})
    assert tokenizer.decode([1, 2]) == "NewYork City"
    assert tokenizer.continuation([1, 0, 2]) == tokenizer.text([1, 2]) == " New York City"


def test_a_second_bos_and_an_eos_behind_the_prompt_are_told(tiny: Make) -> None:
    tokenizer = load_tokenizer(open_model(tiny("gemma")))
    assert tokenizer.habits() == tokenizer.remarks(tokenizer.encode("The")) == []
    assert tokenizer.remarks(tokenizer.encode("<bos>The")) == [
        "the prompt begins with '<bos>' twice: the model was trained with one"
    ]
    files = open_model(tiny("gemma")).tokenizer_files()
    data = json.loads(files["tokenizer.json"])
    data["post_processor"]["single"].append({"SpecialToken": {"id": "<eos>", "type_id": 0}})
    data["post_processor"]["special_tokens"]["<eos>"] = {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}
    (habit,) = load_tokenizer(files | {"tokenizer.json": json.dumps(data).encode()}).habits()
    assert habit == "with this tokenizer the prompt ends with '<eos>': what is predicted begins another text"


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_ids_other_than_transformers_are_told_at_extraction(
    tokenizer_class: str, tiny: Make, tmp_path: Path
) -> None:
    """transformers' own class makes another tokenizer of Gemma's pieces, whatever tokenizer.json says."""
    directory = Path(shutil.copytree(tiny("gemma"), tmp_path / "m"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}))
    notices = prepare(directory, Options()).notices
    if tokenizer_class == "LlamaTokenizer":
        assert (
            "transformers' LlamaTokenizer reads a test text otherwise" in notices[0]
            and "save_pretrained" in notices[0]
        )
        # The advice works.
        _auto(directory).save_pretrained(directory)
        notices = prepare(directory, Options()).notices
    assert notices == []


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_what_is_no_word(family: str, tiny: Make) -> None:
    tokenizer = load_tokenizer(open_model(tiny(family)))
    specials = [i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)]
    assert specials and not any(tokenizer.is_word(i) for i in specials)
    by_piece = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    if family == "llama":
        partial = by_piece["Ð"]  # the first byte of a Cyrillic letter
        assert tokenizer.token(partial) == "<0xD0>" and not tokenizer.is_word(partial)
        assert tokenizer.token(by_piece["Ċ"]) == "\n" and not tokenizer.is_word(by_piece["Ċ"])
        assert tokenizer.is_word(by_piece["7"]) and not tokenizer.is_word(by_piece["!"])
    else:
        for piece in ("<0x0A>", "<0x41>", "<0xD0>"):
            assert tokenizer.token(by_piece[piece]) == piece and not tokenizer.is_word(by_piece[piece])
        assert not tokenizer.is_word(by_piece["▁"]) and tokenizer.token(by_piece["▁"]) == " "
    beyond = tokenizer.vocab_size + 5
    assert tokenizer.token(beyond) == "" and not tokenizer.is_word(beyond)


def test_placeholders_and_markers_are_no_words(tiny: Make) -> None:
    files = open_model(tiny("llama")).tokenizer_files()
    data = json.loads(files["tokenizer.json"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = ["<table>", "[INST]", "<|reserved_9|>", "larql", "a<b"]
    data["added_tokens"] += [{"id": 402 + i, "content": c, **flags} for i, c in enumerate(added)]
    tokenizer = load_tokenizer(files | {"tokenizer.json": json.dumps(data).encode()})
    assert [tokenizer.token(402 + i) for i in range(5)] == added
    assert [tokenizer.is_word(402 + i) for i in range(5)] == [False, False, False, True, True]


@pytest.mark.slow
def test_a_quarter_of_a_million_entries_take_seconds() -> None:
    pieces = [f"▁{a}{b}{c}{d}" for a in "abcdefgh" for b in range(32) for c in range(32) for d in range(32)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [3, 3, 3, 2] + [6] * 256 + [1] * len(pieces)
    tokens, types = tokens[:262144], types[:262144]
    metadata = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(dict.fromkeys(tokens)),
        "tokenizer.ggml.bos_token_id": 2,
    }
    n = len(metadata["tokenizer.ggml.tokens"])
    metadata |= {
        "tokenizer.ggml.token_type": types[:n],
        "tokenizer.ggml.scores": [-float(i) for i in range(n)],
    }
    begin = time.process_time()
    vocabulary = load_tokenizer(tokenizer_files(metadata, "x")).vocabulary()
    assert time.process_time() - begin < 20
    assert len(vocabulary) == n > 200_000 and vocabulary[300][1].startswith(" a")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", r"tokenizer\.json is damaged"),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer\.json is damaged"),
        ("tokenizer_config.json", b"[1]", r"tokenizer_config\.json must be a JSON object"),
        ("special_tokens_map.json", b"{", r"special_tokens_map\.json is not JSON"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, message: str, tiny: Make) -> None:
    files = open_model(tiny("llama")).tokenizer_files() | {name: content}
    with pytest.raises(ModelError, match=message):
        load_tokenizer(files)


def test_a_missing_tokenizer_says_how_to_make_one() -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing; write one with transformers"):
        load_tokenizer({})
