"""A model becomes a vindex: the stages of an extraction, in order, each resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from larql_duck.errors import LarqlError, LevelError, ModelError, VindexError
from larql_duck.extraction.estimate import Estimate, estimate_cost, matrix_speed
from larql_duck.extraction.options import Options
from larql_duck.extraction.state import Staging, open_staging
from larql_duck.progress import Progress
from larql_duck.vindex.manifest import INDEX

if TYPE_CHECKING:
    from larql_duck.extraction.table_rows import Vocabulary
    from larql_duck.models.families import ModelSizes
    from larql_duck.models.source import WeightSource


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
    from larql_duck.models.tokenizer import load_tokenizer

    path = Path(model).expanduser()
    notices: list[str] = []
    if path.is_dir() and (path / INDEX).is_file():
        source, name, own_dtype, origin = _from_vindex(path)
    else:
        from larql_duck.models.opening import open_model

        opened = open_model(model)
        opened.validate()
        notices += opened.notices
        source, name, own_dtype, origin = opened, opened.name, opened.dtype, opened.origin
    sizes = source.family.sizes(source.config)
    dtype = own_dtype if options.dtype == "source" else options.dtype
    options.layer_range(sizes.n_layers)
    vocabulary = vocabulary_of(load_tokenizer(source), sizes.vocab)
    if not vocabulary.is_word.any():
        raise ModelError(
            f"{source.path}: its tokenizer has no word-like token; is tokenizer.json the model's own?"
        )
    return Job(source, name, dtype, dict(origin), sizes, vocabulary, options, notices)


def _from_vindex(path: Path) -> tuple[WeightSource, str, str, dict[str, Any]]:
    from larql_duck.vindex.store import Vindex

    vindex = Vindex.open(path)
    if not vindex.has_weights:
        raise LevelError(
            f"{path}: a browse vindex has no weights to extract from; give the model itself: "
            "larql-duck extract MODEL -o OUT.vindex",
            needed="inference",
            have=vindex.level,
            path=path,
        )
    described = vindex.manifest.raw.get("source") or {}
    origin = {
        "huggingface_repo": described.get("huggingface_repo"),
        "revision": described.get("huggingface_revision"),
    }
    return vindex, vindex.manifest.model, vindex.dtype, origin


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The Vocabulary of a tokenizer for an embedding of `size` rows."""
    import pyarrow as pa

    from larql_duck.extraction.table_rows import Vocabulary

    rows = [row for row in tokenizer.vocabulary() if row[0] < size]
    tokens, texts = [""] * size, [""] * size
    is_word, special = np.zeros(size, bool), np.ones(size, bool)
    for token_id, token, text, word in rows:
        tokens[token_id], texts[token_id] = token, text
        is_word[token_id] = word
        # Rows of the embedding that no token uses are padding: they can be nobody's answer.
        special[token_id] = tokenizer.is_special(token_id) or token == ""
    return Vocabulary(pa.array(tokens, pa.string()), pa.array(texts, pa.string()), is_word, special)


def estimate(model: str | Path, **options: Any) -> Estimate:
    """What `extract` with the same arguments is expected to cost on this machine; nothing is written."""
    job = prepare(model, Options(**options))
    return _estimate(job)


def _estimate(job: Job) -> Estimate:
    speed = matrix_speed(job.sizes.hidden)
    return estimate_cost(job.sizes, int(job.vocabulary.is_word.sum()), job.dtype, job.options, speed)


def extract(
    model: str | Path,
    out: str | Path,
    *,
    level: str = "inference",
    dtype: str = "source",
    layers: tuple[int, int] | None = None,
    top_k: int = 10,
    in_basis: str = "auto",
    context_tokens: int | None = None,
    probe: bool = True,
    pack: str = "core",
    relations: tuple[str, ...] | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """The path of the vindex `out` after `model` was decomposed into it.

    `model` is a Hugging Face directory, a .gguf file, `hf://org/name[@revision]`, or a vindex with weights.
    `level` says what is stored: 'browse' (no forward pass afterwards), 'inference' or 'all'. `dtype` is the arrays':
    'source', 'f16' or 'f32'. `layers` (first, last; from 0, inclusive) limits which layers' features are described;
    `top_k` tokens are kept per feature and side. `in_basis` 'context' runs the word-like tokens (the
    `context_tokens` with the lowest ids) through the model, 'embedding' reads them off the embedding, 'auto' takes
    context below half an hour. `probe` runs the relation `pack` (its `relations`, or all of them).

    The directory appears at once when it is complete. `resume` continues an interrupted run with the same arguments;
    `force` replaces an existing `out`. `progress(stage, done, total)` is called often, `notice(line)` for remarks.
    Raises ModelError for a model that cannot be used and VindexError for an `out` that cannot be written; after an
    error nothing is left behind.
    """
    from larql_duck.extraction.stages import Extraction

    options = Options(
        level,
        dtype,
        layers,
        top_k,
        in_basis,
        context_tokens,
        probe,
        pack,
        None if relations is None else tuple(relations),
    )
    target = Path(out).expanduser()
    say = notice or (lambda _line: None)
    if target.exists() and not force:
        raise VindexError(
            f"{target}: exists already; choose another -o or replace it with --force", path=target
        )
    job = prepare(model, options)
    for line in job.notices:
        say(line)
    key = {"model": _identity(job.source), "options": options.as_dict()}
    with open_staging(target, key) as staging:
        try:
            resumed = staging.begin(resume)
            if resume and not resumed:
                say("nothing to resume: no interrupted extraction to this path; starting from the beginning")
            _check_space(job, staging, resumed)
            Extraction(job, staging, progress or (lambda *_: None), say).run()
        except LarqlError:
            staging.remove()
            raise
        except (OSError, MemoryError) as error:
            staging.remove()
            raise VindexError(
                f"{target}: {getattr(error, 'strerror', None) or error or 'out of memory'} while writing; "
                "free some space or choose another -o, then extract again",
                path=target,
            ) from None
    return target


def _identity(source: WeightSource) -> dict[str, Any]:
    """What tells one model from another cheaply: its path, its files' sizes and times, its config."""
    path = source.path
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return {"path": str(path.absolute()), "files": stamps, "config": source.config}


def _check_space(job: Job, staging: Staging, resumed: bool) -> None:
    import shutil

    if resumed:
        return
    needed = estimate_cost(job.sizes, int(job.vocabulary.is_word.sum()), job.dtype, job.options, 1e11).disk
    free = shutil.disk_usage(staging.directory).free
    if needed > free:
        raise VindexError(
            f"{staging.out}: needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free some space, or take --level browse or --dtype f16",
            path=staging.out,
        )
