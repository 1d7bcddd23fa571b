"""A model opened and checked for extraction, whatever it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larql_duck.errors import LevelError, ModelError
from larql_duck.extraction.options import Options
from larql_duck.extraction.tokenizer_check import tokenizer_notices
from larql_duck.extraction.vocabulary import Vocabulary, vocabulary_of
from larql_duck.models.family import ModelSizes
from larql_duck.models.opening import open_model
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.store import Vindex


@dataclass(frozen=True)
class Job:
    """A model opened and checked for extraction, with everything that the stages ask of it."""

    source: WeightSource
    name: str
    dtype: str
    origin: dict[str, Any]
    sizes: ModelSizes
    vocabulary: Vocabulary
    options: Options
    notices: list[str]

    @property
    def layers(self) -> range:
        """The layers whose features are described."""
        return self.options.layer_range(self.sizes.n_layers)

    def release(self) -> None:
        """Let go of mapped model pages, so that memory does not grow with the model's depth."""
        release = getattr(self.source, "release", None)
        if release is not None:
            release()


def prepare(model: str | Path, options: Options) -> Job:
    """The Job for `model` (whatever `open_model` takes, or a vindex with weights) after its headers were checked."""
    path = Path(model).expanduser()
    notices: list[str] = []
    source: WeightSource
    if path.is_dir() and (path / INDEX).is_file():
        source = vindex = _open_vindex(path)
        stated = vindex.manifest.raw.get("source") or {}
        name, own_dtype = vindex.manifest.model, str(vindex.dtype)
        origin = {
            "huggingface_repo": stated.get("huggingface_repo"),
            "revision": stated.get("huggingface_revision"),
        }
    else:
        source = opened = open_model(model)
        opened.validate()
        notices += opened.notices
        name, own_dtype, origin = opened.name, opened.dtype, dict(opened.origin)
    sizes = source.family.sizes(source.config)
    options.layer_range(sizes.n_layers)
    tokenizer = load_tokenizer(source)
    vocabulary = vocabulary_of(tokenizer)
    if not vocabulary.is_word.any():
        raise ModelError.at(
            source.path, "its tokenizer has no word-like token; is tokenizer.json the model's own?"
        )
    notices += tokenizer_notices(source, tokenizer)
    dtype = own_dtype if options.dtype == "source" else options.dtype
    return Job(source, name, dtype, origin, sizes, vocabulary, options, notices)


def _open_vindex(path: Path) -> Vindex:
    vindex = Vindex.open(path)
    if not vindex.has_weights:
        raise LevelError.at(
            path,
            "a browse vindex has no weights to extract from; give the model itself: "
            "larql-duck extract MODEL -o OUT.vindex",
            needed="inference",
            have=vindex.level,
        )
    return vindex
