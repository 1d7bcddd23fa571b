"""Tokenizer files in the Hugging Face format, rebuilt from a GGUF file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from larql_duck.errors import ModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"


@dataclass(frozen=True)
class _Split:
    """How a kind of byte-level BPE cuts text before merging: '' is GPT-2's own rule."""

    pattern: str = ""
    digits: bool = False  # every digit alone, ahead of GPT-2's rule
    nfc: bool = False
    whole_words: bool = False  # a word that is in the vocabulary is taken without merging
    marks: bool = False  # punctuation and runs of digits first, the pattern last
    bos: bool = False  # whether BOS is added where the file does not say


_GPT2 = _Split()
_DIGITS = _Split(digits=True)
_LLAMA3 = _Split(_WORDS + r"|\p{N}{1,3}" + _REST, whole_words=True, bos=True)
_DBRX = _Split(_WORDS + r"|\p{N}{1,3}" + _REST)
_FALCON = _Split("[0-9][0-9][0-9]", marks=True)
_QWEN = _Split(_WORDS + r"|\p{N}" + _REST, nfc=True)
_TEKKEN = _Split(
    _CASED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+", whole_words=True, bos=True
)

PRE_TOKENIZERS: dict[str, _Split] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "olmo", "mpt", "default", ""), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _DBRX),
    "falcon": _FALCON,
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), _QWEN),
    "tekken": _TEKKEN,
}


