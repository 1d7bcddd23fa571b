"""tokenizer.json made by transformers' converters, of a SentencePiece model or a vocabulary with merges. No code of the model's runs."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from larql_duck.errors import ModelError, reason
from larql_duck.models.architecture import quiet

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# Files of other forms of a tokenizer, all of a group needed.
_FORMS = (*((name,) for name in _SENTENCEPIECE), ("vocab.json", "merges.txt"), ("vocab.txt",))
_COPIED = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_NEEDED = ("sentencepiece", "google.protobuf")
_TEXTS = ("The capital of France is Paris", "Größe 1234", "don't")


def converted_tokenizer(directory: Path) -> bytes | None:
    """The content of tokenizer.json by what else of a tokenizer is in the directory; None where nothing is.

    ModelError where it cannot be converted, which names the package that is missing.
    """
    form = next((f for f in _FORMS if all((directory / name).is_file() for name in f)), None)
    if form is None:
        return None
    if form[0] in _SENTENCEPIECE and (missing := [name for name in _NEEDED if not _installed(name)]):
        packages = " ".join(name.replace("google.", "") for name in missing)
        raise ModelError.at(
            directory / form[0], f"a SentencePiece model needs {packages} once: pip install {packages}"
        )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in {n for f in _FORMS for n in f if (directory / n).is_file()}:
            shutil.copyfile(directory / name, copy / name)
        for name in _COPIED:
            if (directory / name).is_file():
                (copy / name).write_bytes(_without_code(directory / name))
        return _first_fitting(copy, directory / form[0])


def _first_fitting(copy: Path, path: Path) -> bytes:
    """tokenizer.json by the class that transformers takes for the model, else by the one that the settings name.

    A SentencePiece model is to cut texts as it does itself; ModelError where neither does.
    """
    import transformers

    named = getattr(transformers, str(_settings(copy).get("tokenizer_class")), None)
    made = _converted(transformers.AutoTokenizer, copy, path)
    if path.name not in _SENTENCEPIECE or (text := _other_cut(made, path)) is None:
        return made
    if hasattr(named, "from_pretrained"):
        made = _converted(named, copy, path)
        if _other_cut(made, path) is None:
            return made
    raise ModelError.at(
        path,
        f"the tokenizer.json that transformers makes of it cuts {text!r} otherwise; get the model's own tokenizer.json",
    )


def _other_cut(data: bytes, path: Path) -> str | None:
    """A text that what was made of a SentencePiece model cuts otherwise than the model itself; None for none."""
    import tokenizers
    from sentencepiece import SentencePieceProcessor

    made, own = tokenizers.Tokenizer.from_str(data.decode()), SentencePieceProcessor(model_file=str(path))
    return next((t for t in _TEXTS if made.encode(t, add_special_tokens=False).ids != own.encode(t)), None)


def _settings(copy: Path) -> dict[str, Any]:
    try:
        value = json.loads((copy / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _without_code(path: Path) -> bytes:
    """A file of settings without what names code of the model's own; as it is where it is no object."""
    data = path.read_bytes()
    try:
        value = json.loads(data)
    except ValueError:
        return data
    if not isinstance(value, dict):
        return data
    return json.dumps({k: v for k, v in value.items() if k != "auto_map"}).encode()


def _converted(kind: Any, copy: Path, path: Path) -> bytes:
    """What a tokenizer class of transformers makes of the files in `copy`, which come from `path`."""
    try:
        with quiet():
            made = kind.from_pretrained(copy, trust_remote_code=False, local_files_only=True)
        text: str = made.backend_tokenizer.to_str()
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError.at(
            path,
            f"transformers cannot make a tokenizer.json of it: {reason(error)}; get the model's own tokenizer.json",
        ) from None
    return text.encode()
