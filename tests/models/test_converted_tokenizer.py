"""Tokenizers in other forms than tokenizer.json, made into one by transformers; code of a model's own never runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from larql_duck.errors import ModelError
from larql_duck.models import converted_tokenizer
from larql_duck.models.opening import open_model
from larql_duck.models.tokenizer import load_tokenizer
from tests.models.conftest import Make
from tests.tiny import WORDS, make_tiny

TEXTS = ("The capital of France is Paris.", "  two  spaces\n", "Москва 日本 é", "")


def _apart(directory: Path) -> None:
    """Take tokenizer.json apart into vocab.json and merges.txt."""
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (directory / "tokenizer.json").unlink()
    _say(directory / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


def _say(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_vocabulary_with_merges_cuts_as_tokenizer_json_does(copied: Make, tiny: Make) -> None:
    directory = copied("gpt2")
    _apart(directory)
    source = open_model(directory)
    source.validate()
    ours, theirs = load_tokenizer(source), load_tokenizer(open_model(tiny("gpt2")))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id, theirs.eos_id)


def test_code_of_the_model_never_runs(copied: Make, tmp_path: Path) -> None:
    directory, ran = copied("gpt2"), tmp_path / "ran"
    _apart(directory)
    (directory / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    _say(
        directory / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    )
    _say(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    source = open_model(directory)
    source.validate()
    assert load_tokenizer(source).encode("The capital")
    assert not ran.exists()


def test_what_cannot_be_converted_is_one_line(copied: Make) -> None:
    directory = copied("gpt2")
    _apart(directory)
    (directory / "merges.txt").write_text("#version: 0.2\nnobody knows\n")
    (directory / "vocab.json").write_text("[")
    with pytest.raises(
        ModelError, match=r"vocab\.json: transformers cannot make a tokenizer\.json of it"
    ) as caught:
        open_model(directory).validate()
    assert "\n" not in str(caught.value)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        open_model(directory).validate()


def test_a_sentencepiece_model_without_its_package_names_it(
    copied: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copied("mistral")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setattr(converted_tokenizer, "_installed", lambda name: False)
    with pytest.raises(
        ModelError, match=r"tokenizer\.model: a SentencePiece model needs sentencepiece protobuf once"
    ):
        open_model(directory).validate()


# Of Mistral's models transformers makes a tokenizer that puts no blank in front; the class that is named does.
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_sentencepiece_model_cuts_as_sentencepiece_does(family: str, tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="needs the package sentencepiece")
    pytest.importorskip("google.protobuf", reason="needs the package protobuf")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))))
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=340, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    directory = make_tiny(family, tmp_path / "m", vocab=500)
    (directory / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").rename(directory / "tokenizer.model")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", **named})
    )
    (directory / "special_tokens_map.json").unlink()
    source = open_model(directory)
    source.validate()
    ours = load_tokenizer(source)
    for sample in ("The capital of France is Paris", "Москва", "x  日本 y"):
        assert ours.encode(sample, special=False) == theirs.encode(sample), sample
        assert ours.encode(sample)[0] == theirs.bos_id()
