"""A student to begin with: a model's own layers or features, those that its answers need most, as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from larql_duck.atlas.texts import SHIPPED, open_corpus, windows
from larql_duck.compilation.huggingface import write_directory
from larql_duck.compilation.safetensors import SHARD_BYTES
from larql_duck.compilation.staging import check_free, staged
from larql_duck.distillation.features import feature_effects, strongest
from larql_duck.distillation.layers import LayerTrial, choose_layers
from larql_duck.distillation.probes import CONFIDENT, PromptAnswer, TaughtFact, probes, stated_facts
from larql_duck.distillation.pruning import PrunedWeights, features_left
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.model import Model
from larql_duck.models.opening import open_model
from larql_duck.models.source import WeightSource
from larql_duck.vindex.store import Vindex

KEPT_LAYERS = "kept_layers"
"""The key of a student's config that lists the teacher's layers that it has."""
# Prompts that decide, and tokens of all of them; texts that count beside them where features are chosen.
PROBES, _TOKENS = 128, 2048
_TEXTS, _TEXT_TOKENS = 64, 32


@dataclass(frozen=True)
class Student:
    """What was made: the directory, the model's layers that stayed and that went, features a layer, parameters as a share
    of the model's, and the mean log p (nats) of whole answers over the probes before and after.
    """

    path: Path
    layers: tuple[int, ...]
    removed: tuple[int, ...]
    features: int
    parameters: float
    log_p_before: float
    log_p_after: float

    def table(self) -> pa.Table:
        """The figures as one row."""
        return pa.table(
            {
                "layers": pa.array([len(self.layers)], pa.int32()),
                "removed_layers": pa.array([list(self.removed)], pa.list_(pa.int32())),
                "features": pa.array([self.features], pa.int32()),
                "parameters": [self.parameters],
                "log_p_before": [self.log_p_before],
                "log_p_after": [self.log_p_after],
            }
        )


def make_student(
    model: Model,
    out: Path,
    *,
    layers: int | None = None,
    features: float | None = None,
    n_probes: int = PROBES,
) -> Student:
    """The student at `out`, a Hugging Face directory: `layers` of the model's layers, or the share `features` of each
    layer's features; everything else is copied.

    What goes is what the answers over the probes miss least: the model's own facts where it is a vindex that has some,
    else the shipped prompts. LarqlError for what is out of range, VindexError for an `out` that is not free.
    """
    if (layers is None) == (features is None):
        raise LarqlError("say how small the student is: --layers N or --features SHARE, one of them")
    if features is not None and not 0 < features < 1:
        raise LarqlError(f"--features {features:g} is out of range; give a share between 0 and 1, as in 0.75")
    source = model.source
    check_free(out, source.path)
    engine = model.engine
    asked = probes(engine, facts_of(source), n_probes, _TOKENS)
    if layers is not None:
        choice = choose_layers(engine, asked, layers)
        pruned = PrunedWeights(source, choice.kept)
        kept, before, after = choice.kept, choice.before, choice.after
    else:
        assert features is not None
        kept = tuple(range(engine.n_layers))
        effects = feature_effects(engine, [*asked, *_texts(engine)])
        chosen = strongest(effects, features_left(engine.n_features, features))
        pruned = PrunedWeights(source, kept, chosen)
        before = LayerTrial(engine, asked).without(())
    pruned.config[KEPT_LAYERS] = list(kept)
    write_student(pruned, out)
    written = Model.open(out, dtype=model.settings.compute_dtype, device=model.settings.device).engine
    if layers is None:
        after = LayerTrial(written, asked).without(())
    share = _parameters(written) / _parameters(engine)
    gone = tuple(sorted({*range(engine.n_layers)} - {*kept}))
    return Student(out, kept, gone, written.n_features[0], share, before, after)


def facts_of(source: WeightSource, least: float = CONFIDENT) -> list[TaughtFact]:
    """The confident facts of a vindex; none of a model that is no vindex."""
    return stated_facts(source, least) if isinstance(source, Vindex) and source.has_tables else []


def write_student(source: PrunedWeights, out: Path) -> None:
    """Write the Hugging Face directory `out`, whole or not at all, and open it once."""
    with staged(out, source.path) as staging:
        write_directory(source, staging, SHARD_BYTES)
        open_model(staging).validate()


def _texts(engine: Engine) -> list[PromptAnswer]:
    """The beginnings of the shipped texts, behind their first token."""
    size = min(_TEXT_TOKENS, engine.context or _TEXT_TOKENS)
    rows = windows(open_corpus(SHIPPED), engine.tokenizer, size)
    first = (window.ids for window in rows if window.offset == 0 and len(window.ids) > 1)
    return [(ids[:1], ids[1:]) for ids, _ in zip(first, range(_TEXTS), strict=False)]


def _parameters(engine: Engine) -> int:
    return sum(parameter.numel() for parameter in engine.model.parameters())


def kept_layers(config: dict[str, object], own: int, teacher: int) -> Sequence[int]:
    """The teacher's layer that each of a student's layers stands for: as its config says, else evenly spaced."""
    said = config.get(KEPT_LAYERS)
    if isinstance(said, list) and len(said) == own and all(isinstance(i, int) and i < teacher for i in said):
        return said
    return torch.linspace(0, teacher - 1, own).round().int().tolist()
