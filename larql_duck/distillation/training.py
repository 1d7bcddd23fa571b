"""Training a student on its teacher, with transformers' Trainer: losses of a batch, rounds, checkpoints, LoRA."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from larql_duck.distillation.examples import TrainingExample, collate
from larql_duck.distillation.losses import (
    IGNORED,
    combined,
    example_means,
    hard_loss,
    hidden_loss,
    soft_loss,
    stored_loss,
)
from larql_duck.distillation.settings import LossSettings, TrainSettings
from larql_duck.distillation.soft_table import SoftTargets
from larql_duck.errors import LarqlError
from larql_duck.models.architecture import quiet
from larql_duck.models.hf import HfSource
from larql_duck.progress import report
from larql_duck.vindex.arrays import torch_dtype

_PROJECTION = "distil_projection"
_WARM_UP, _SAVE_EVERY = 0.05, 100


@dataclass(frozen=True)
class Teacher:
    """What the student learns from: a model, or soft targets that one gave before; pairs are (student's, teacher's) indices
    of hidden states that are compared.
    """

    model: PreTrainedModel | None = None
    stored: SoftTargets | None = None
    pairs: Sequence[tuple[int, int]] = ()


# -- the loss of a batch --------------------------------------------------------------------------------------


def batch_loss(
    student: nn.Module, teacher: Teacher, batch: Mapping[str, Any], settings: LossSettings
) -> Tensor:
    """The loss of a batch of `examples.collate`, a scalar; with stored targets it holds those of the positions that count.

    Every example counts as its weight says, however many positions it has.
    """
    counts, labels = batch["counts"], batch["labels"][batch["counts"]]
    rows, n = counts.nonzero()[:, 0], counts.shape[0]
    watch = bool(settings.hidden and teacher.pairs)
    logits, states = _counted(student, batch, watch)
    hard = example_means(hard_loss(logits, labels), rows, labels != IGNORED, n)
    soft, missing = None, None
    if settings.alpha or watch:
        each, missing = _soft(teacher, batch, logits, settings, watch)
        soft = None if each is None else example_means(each, rows, torch.ones_like(rows, dtype=torch.bool), n)
    loss = combined(soft, hard, batch["weights"], settings.alpha)
    if watch and missing is not None:
        loss = loss + settings.hidden * _hidden(student, teacher.pairs, states, missing, batch)
    return loss


def _soft(
    teacher: Teacher, batch: Mapping[str, Any], logits: Tensor, settings: LossSettings, watch: bool
) -> tuple[Tensor | None, Sequence[Tensor] | None]:
    """The divergence at each position that counts (None without a teacher's word), and the teacher's hidden states."""
    kind = (settings.temperature, settings.divergence)
    if "stored_ids" in batch:
        return stored_loss(batch["stored_logprobs"], batch["stored_ids"], logits, *kind), None
    if teacher.model is None:
        return None, None
    with torch.no_grad():
        given, states = _counted(teacher.model, batch, watch)
    both = min(given.shape[-1], logits.shape[-1])
    return soft_loss(given[:, :both], logits[:, :both], *kind), states


def _counted(
    model: nn.Module, batch: Mapping[str, Any], states: bool
) -> tuple[Tensor, Sequence[Tensor] | None]:
    """Logits of the positions that count [m, vocab], f32 at least, and every hidden state where asked for.

    No other position goes through the head, which takes more memory than all layers where the vocabulary is large.
    """
    head = _base(model).get_output_embeddings()
    keep = partial(_only, batch["counts"])
    with head.register_forward_pre_hook(keep):
        out = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
            output_hidden_states=states,
        )
    return _exact(out.logits[0]), out.hidden_states if states else None


def _exact(values: Tensor) -> Tensor:
    """The values in f32, or in what is more exact."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _only(counts: Tensor, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return (args[0][counts][None],)


def _hidden(
    student: nn.Module,
    pairs: Sequence[tuple[int, int]],
    own: Sequence[Tensor] | None,
    given: Sequence[Tensor],
    batch: Mapping[str, Any],
) -> Tensor:
    """The mean over the pairs of the squared error of projected hidden states, over all tokens."""
    assert own is not None
    real = batch["attention_mask"].bool()
    project = _base(student).get_submodule(_PROJECTION)
    each = [hidden_loss(_exact(given[j][real]), _exact(project(own[i][real]))) for i, j in pairs]
    return torch.stack(each).mean()


def hidden_pairs(layers: Sequence[int], teacher: int) -> list[tuple[int, int]]:
    """(student's, teacher's) indices of hidden states behind each layer, by the teacher's layer that each stands for.

    What is behind a last layer is normed already, so the two last ones are compared with each other alone.
    """
    last = len(layers) - 1
    return [(i + 1, j + 1) for i, j in enumerate(layers) if (i == last) == (j == teacher - 1)]


def add_projection(student: PreTrainedModel, teacher_hidden: int) -> None:
    """Give the student the learned projection of its hidden states to the teacher's; the identity where sizes are the same."""
    weight = student.get_input_embeddings().weight
    projection = nn.Linear(weight.shape[1], teacher_hidden, bias=False, device=weight.device)
    if projection.in_features == projection.out_features:
        nn.init.eye_(projection.weight)
    else:
        nn.init.orthogonal_(projection.weight)
    student.add_module(_PROJECTION, projection)


def _base(model: nn.Module) -> Any:
    """The model inside of LoRA's."""
    inside = getattr(model, "get_base_model", None)
    return inside() if callable(inside) else model


# -- a round --------------------------------------------------------------------------------------------------


class DistillationTrainer(Trainer):
    """transformers' Trainer with the loss above, over examples in the order in which they were drawn."""

    def __init__(self, *args: Any, teacher: Teacher, loss: LossSettings, **options: Any) -> None:
        super().__init__(*args, **options)
        self._teacher, self._loss = teacher, loss
        # The loss is a mean over the rows of a part of the batch, to be averaged over its parts.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The loss of a batch."""
        return batch_loss(model, self._teacher, inputs, self._loss)

    def restore(self, checkpoint: Path) -> None:
        """Give the model the weights of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> SequentialSampler:
        rows: Any = train_dataset or self.train_dataset
        return SequentialSampler(rows)


class _Until(TrainerCallback):
    """Ends training at a step, with a checkpoint, and tells how far it is."""

    def __init__(self, until: int) -> None:
        self._until = until

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        report("training", state.global_step, state.max_steps)
        if state.global_step >= self._until:
            control.should_save = control.should_training_stop = True
        return control


def last_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The steps that the last whole checkpoint in a folder has behind it, and where it is; None without one."""
    whole = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (path / TRAINER_STATE_NAME).is_file()
    ]
    return max(whole, default=None)


