"""The commands that compare models: audit, diff-texts, score; and what a teacher says: soft-targets, export-targets."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from larql_duck.cli.errors import UsageError, note, say
from larql_duck.cli.options import ComputeOptions, ModelArgument, ModelOptions, OutputOptions, command
from larql_duck.files import clear_own, unfinished_work, with_parents

app = typer.Typer()

_EITHER = "A vindex, a Hugging Face directory, a .gguf file or pkg:PYTHON_PACKAGE."
TeacherArgument = Annotated[str, Argument(metavar="TEACHER", help=_EITHER)]
TextsArgument = Annotated[
    Path, Argument(metavar="TEXTS", help=".txt (a text a line), .jsonl, .parquet, or a directory of these.")
]
StudentArgument = Annotated[str, Argument(metavar="STUDENT", help="The same.")]


@command(
    app,
    "audit teacher.vindex student.vindex -o audit",
    "audit teacher.vindex student-model/ --pack core --limit 50",
    "audit teacher.vindex student.vindex --features -o audit",
    "audit model.gguf edited.vindex --entities people.csv --relation occupation",
)
def audit(
    teacher: TeacherArgument,
    student: StudentArgument,
    compute: ComputeOptions,
    output: OutputOptions,
    out: Annotated[
        Path, Option("-o", "--out", help="Directory for report.html, report.json and audit.duckdb.")
    ] = Path("audit"),
    pack: Annotated[str | None, Option(help="Ask this relation pack: a name or a file.")] = None,
    entities: Annotated[Path | None, Option(help="Ask about these: .csv or .parquet, as for probe.")] = None,
    relation: Annotated[
        list[str] | None, Option("--relation", help="Ask this relation only; may be repeated.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Each relation's first N subjects.")] = None,
    features: Annotated[
        bool, Option("--features", help="Also say which features carry what was kept (slower).")
    ] = False,
    resume: Annotated[bool, Option("--resume", help="Go on where a run that was killed stopped.")] = False,
) -> None:
    """Show which of a teacher's facts a student kept, and write the report.

    Both are asked the facts that either vindex holds (without any those of the pack core). stdout gets the retention by
    relation, type and confidence; audit.duckdb has a row for every question: FROM transfer WHERE status = 'lost'.
    """
    from larql_duck.commands.auditing import audit as compare
    from larql_duck.commands.auditing import check_folder
    from larql_duck.inference.settings import with_given
    from larql_duck.knowledge.entity_files import read_entities

    folder = check_folder(out)
    table = None
    if entities is not None:
        file = read_entities(entities)
        note(file.understood)
        table = file.table
    place = folder.resolve()
    unfinished = place.parent / f".{place.name}.audit"
    busy = f"{out}: another process is writing this audit; try again later, or name another place"
    with (
        with_parents(unfinished),
        unfinished_work(unfinished, busy, lambda: any(unfinished.glob("*.msgpack"))),
    ):
        if not resume:
            clear_own(unfinished)
        result = compare(
            teacher,
            student,
            pack=pack,
            entities=table,
            relations=relation,
            limit=limit,
            features=features,
            settings=with_given(**compute.settings()),
            checkpoint=unfinished,
        )
        result.save(folder)
    for notice in result.notices:
        note(notice)
    note(f"wrote {folder}/report.html, report.json and audit.duckdb")
    output.write([result.retention])


@command(
    app,
    "diff-texts old.vindex new.vindex corpus.parquet -o diff.parquet",
    "diff-texts base-model/ tuned-model/ texts.txt --samples 50 --tokens 128",
    name="diff-texts",
)
def diff_texts(
    a: Annotated[str, Argument(metavar="A", help=_EITHER)],
    b: Annotated[str, Argument(metavar="B", help="The same.")],
    texts: TextsArgument,
    compute: ComputeOptions,
    output: OutputOptions,
    out: Annotated[
        Path | None, Option("-o", "--out", help="Keep the row of every token in this Parquet file.")
    ] = None,
    samples: Annotated[int, Option(min=1, help="Read the first N texts.")] = 200,
    tokens: Annotated[int, Option(min=2, help="Read the first N tokens of each.")] = 256,
    column: Annotated[str | None, Option(help="The column or field of texts.")] = None,
) -> None:
    """Compare two models token by token over texts.

    stdout gets the tokens that one of them prefers most often. With -o the same command continues an interrupted run.
    """
    from larql_duck.commands.over_texts import diff_texts as compare
    from larql_duck.inference.settings import with_given

    settings = with_given(**compute.settings())
    found = compare(a, b, texts, samples=samples, tokens=tokens, column=column, out=out, settings=settings)
    for notice in found.notices:
        note(notice)
    output.write([found.tokens])


@command(
    app,
    "score X.vindex texts.txt",
    "score model.gguf corpus.parquet --samples 50 --lens --csv",
)
def score(
    model: ModelArgument,
    texts: TextsArgument,
    compute: ComputeOptions,
    output: OutputOptions,
    samples: Annotated[int, Option(min=1, help="Read the first N texts.")] = 200,
    tokens: Annotated[int, Option(min=2, help="Read the first N tokens of each.")] = 256,
    lens: Annotated[bool, Option("--lens", help="Also read every layer as if it were the last.")] = False,
    column: Annotated[str | None, Option(help="The column or field of texts.")] = None,
) -> None:
    """Show how well a model predicts texts: bits a token and a character."""
    from larql_duck.commands.over_texts import text_scores
    from larql_duck.inference.settings import with_given

    settings = with_given(**compute.settings())
    scores = text_scores(
        model, texts, samples=samples, tokens=tokens, lens=lens, column=column, settings=settings
    )
    output.write([scores])


@command(
    app,
    'soft-targets teacher.vindex --facts --where "confidence >= 0.5" -o soft.parquet',
    "soft-targets model.gguf --texts corpus.parquet --samples 1000 -k 64 -o soft.parquet",
    "soft-targets --openai http://localhost:8000/v1 --model NAME --prompts prompts.txt -o soft.parquet",
    name="soft-targets",
)
def soft_targets(
    options: ModelOptions,
    out: Annotated[Path, Option("-o", "--out", help="The Parquet file to write.")],
    teacher: Annotated[str | None, Argument(metavar="TEACHER", help=_EITHER)] = None,
    prompts: Annotated[
        Path | None, Option(help="A prompt a line (or .jsonl, .parquet): what comes next.")
    ] = None,
    texts: Annotated[
        Path | None, Option(help="Texts (.txt, .jsonl, .parquet, a folder): behind every token.")
    ] = None,
    facts: Annotated[bool, Option("--facts", help="The teacher's facts: behind prompt and answer.")] = False,
    where: Annotated[str | None, Option(help="Which facts: a SQL condition over the table facts.")] = None,
    column: Annotated[str | None, Option(help="The column or field of prompts or texts.")] = None,
    samples: Annotated[int | None, Option(min=1, help="The first N prompts or texts.")] = None,
    tokens: Annotated[int, Option(min=2, help="The first N tokens of a text.")] = 256,
    k: Annotated[
        int | None, Option("-k", min=0, help="Tokens a position: 128, behind an API 5; there 0: text alone.")
    ] = None,
    openai: Annotated[
        str | None, Option(metavar="URL", help="Ask an OpenAI-compatible API; its key: OPENAI_API_KEY.")
    ] = None,
    model: Annotated[str | None, Option(help="The API's name of the model.")] = None,
    completion: Annotated[int, Option(min=1, help="Tokens that the API writes behind a prompt.")] = 1,
    rate: Annotated[float | None, Option(help="At most N requests a minute to the API.")] = None,
) -> None:
    """Write what a teacher says next, as a table to learn from.

    A row for each of the k most probable tokens of a position (temperature 1), one of rank 0 for all others. The same
    command continues an interrupted run.
    """
    from larql_duck.atlas.texts import open_corpus
    from larql_duck.distillation import closed_teacher
    from larql_duck.distillation import soft_targets as soft
    from larql_duck.vindex.store import Vindex

    if [prompts is not None, texts is not None, facts].count(True) != 1:
        raise UsageError("give one of --prompts FILE, --texts FILE and --facts")
    if where is not None and not facts:
        raise UsageError("--where belongs to --facts")
    file = prompts if prompts is not None else texts
    corpus = None if file is None else open_corpus(file, column)
    listed = (
        [] if prompts is None or corpus is None else [text for _, text in islice(corpus.texts(), samples)]
    )
    if openai is not None:
        if model is None or prompts is None or teacher is not None:
            raise UsageError("--openai goes with --model NAME and --prompts FILE, without TEACHER")
        asked = closed_teacher.ClosedTeacher.from_environment(
            openai, model, logprobs=5 if k is None else k, tokens=completion, rate=rate
        )
        say(f"made {closed_teacher.write_closed_targets(asked, listed, out)}")
        return
    if teacher is None:
        raise UsageError("name a TEACHER, or a server with --openai URL")
    if model is not None or rate is not None:
        raise UsageError("--model and --rate belong to --openai")
    opened = options.open(teacher)
    if facts and not isinstance(opened.source, Vindex):
        raise UsageError(f"{teacher}: a model alone has no facts; extract it, or give --prompts or --texts")
    if isinstance(opened.source, Vindex) and facts:
        examples = soft.fact_examples(opened.engine, opened.source.table("facts"), where)[:samples]
    elif texts is not None and corpus is not None:
        examples = soft.text_examples(opened.engine, corpus, tokens=tokens, samples=samples)
    else:
        examples = soft.prompt_examples(opened.engine, listed)
    say(f"made {soft.write_soft_targets(opened.engine, examples, out, k=128 if k is None else k)}")


@command(
    app,
    "export-targets soft.parquet --to distillkit -o distillkit/",
    "export-targets soft.parquet --to trl -o train.jsonl",
    name="export-targets",
)
def export_targets(
    soft: Annotated[Path, Argument(metavar="SOFT", help="What larql-duck soft-targets wrote.")],
    to: Annotated[Literal["distillkit", "trl"], Option(help="Whose shape the files have.")],
    out: Annotated[Path, Option("-o", "--out", help="distillkit: a directory; trl: a .jsonl file.")],
) -> None:
    """Write soft targets in the shape of another trainer."""
    from larql_duck.distillation.soft_export import write_distillkit, write_trl

    say(f"made {(write_distillkit if to == 'distillkit' else write_trl)(soft, out)}")
