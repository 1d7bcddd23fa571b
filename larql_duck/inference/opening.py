"""What the commands run, trace and activations do, without the command line: sources, text, files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.errors import LarqlError
from larql_duck.inference.model import LiveModel
from larql_duck.inference.settings import Settings

if TYPE_CHECKING:
    from larql_duck.models.source import WeightSource


def open_source(path: str | Path) -> WeightSource:
    """The vindex (of level inference or all) or model at `path`; the error names what to do."""
    from larql_duck.models.opening import open_model
    from larql_duck.vindex.manifest import INDEX
    from larql_duck.vindex.store import Vindex

    if (Path(path).expanduser() / INDEX).is_file():
        vindex = Vindex.open(Path(path).expanduser())
        vindex.require("inference", "a forward pass")
        return vindex
    source = open_model(path)
    source.validate()
    return source


def open_live(
    path: str | Path,
    *,
    dtype: str | None = None,
    device: str | None = None,
    patches: Sequence[str | Path] = (),
) -> LiveModel:
    """The LiveModel of the vindex or model at `path`, with feature labels where it has them.

    dtype and device (None: as the environment says) are those of Settings. patches are .vlp files under which the
    passes run, in order; LarqlError where there are some and the path is no vindex.
    """
    from larql_duck.inference.feature_labels import labels_of
    from larql_duck.vindex.store import Vindex

    found = Settings.from_environment()
    settings = Settings(dtype or found.compute_dtype, device or found.device, found.threads)
    source = open_source(path)
    if isinstance(source, Vindex):
        overlay = None
        if patches:
            from larql_duck.patches.edit_log import overlay_of

            overlay = overlay_of(source, patches)
        return LiveModel(
            source, settings=settings, labels=labels_of(source), bands=source.bands, overlay=lambda: overlay
        )
    if patches:
        raise LarqlError(
            f"{path}: patches belong to a vindex; make one with: larql-duck extract {path} -o OUT.vindex"
        )
    return LiveModel(source, settings=settings)


def written(
    live: LiveModel,
    prompt: str,
    *,
    tokens: int = 64,
    chat: bool = False,
    system: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """What the model writes after the prompt, piece by piece, at most `tokens` tokens.

    chat puts the prompt into the model's own chat template (`system` before it), whose end of turn ends the answer.
    temperature 0 takes the most probable token each time; above 0 it samples, reproducibly by seed.
    """
    from larql_duck.inference.chat import chat_prompt, stop_ids

    if tokens < 0:
        raise LarqlError(f"{tokens} tokens is out of range; it must be at least 0")
    if temperature < 0:
        raise LarqlError(f"temperature {temperature} is out of range; it must be at least 0")
    if system is not None and not chat:
        raise LarqlError("a system message belongs to a chat; add --chat")
    files = live.source.tokenizer_files()
    engine = live.engine
    start: str | list[int] = prompt
    if chat:
        start = engine.tokenizer.encode(chat_prompt(files, prompt, system), special=False)
    stops = stop_ids(files, live.source.config, engine.tokenizer)
    pieces = engine.generate(start, max_tokens=tokens, temperature=temperature, seed=seed, stop_ids=stops)
    for piece in pieces:
        if piece.text:
            yield piece.text
