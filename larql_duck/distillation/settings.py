"""How a student is taught: what is minimised, how long, and what must be installed for it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from larql_duck.distillation.focus import Focus
from larql_duck.distillation.losses import Divergence
from larql_duck.distillation.probes import CONFIDENT
from larql_duck.errors import LarqlError

# Rows that go through the models at once, at most.
_MICRO = 12


@dataclass(frozen=True)
class LossSettings:
    """loss = alpha T^2 divergence(teacher, student, both softened by T) + (1 - alpha) cross entropy + hidden MSE.

    alpha 0 asks no teacher for distributions; hidden is the weight of the hidden states' squared error.
    """

    alpha: float = 0.5
    temperature: float = 2.0
    divergence: Divergence = "forward"
    hidden: float = 0.0


@dataclass(frozen=True)
class TrainSettings:
    """How long and how a student is trained: steps in all, examples a step, rank of LoRA (None: every weight)."""

    steps: int = 60
    batch: int = 48
    learning_rate: float = 5e-5
    lora: int | None = None
    seed: int = 0
    device: str = "cpu"

    @property
    def micro(self) -> int:
        """Examples that go through the models at once: the largest part of a batch within the limit."""
        return max(size for size in range(1, _MICRO + 1) if self.batch % size == 0)


@dataclass(frozen=True)
class TrainingData:
    """What a student is taught: what its teacher states, prompts, texts, or soft targets from a file.

    The teacher is asked the facts of its vindex, else the pack 'core', or `pack`; relations picks some by name, and
    confidence says from where on a fact counts. mix is the share of every batch that is text, against forgetting; held_out that of the subjects whose facts training
    never sees; size how many tokens of a text are read together. Without texts the shipped ones are read.
    """

    pack: str | None = None
    relations: tuple[str, ...] | None = None
    prompts: Path | None = None
    rationale: str | None = None
    texts: Path | None = None
    column: str | None = None
    soft_targets: Path | None = None
    mix: float = 0.25
    held_out: float = 0.2
    confidence: float = CONFIDENT
    size: int = 64


@dataclass(frozen=True)
class RoundSettings:
    """How often the student is asked and by what its prompts are chosen."""

    focus: Focus = "lost"
    rounds: int = 3


def require_extra() -> None:
    """Raise LarqlError where the libraries that training needs are not installed."""
    missing = [name for name in ("accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise LarqlError(
            f"distil needs {' and '.join(missing)}; install the extra with: pip install 'larql-duck[distil]'"
        )


def check_settings(
    lessons: TrainingData, loss: LossSettings, settings: TrainSettings, plan: RoundSettings
) -> None:
    """Raise LarqlError for numbers that are out of range."""
    ranges: list[tuple[str, float, float, float]] = [
        ("--alpha", loss.alpha, 0, 1),
        ("--hidden", loss.hidden, 0, 1e6),
        ("--learning-rate", settings.learning_rate, 0, 10),
        ("--temperature", loss.temperature, 0.01, 100),
        ("--mix", lessons.mix, 0, 1),
        ("--held-out", lessons.held_out, 0, 0.9),
        ("--rounds", plan.rounds, 1, settings.steps),
    ]
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise LarqlError(f"{name} {value:g} is out of range; it is from {low:g} to {high:g}")
    if loss.hidden and lessons.soft_targets is not None:
        raise LarqlError("--hidden compares with a teacher that runs; leave it or --soft-targets out")
    if lessons.rationale is not None and lessons.prompts is None:
        raise LarqlError("--rationale names a column of the file of --prompts; give that file")