def train_until(
    step: int,
    student: Path,
    teacher: Teacher,
    rows: Dataset[TrainingExample],
    loss: LossSettings,
    settings: TrainSettings,
    checkpoints: Path,
    out: Path,
) -> float | None:
    """The mean loss of training the model of directory `student` up to `step`, from the last checkpoint on; None where that
    one is there already.

    `out` gets the model as it is then, in its own dtype; the adapters of LoRA are merged into it.
    """
    stored, last = torch_dtype(HfSource(student).dtype), last_checkpoint(checkpoints)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
        if settings.device != "cpu":
            model.to(settings.device)
        trained = _prepared(model, teacher, loss, settings)
        trainer = DistillationTrainer(
            trained,
            _arguments(settings, checkpoints, step),
            teacher=teacher,
            loss=loss,
            data_collator=partial(_collated, teacher.stored),
            train_dataset=rows,
            callbacks=[_Until(step)],
        )
        # It prints to where results go.
        trainer.remove_callback(PrinterCallback)
        mean = None
        if last is not None and last[0] == step:
            trainer.restore(last[1])
        else:
            mean = trainer.train(resume_from_checkpoint=last and str(last[1])).training_loss
            if not math.isfinite(mean):
                raise LarqlError(
                    "training diverged: the loss is no number any more; begin again without --resume, with a lower --learning-rate"
                )
        merged = trained if settings.lora is None else trained.merge_and_unload()
        if hasattr(merged, _PROJECTION):
            delattr(merged, _PROJECTION)
        merged.to(stored).save_pretrained(out)
    for file in out.glob("*.safetensors"):
        # safetensors lets nobody else read them.
        shutil.copymode(out / "config.json", file)
    return mean


def _prepared(model: PreTrainedModel, teacher: Teacher, loss: LossSettings, settings: TrainSettings) -> Any:
    """The model with the parts that are trained beside or instead of its own weights, begun with the settings' seed."""
    projected = bool(loss.hidden and teacher.pairs and teacher.model is not None)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        if projected and teacher.model is not None:
            add_projection(model, teacher.model.get_input_embeddings().weight.shape[1])
        return model if settings.lora is None else _with_adapters(model, settings.lora, projected)


def _collated(stored: SoftTargets | None, examples: Sequence[TrainingExample]) -> dict[str, Tensor]:
    batch = collate(examples)
    return batch if stored is None else batch | stored.of(examples)


def _arguments(settings: TrainSettings, folder: Path, until: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro,
        gradient_accumulation_steps=settings.batch // settings.micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(settings.steps * _WARM_UP),
        save_strategy="steps",
        save_steps=min(_SAVE_EVERY, until),
        save_total_limit=1,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=settings.device == "cpu",
        seed=settings.seed,
    )


def _with_adapters(model: PreTrainedModel, rank: int, projected: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name != _PROJECTION
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(names),
        modules_to_save=[_PROJECTION] if projected else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
