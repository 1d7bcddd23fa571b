"""The commands that make and train students: student, distil."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from larql_duck.cli.errors import as_typed, say
from larql_duck.cli.options import ModelArgument, ModelOptions, OutputOptions, RelationOption, command

app = typer.Typer()


@command(
    app,
    "student X.vindex -o student/ --layers 24",
    "student models/name -o student/ --features 0.75",
)
def student(
    model: ModelArgument,
    options: ModelOptions,
    output: OutputOptions,
    out: Annotated[Path, Option("-o", "--out", help="The Hugging Face directory to make.")],
    layers: Annotated[
        int | None, Option(help="How many layers it has; those go that the answers miss least.")
    ] = None,
    features: Annotated[
        float | None, Option(help="The share of each layer's features that it keeps, as in 0.75.")
    ] = None,
    probes: Annotated[int, Option(min=1, help="Prompts whose answers decide.")] = 128,
) -> None:
    """Make a smaller model of a model's own parts, to be taught by it.

    What goes is what its answers miss least, measured by leaving it out. A vindex is asked its own facts.
    """
    from larql_duck.distillation.student import make_student
    from larql_duck.result import Result

    made = make_student(options.open(model), out, layers=layers, features=features, n_probes=probes)
    output.write([Result(made.table())])
    say(f"made {made.path}; teach it: {as_typed('distil', model, str(made.path), '-o', 'OUT')}")


@command(
    app,
    "distil X.vindex student/ -o taught/",
    "distil X.vindex student/ -o taught/ --focus weighted --rounds 5 --steps 100 --report taught.html",
    "distil X.vindex student/ -o taught/ --lora 16 --divergence jsd --texts corpus.parquet --mix 0.5",
    "distil models/name student/ -o taught/ --prompts questions.csv --rationale why",
    "distil X.vindex student/ -o taught/ --soft-targets soft.parquet --resume",
)
def distil(
    teacher: Annotated[
        str, Argument(metavar="TEACHER", help="A vindex, whose facts are taught, or a model.")
    ],
    student: Annotated[
        str, Argument(metavar="STUDENT", help="The model to train, as larql-duck student makes one.")
    ],
    options: ModelOptions,
    output: OutputOptions,
    out: Annotated[Path, Option("-o", "--out", help="The Hugging Face directory to make.")],
    focus: Annotated[
        Literal["lost", "uniform", "weighted"],
        Option(help="Which facts are drawn: what the student lost, all alike, or by how much is missing."),
    ] = "lost",
    rounds: Annotated[int, Option(help="How often it is trained and asked again.")] = 3,
    steps: Annotated[int, Option(min=1, help="Training steps of all rounds together.")] = 60,
    batch: Annotated[int, Option(min=1, help="Examples a step.")] = 48,
    learning_rate: Annotated[float, Option(min=0, help="After a short warm-up, the same throughout.")] = 5e-5,
    alpha: Annotated[
        float, Option(help="The soft targets' part in the loss; the rest is the answers' cross entropy.")
    ] = 0.5,
    temperature: Annotated[float, Option(help="How much both distributions are softened.")] = 2.0,
    divergence: Annotated[
        Literal["forward", "reverse", "jsd"],
        Option(help="forward: cover what the teacher says; reverse: say nothing else; jsd: between them."),
    ] = "forward",
    hidden: Annotated[
        float, Option(min=0, help="Weight of the squared error of hidden states, by a learned projection.")
    ] = 0.0,
    lora: Annotated[
        int | None, Option(min=1, help="Train adapters of this rank instead of every weight.")
    ] = None,
    pack: Annotated[
        str | None, Option(help="Ask this relation pack; default: the teacher's own facts, else core.")
    ] = None,
    relation: RelationOption = None,
    texts: Annotated[
        Path | None, Option(help="Texts against forgetting: .parquet, .jsonl, .txt, a directory; else ours.")
    ] = None,
    column: Annotated[str | None, Option(help="The column or field of texts.")] = None,
    mix: Annotated[float, Option(help="The share of every batch that is text.")] = 0.25,
    prompts: Annotated[
        Path | None, Option(help="More to teach: .csv, .jsonl or .parquet with columns prompt and answer.")
    ] = None,
    rationale: Annotated[
        str | None, Option(help="The column of --prompts with reasons, taught as a second task.")
    ] = None,
    soft_targets: Annotated[
        Path | None,
        Option(help="Learn from this table of larql-duck soft-targets; the teacher is only audited."),
    ] = None,
    held_out: Annotated[float, Option(help="The share of subjects whose facts training never sees.")] = 0.2,
    confidence: Annotated[float, Option(help="Facts count from this confidence of the teacher on.")] = 0.5,
    seed: Annotated[int, Option(help="Another seed, another order.")] = 0,
    report: Annotated[Path | None, Option(help="Write what was kept after every round: .html.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on where a run that was stopped was.")] = False,
) -> None:
    """Teach a student what its teacher knows, and ask it what it kept.

    After every round it is asked the teacher's facts again, and what it lost decides what it reads next. One row a round.
    """
    from larql_duck.distillation.rounds_page import check_report, write_report
    from larql_duck.distillation.settings import (
        LossSettings,
        RoundSettings,
        TrainingData,
        TrainSettings,
        require_extra,
    )
    from larql_duck.result import Result

    require_extra()
    # Only where the extra is installed can what follows be imported.
    from larql_duck.distillation.distil import distil as taught

    if report is not None:
        check_report(report)
    opened = options.open(teacher)
    made = taught(
        opened,
        student,
        out,
        lessons=TrainingData(
            pack=pack, relations=tuple(relation) if relation else None, prompts=prompts, rationale=rationale, texts=texts, column=column, soft_targets=soft_targets,
            mix=mix, held_out=held_out, confidence=confidence,
        ),
        loss=LossSettings(alpha, temperature, divergence, hidden),
        settings=TrainSettings(steps, batch, learning_rate, lora, seed, opened.settings.torch_device()),
        plan=RoundSettings(focus, rounds),
        resume=resume,
    )  # fmt: skip
    output.write([Result(made.rounds, notices=made.notices)])
    if report is not None:
        write_report(made.rounds, report, focus=focus, teacher=teacher, student=student)
        say(f"wrote {report}")
    say(f"made {out}; look inside: {as_typed('extract', str(out), '-o', f'{out.name}.vindex')}")
