"""A tokenizer.json as GGUF metadata, checked by rebuilding a tokenizer from it and comparing what both make of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from larql_duck.compilation.gguf_metadata import ELSE
from larql_duck.errors import ModelError
from larql_duck.models.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_files
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer, token_content

_PLAIN_SCORE = -1e6
# What differs between ways of cutting text: blanks, digits, apostrophes, case, scripts, marks, newlines.
_TEXTS = (
    "The capital of France is Paris.",
    " leading, and  two   blanks\tand a tab ",
    "It's 12345 o'clock; they'LL don't 3.14 x=7e-2",
    "line one\nline two\r\n\n  indented\n",
    "camelCase HTTPServer snake_case if(a>b){return;} #!$%&/",
    "Größe café naïve Москва 東京 日本語 العربية हिन्दी 한국어",
    "😀 👩‍👩‍👧 ½ ﬁ Å ① e\u0301",
    "a",
    "1000000 and 2024-01-31",
    "don't WON'T 'quoted' \"double\"",
)


def vocabulary(
    files: Mapping[str, bytes], vocab: int, context: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Metadata (tokenizer.* keys) that say what the tokenizer files say, for an embedding of `vocab` rows.

    `context` holds the file's other metadata. ModelError that names SAFETENSORS for a tokenizer that GGUF, or its
    rebuilding, cannot express.
    """
    try:
        out = _Vocabulary(files, json.loads(files["tokenizer.json"]), vocab, path).metadata()
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _refused(path, "is none that is known here") from None
    _check(files, out, context, vocab, path)
    return out


def _refused(path: Path, why: str) -> ModelError:
    return ModelError.at(path, f"the tokenizer {why}, so GGUF cannot express it; {ELSE}")