def tokenizer_files(metadata: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """File name -> content of tokenizer.json, tokenizer_config.json and, where known, the template and generation
    settings; ModelError where the metadata has no tokenizer or one of an unknown kind."""
    return _Rebuild(metadata, path).files()


class _Rebuild:
    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata = metadata
        self.path = path
        tokens = self.get("tokens")
        if not _all(tokens, str):
            raise self.error("tokenizer.ggml.tokens is missing or no list of texts")
        self.tokens: list[str] = tokens
        types = self.get("token_type")
        types = [TokenType.NORMAL] * len(tokens) if types is None else types
        if not _all(types, int) or len(types) != len(tokens):
            raise self.error("tokenizer.ggml.token_type does not have one number for each token")
        self.types: list[int] = types
        # Rows that only fill the embedding up are no tokens.
        self.vocab = {
            t: i
            for i, (t, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if not (kind == TokenType.UNUSED and t == f"[PAD{i}]")
        }
        self.kind = self.get("model")

    def get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def error(self, what: str) -> ModelError:
        return ModelError.at(self.path, f"{what}; convert the model anew, or use its Hugging Face directory")

    # -- the files ---------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        if self.kind == "gpt2":
            data, bos_default = self.byte_level()
        elif self.kind == "llama":
            data, bos_default = self.sentencepiece()
        else:
            raise self.error(f"the tokenizer model {str(self.kind)[:40]!r} is not known; known: gpt2, llama")
        settings = self.settings(bos_default)
        data["post_processor"] = self.post_processor(settings, data["post_processor"])
        out = {"tokenizer.json": _json(data), "tokenizer_config.json": _json(settings)}
        template = self.metadata.get("tokenizer.chat_template")
        if isinstance(template, str) and template:
            out["chat_template.jinja"] = template.encode()
        generation = {
            f"{k}_token_id": i for k, i in (("bos", self.id_of("bos")), ("eos", self.ends())) if i is not None
        }
        if generation:
            out["generation_config.json"] = _json(generation)
        return out

    def id_of(self, name: str) -> int | None:
        value = self.get(f"{name}_token_id")
        return value if isinstance(value, int) and 0 <= value < len(self.tokens) else None

    def ends(self) -> int | list[int] | None:
        """The ids that end a text: EOS, and the end of a turn where it is another one."""
        ids = [i for i in dict.fromkeys((self.id_of("eos"), self.id_of("eot"))) if i is not None]
        return ids if len(ids) > 1 else ids[0] if ids else None

    def settings(self, bos_default: bool) -> dict[str, Any]:
        out: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
            token_id = self.id_of(name)
            if token_id is not None:
                out[f"{key}_token"] = self.tokens[token_id]
        flag = self.get("add_bos_token")
        out["add_bos_token"] = bool(bos_default if flag is None else flag) and "bos_token" in out
        out["add_eos_token"] = bool(self.get("add_eos_token")) and "eos_token" in out
        length = self.metadata.get(f"{self.metadata.get('general.architecture')}.context_length")
        if isinstance(length, int):
            out["model_max_length"] = length
        return out

    def post_processor(self, settings: Mapping[str, Any], plain: Any) -> Any:
        """A template that adds BOS and EOS as the settings say, else the plain one."""
        before = [settings["bos_token"]] if settings["add_bos_token"] else []
        after = [settings["eos_token"]] if settings["add_eos_token"] else []
        if not before and not after:
            return plain

        def part(kind: int, name: str) -> list[dict[str, Any]]:
            first, last = (
                [{"SpecialToken": {"id": t, "type_id": kind}} for t in ends] for ends in (before, after)
            )
            return [*first, {"Sequence": {"id": name, "type_id": kind}}, *last]

        return {
            "type": "TemplateProcessing",
            "single": part(0, "A"),
            "pair": part(0, "A") + part(1, "B"),
            "special_tokens": {t: {"id": t, "ids": [self.vocab[t]], "tokens": [t]} for t in before + after},
        }

    def added(self) -> list[dict[str, Any]]:
        """The added tokens: control tokens as special ones, the model maker's own as plain ones."""
        return [
            {
                "id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": self.types[i] in (TokenType.CONTROL, TokenType.UNKNOWN),
            }
            for t, i in self.vocab.items()
            if self.types[i] in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED) and t
        ]  # fmt: skip

    def file(self, model: dict[str, Any], **parts: Any) -> dict[str, Any]:
        head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": self.added()}
        steps = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
        bpe = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
        return head | steps | parts | {"model": bpe | model}

    # -- byte-level BPE ----------------------------------------------------------------------------------

    def byte_level(self) -> tuple[dict[str, Any], bool]:
        name = self.get("pre")
        name = "" if name is None else name
        split = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
        if split is None:
            known = ", ".join(sorted(k for k in PRE_TOKENIZERS if k))
            raise self.error(f"the pre-tokenizer {str(name)[:40]!r} is not known; known: {known}")
        merges = self.get("merges")
        if not _all(merges, str):
            raise self.error("tokenizer.ggml.merges is missing or no list of texts")
        pairs = [m.split(" ") for m in merges]
        if any(len(p) != 2 or p[0] not in self.vocab or p[1] not in self.vocab for p in pairs):
            raise self.error("tokenizer.ggml.merges has an entry that is no pair of tokens")
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        level["use_regex"] = split.marks or not split.pattern
        steps: list[dict[str, Any]] = [level]
        if split.digits:
            steps.insert(0, {"type": "Digits", "individual_digits": True})
        if split.marks:
            runs = {"type": "Digits", "individual_digits": False}
            steps = [{"type": "Punctuation", "behavior": "Contiguous"}, *steps, runs]
        if split.pattern:
            steps.insert(len(steps) if split.marks else 0, _cut({"Regex": split.pattern}, "Isolated"))
        data = self.file(
            {
                "unk_token": None, "fuse_unk": False, "byte_fallback": False,
                "ignore_merges": split.whole_words, "vocab": self.vocab, "merges": pairs,
            },
            normalizer={"type": "NFC"} if split.nfc else None,
            pre_tokenizer=steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
            decoder=level | {"use_regex": True},
            post_processor=level | {"use_regex": True, "trim_offsets": False},
        )  # fmt: skip
        return data, split.bos

    # -- SentencePiece -----------------------------------------------------------------------------------

    def sentencepiece(self) -> tuple[dict[str, Any], bool]:
        scores = self.get("scores")
        if not _all(scores, float) or len(scores) != len(self.tokens):
            raise self.error("tokenizer.ggml.scores does not have one number for each token")
        prefix = self.get("add_space_prefix")
        if prefix is None:
            prefix = not str(self.metadata.get("general.architecture")).startswith("gemma")
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        restore = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        decoders = [restore, {"type": "ByteFallback"}, {"type": "Fuse"}]
        parts: dict[str, Any]
        if prefix:
            front = {"type": "Prepend", "prepend": "▁"}
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
            parts = {"normalizer": {"type": "Sequence", "normalizers": [front, replace]}}
        else:
            parts = {"normalizer": replace, "pre_tokenizer": _cut({"String": " "}, "MergedWithPrevious")}
        unknown = next(
            (t for t, k in zip(self.tokens, self.types, strict=True) if k == TokenType.UNKNOWN), None
        )
        model = {
            "unk_token": unknown, "fuse_unk": True, "byte_fallback": TokenType.BYTE in self.types, "ignore_merges": False,
            "vocab": self.vocab, "merges": score_merges(self.vocab, scores, self.types),
        }  # fmt: skip
        return self.file(model, decoder={"type": "Sequence", "decoders": decoders}, **parts), True


def _cut(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def score_merges(vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """The merges, best first, that make BPE choose what SentencePiece chooses by score.

    SentencePiece joins the neighbours whose union has the highest score; so every way to cut a piece into two other
    pieces is a merge, ranked by the piece's score.
    """
    merges = []
    for piece, token_id in vocab.items():
        if len(piece) < 2 or types[token_id] not in (TokenType.NORMAL, TokenType.USER_DEFINED):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                merges.append(
                    (-scores[token_id], -cut, cut - len(piece), vocab[left], vocab[right], left, right)
                )
    merges.sort()
    return [[left, right] for *_, left, right in merges]


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(v, kind) for v in values)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
