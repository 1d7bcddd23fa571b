"""The tokenizer: text to token ids and back, and what each entry of the vocabulary is."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from larql_duck.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

    from larql_duck.models.source import WeightSource

# The files that make up a tokenizer, the first one alone needed.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# The letters by which byte-level tokenizers write bytes: printable ones as themselves, the others from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_HIDDEN)}
_LONE = "�"  # what an incomplete UTF-8 sequence decodes to
# Entries that no text is meant to contain, though tokenizers do not call them special: placeholders, and markers
# such as <table> or [INST] among the added tokens.
_RESERVED = re.compile(r"[<\[]\|?(unused|reserved)[\w-]*\|?[>\]]")
_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
# A plain letter decoded in front of a piece keeps decoders from stripping the piece's own leading space.
_ANCHOR = "a"


class Tokenizer:
    """A model's tokenizer. Made by `load_tokenizer`; token ids are 0-based."""

    def __init__(
        self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any], vocab: int | None = None
    ) -> None:
        self._backend = backend
        self.settings = dict(settings)
        self._pieces: dict[int, str] = {i: t for t, i in backend.get_vocab(with_added_tokens=True).items()}
        self._added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self.vocab_size = max(self._pieces, default=-1) + 1 if vocab is None else vocab
        self._marks_start: bool | None = None

    # -- text <-> ids ------------------------------------------------------------------------------------

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of the text; with `special`, BOS (and EOS) where the tokenizer's own post-processor adds them."""
        return list(self._backend.encode(text, add_special_tokens=special).ids)

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of every text, as `encode` gives them."""
        return [list(e.ids) for e in self._backend.encode_batch(list(texts), add_special_tokens=special)]

    def encode_spans(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids as `encode` gives them, and for each token the index behind its last character; 0 for a BOS token."""
        found = self._backend.encode(text)
        return list(found.ids), [end for _, end in found.offsets]

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of the ids; special tokens appear as their content unless skipped."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def entity_ids(self, text: str) -> list[int]:
        """Token ids of a name as it stands in running text: with a leading space where the tokenizer marks one."""
        if self._marks_start is None:
            first = self.encode("a", special=False)
            self._marks_start = bool(first) and self.token(first[0]).startswith(" ")
        text = text.strip()
        return self.encode(text if self._marks_start else f" {text}", special=False)

    # -- entries of the vocabulary -----------------------------------------------------------------------

    def piece(self, token_id: int) -> str:
        """The entry as the tokenizer writes it ('Ġthe', '▁the', '<0x0A>'); '' for an id without an entry."""
        return self._pieces.get(token_id, "")

    def token(self, token_id: int) -> str:
        """The entry decoded alone, its leading space kept.

        Special and added tokens come as their content, bytes that are no character by themselves as '<0xE2>' each,
        ids without an entry as ''.
        """
        if token_id in self._added:
            return self._added[token_id]
        piece = self._pieces.get(token_id)
        if piece is None:
            return ""
        if _BYTE_PIECE.fullmatch(piece) or self._backend.decoder is None:
            return piece
        text = str(self._backend.decoder.decode([_ANCHOR, piece])).removeprefix(_ANCHOR)
        return _with_bytes([piece]) or piece if _LONE in text else text

    def continuation(self, ids: Iterable[int]) -> str:
        """The text of the ids as it goes on behind other text: its first blank is kept, special tokens are left out.

        Incomplete UTF-8 comes as U+FFFD.
        """
        pieces = [self.piece(i) for i in ids if not self.is_special(i)]
        if self._backend.decoder is None:
            return "".join(pieces)
        return str(self._backend.decoder.decode([_ANCHOR, *pieces])).removeprefix(_ANCHOR)

    def text(self, ids: Sequence[int]) -> str:
        """The text of `continuation`; bytes that are no character come as '<0xE2>' each."""
        text = self.continuation(ids)
        if _LONE not in text:
            return text
        some = [i for i in ids if not self.is_special(i)]
        return _with_bytes(map(self.piece, some)) or "".join(map(self.token, some))

    def habits(self) -> list[str]:
        """What is odd about every prompt that this tokenizer reads, as `remarks` says it of one."""
        return [f"with this tokenizer {remark}" for remark in self.remarks(self.encode("France"))]

    def remarks(self, ids: Sequence[int]) -> list[str]:
        """What is odd about a prompt with these token ids: two BOS tokens at its start, an EOS at its end."""
        out = []
        if self.bos_id is not None and list(ids[:2]) == [self.bos_id] * 2:
            out.append(
                f"the prompt begins with {self.token(self.bos_id)!r} twice: the model was trained with one"
            )
        if self.eos_id is not None and len(ids) > 1 and ids[-1] == self.eos_id:
            out.append(
                f"the prompt ends with {self.token(self.eos_id)!r}: what is predicted begins another text"
            )
        return out

    def is_special(self, token_id: int) -> bool:
        """True for control tokens such as BOS."""
        return token_id in self._special

    def is_word(self, token_id: int) -> bool:
        """True for an entry with at least one letter or digit of any script; never for special or byte entries."""
        return self._is_word(token_id, self.token(token_id))

    def _is_word(self, token_id: int, token: str) -> bool:
        if token_id in self._special or not token or _BYTE_PIECE.search(token):
            return False
        if _RESERVED.fullmatch(token) or (token_id in self._added and _MARKER.fullmatch(token)):
            return False
        return any(unicodedata.category(c)[0] in "LN" for c in token)

    def vocabulary(self) -> list[tuple[int, str, str, bool]]:
        """(token_id, token, text, is_word) for every id from 0 to vocab_size - 1; text is what `token_text` gives."""
        return list(self.entries())

    def entries(self) -> Iterator[tuple[int, str, str, bool]]:
        """The rows of `vocabulary`, one after another."""
        for i, token in enumerate(map(self.token, range(self.vocab_size))):
            yield i, token, token_text(token), self._is_word(i, token)

    @property
    def highest_learned_id(self) -> int:
        """The highest id of an entry that is no added token: the embedding must have a row for it, -1 if none.

        Added tokens may lie beyond the embedding: Gemma 3's text models carry the image token of their larger kin.
        """
        return max((i for i in self._pieces if i not in self._added), default=-1)

    # -- special tokens ----------------------------------------------------------------------------------

    @property
    def bos_id(self) -> int | None:
        """The id of the BOS token, None where there is none (whether it is added is a matter of `encode`)."""
        return self._named("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id of the EOS token, None where there is none."""
        return self._named("eos_token")

    def _named(self, key: str) -> int | None:
        content = token_content(self.settings.get(key))
        return None if content is None else self._backend.token_to_id(content)


def token_text(token: str) -> str:
    """A token as tables show it: trimmed; one of blanks alone, which nobody would see, as its bytes ('<0x20>' each)."""
    return token.strip() or "".join(map(_shown_byte, token.encode()))


def _shown_byte(byte: int) -> str:
    return f"<0x{byte:02X}>"


def _with_bytes(pieces: Iterable[str]) -> str:
    """The text of pieces that are letters for bytes, '<0xE2>' for bytes that are no character; '' for other pieces."""
    letters = "".join(pieces)
    if not all(letter in _BYTES for letter in letters):
        return ""
    text = bytes(_BYTES[letter] for letter in letters).decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: _shown_byte(ord(found[0]) - 0xDC00), text)


