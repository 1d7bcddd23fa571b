"""A model opened and checked for extraction, whatever it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larql_duck.errors import LevelError, ModelError
from larql_duck.extraction.options import Options
from larql_duck.extraction.tokenizer_check import tokenizer_notices
from larql_duck.extraction.vocabulary import Vocabulary, vocabulary_of
from larql_duck.inference.loading import return_memory
from larql_duck.inference.query_vectors import NEUTRAL
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.opening import open_model
from larql_duck.models.sizes import ModelSizes
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.store import Vindex


@dataclass(frozen=True)
class Job:
    """A model opened and checked for extraction, with everything that the stages ask of it.

    `stored` is the model's own dtype, 'f32' only where its tensors are f32 and mapped; `dtype` is that of the arrays to write.
    `context` are the tokens of the neutral words before every token of the context pass.
    """

    source: WeightSource
    name: str
    dtype: str
    stored: str
    origin: dict[str, Any]
    sizes: ModelSizes
    vocabulary: Vocabulary
    context: tuple[int, ...]
    options: Options
    notices: list[str]

    @property
    def layers(self) -> range:
        """The layers whose features are described."""
        return self.options.layer_range(self.sizes.n_layers)

    @property
    def n_context(self) -> int:
        """The tokens that the context pass takes."""
        words = int(self.vocabulary.is_word.sum())
        return min(words, self.options.context_tokens or words)

    def release(self) -> None:
        """Let go of mapped model pages and of what was freed, so that memory does not grow with the model's depth."""
        release = getattr(self.source, "release", None)
        if release is not None:
            release()
        return_memory()


def prepare(model: str | Path, options: Options, base: str | Path | None = None) -> Job:
    """The Job for `model` (whatever `open_model` takes, or a vindex with weights) after its headers were checked.

    With a `base` it is an adapter, which is merged over that.
    """
    path = Path(model).expanduser()
    notices: list[str] = []
    source: WeightSource
    if base is None and path.is_dir() and (path / INDEX).is_file():
        source = vindex = _open_vindex(path)
        stated = vindex.manifest.raw.get("source") or {}
        name, own_dtype = vindex.manifest.model, str(vindex.dtype)
        origin = {
            "huggingface_repo": stated.get("huggingface_repo"),
            "revision": stated.get("huggingface_revision"),
        }
    else:
        source = opened = open_model(model, base)
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
    context = tuple(tokenizer.encode(NEUTRAL))
    # A tokenizer is as large as a layer, and until the model is asked nobody needs it.
    del tokenizer
    return_memory()
    made = own_dtype == "f32" and isinstance(source, ModelSource) and not source.mapped
    stored = "bf16" if made else own_dtype
    return Job(source, name, dtype, stored, origin, sizes, vocabulary, context, options, notices)


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