class _Vocabulary:
    def __init__(self, files: Mapping[str, bytes], data: dict[str, Any], vocab: int, path: Path) -> None:
        self.files, self.data, self.path, self.vocab = files, data, path, vocab
        self.model = model = data["model"]
        self.tokenizer = load_tokenizer(files, vocab)
        self.added = {int(t["id"]): t for t in data.get("added_tokens", [])}
        if model.get("type", "BPE") != "BPE":
            raise _refused(path, f"is of the kind {model.get('type')}")
        self.pieces: dict[int, str] = {int(i): t for t, i in model["vocab"].items()}
        self.pieces |= {i: t["content"] for i, t in self.added.items()}
        # Added tokens beyond the embedding belong to a larger kin of the model.
        self.tokens = [self.pieces.get(i, f"[PAD{i}]") for i in range(vocab)]
        self.merges = [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]

    def metadata(self) -> dict[str, Any]:
        byte_level = any(s.get("type") == "ByteLevel" for s in _steps(self.data.get("pre_tokenizer")))
        out: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2" if byte_level else "llama",
            "tokenizer.ggml.pre": self.pre() if byte_level else "default",
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": [self.kind(i, byte_level) for i in range(self.vocab)],
        }
        if byte_level:
            out["tokenizer.ggml.merges"] = [" ".join(m) for m in self.merges]
        else:
            out["tokenizer.ggml.scores"] = self.scores()
            out["tokenizer.ggml.add_space_prefix"] = self.prefixed()
        return out | self.special()

    def kind(self, i: int, byte_level: bool) -> int:
        if i not in self.pieces:
            return TokenType.UNUSED
        token = self.tokens[i]
        if token == self.model.get("unk_token") and not byte_level:
            return TokenType.UNKNOWN
        if i in self.added:
            return TokenType.CONTROL if self.added[i].get("special") else TokenType.USER_DEFINED
        if self.tokenizer.is_special(i):
            return TokenType.CONTROL
        if not byte_level and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return TokenType.BYTE
        return TokenType.NORMAL

    def pre(self) -> str:
        """llama.cpp's name for the way the tokenizer cuts text."""
        steps = _steps(self.data.get("pre_tokenizer"))
        digits = any(s.get("type") == "Digits" and s.get("individual_digits") for s in steps)
        patterns = [s["pattern"].get("Regex") for s in steps if s.get("type") == "Split"]
        pattern = patterns[0] if patterns else ""
        nfc = any(s.get("type") == "NFC" for s in _steps(self.data.get("normalizer")))
        whole = bool(self.model.get("ignore_merges"))
        close = {n: s for n, s in PRE_TOKENIZERS.items() if n and (s.pattern, s.digits) == (pattern, digits)}
        exact = [n for n, s in close.items() if (s.nfc, s.whole_words) == (nfc, whole)]
        if not close or len(patterns) > 1:
            raise _refused(self.path, "cuts text in a way that has no name in GGUF")
        return (exact or list(close))[0]

    def scores(self) -> list[float]:
        """SentencePiece scores that make it merge in the order of the merges; plain characters come last."""
        rank: dict[str, int] = {}
        for i, (left, right) in enumerate(self.merges):
            rank.setdefault(left + right, i)
        return [
            -float(rank[t]) if t in rank else 0.0 if t.startswith("<0x") or i in self.added else _PLAIN_SCORE
            for i, t in enumerate(self.tokens)
        ]

    def prefixed(self) -> bool:
        """Whether a blank is put in front of a text."""
        ids = self.tokenizer.encode("a", special=False)
        return bool(ids) and self.tokenizer.piece(ids[0]).startswith("▁")

    def special(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        settings = self.tokenizer.settings
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            token = token_content(settings.get(f"{name}_token"))
            found = next((i for i, t in enumerate(self.tokens) if t == token and i in self.pieces), None)
            if found is not None:
                out[f"tokenizer.ggml.{key}_token_id"] = found
        plain, full = (self.tokenizer.encode("a", special=s) for s in (False, True))
        bos, eos = out.get("tokenizer.ggml.bos_token_id"), out.get("tokenizer.ggml.eos_token_id")
        ways = ((False, False), (True, False), (False, True), (True, True))
        added = [(b, e) for b, e in ways if full == [*[bos] * b, *plain, *[eos] * e]]
        if not added:
            raise _refused(self.path, "puts more than BOS and EOS around a text")
        out["tokenizer.ggml.add_bos_token"], out["tokenizer.ggml.add_eos_token"] = added[0]
        ends = _ends(self.files)
        if len(ends) > 1 and ends[1] != eos:
            out["tokenizer.ggml.eot_token_id"] = ends[1]
        template = settings.get("chat_template")
        if "chat_template.jinja" in self.files:
            template = self.files["chat_template.jinja"].decode()
        if isinstance(template, str) and template:
            out["tokenizer.chat_template"] = template
        return out


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, a sequence taken apart."""
    if not isinstance(part, dict):
        return []
    inner = part.get("pretokenizers") or part.get("normalizers") if part.get("type") == "Sequence" else None
    return [s for step in inner for s in _steps(step)] if inner else [part]


def _ends(files: Mapping[str, bytes]) -> list[int]:
    try:
        value = json.loads(files.get("generation_config.json", b"{}")).get("eos_token_id")
    except (ValueError, AttributeError):
        return []
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _check(
    files: Mapping[str, bytes],
    metadata: Mapping[str, Any],
    context: Mapping[str, Any],
    vocab: int,
    path: Path,
) -> None:
    """Raise ModelError where a tokenizer rebuilt from the metadata makes other tokens of a text, or other text."""
    try:
        rebuilt = load_tokenizer(tokenizer_files({**context, **metadata}, path), vocab)
    except ModelError as error:
        raise ModelError(f"{error}; {ELSE}", path=str(path)) from None
    original = load_tokenizer(files, vocab)
    for text in (*_TEXTS, *_sample(original)):
        ids = original.encode(text)
        if max(ids, default=0) >= vocab:
            continue
        if rebuilt.encode(text) != ids or rebuilt.decode(ids) != original.decode(ids):
            raise _refused(path, f"cuts {text[:30]!r} in a way that a rebuilt one does not")


def _sample(tokenizer: Tokenizer) -> list[str]:
    """Texts of the tokenizer's own entries, every part of the vocabulary represented."""
    words = [t for i, t, _, is_word in tokenizer.vocabulary() if is_word]
    chosen = words[:: max(1, len(words) // 600)]
    return ["".join(chosen[i : i + 20]) for i in range(0, len(chosen), 20)]