def load_tokenizer(files: Mapping[str, bytes] | WeightSource, vocab: int | None = None) -> Tokenizer:
    """The tokenizer of tokenizer.json, with the special tokens that tokenizer_config.json names.

    As in transformers 5, the post-processor of tokenizer.json alone decides about BOS and EOS: add_bos_token and
    add_eos_token only count where there is no tokenizer.json.
    `vocab` is the number of rows of the embedding (a weight source knows it); without it, the tokenizer's own size.
    ModelError when tokenizer.json is missing or not usable.
    """
    if not isinstance(files, Mapping):
        vocab = files.family.sizes(files.config).vocab if vocab is None else vocab
        files = files.tokenizer_files()
    if "tokenizer.json" not in files:
        raise ModelError(
            "tokenizer.json is missing; write one with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    settings = _settings(files)
    backend = _backend(files["tokenizer.json"])
    backend.no_truncation()
    backend.no_padding()
    _add_special_tokens(backend, settings)
    return Tokenizer(backend, settings, vocab)


def _backend(data: bytes) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(data.decode())
    except BaseException as error:
        # The library panics on some damaged files; a panic is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelError(
                f"tokenizer.json is damaged: {str(error)[:150]}; get a complete copy of the model"
            ) from None
        raise


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json."""
    out: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        out |= {k: v for k, v in json_object(files, name).items() if v is not None or k not in out}
    return out


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in the file of that name, empty where there is none; ModelError for a damaged one."""
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{name} is not JSON: {str(error)[:100]}; get a complete copy of the model"
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{name} must be a JSON object; get a complete copy of the model")
    return value


def token_content(value: Any) -> str | None:
    """The text of a special token, which configs write as a string or as an object with `content`."""
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) and value else None


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _add_special_tokens(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """Marks the tokens that the settings name as special, adding those that tokenizer.json lacks."""
    import tokenizers

    decoder = settings.get("added_tokens_decoder")
    known = {t.content for t in backend.get_added_tokens_decoder().values()}
    for _, entry in sorted((decoder if isinstance(decoder, Mapping) else {}).items(), key=_by_number):
        content = token_content(entry)
        if content and content not in known and isinstance(entry, Mapping):
            flags = {flag: bool(entry.get(flag, False)) for flag in _FLAGS}
            backend.add_tokens([tokenizers.AddedToken(content, **flags)])
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    values = extra.values() if isinstance(extra, Mapping) else extra if isinstance(extra, list) else []
    names = [token_content(settings.get(k)) for k in _NAMED] + [token_content(v) for v in values]
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    new = [n for n in dict.fromkeys(names) if n and n not in special]
    if new:
        backend.add_special_tokens([tokenizers.AddedToken(n, special=True, normalized=False) for n in new])


def _by_number(item: tuple[Any, Any]) -> tuple[int, str]:
    key = str(item[0])
    return (int(key) if key.isdecimal() else 1 << 62, key)
