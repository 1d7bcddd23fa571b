"""The commands that compare two models: audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from larql_duck.cli.errors import note
from larql_duck.cli.options import ComputeOptions, OutputOptions, command
from larql_duck.files import clear_own, unfinished_work

app = typer.Typer()

_EITHER = "A vindex, a Hugging Face directory, a .gguf file or pkg:PYTHON_PACKAGE."
TeacherArgument = Annotated[str, Argument(metavar="TEACHER", help=_EITHER)]
StudentArgument = Annotated[str, Argument(metavar="STUDENT", help="The same.")]


@command(
    app,
    "audit teacher.vindex student.vindex -o audit",
    "audit teacher.vindex student-model/ --pack core --limit 50",
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
    place.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{out}: another process is writing this audit; try again later, or name another place"
    with unfinished_work(unfinished, busy, lambda: any(unfinished.glob("*.msgpack"))):
        if not resume:
            clear_own(unfinished)
        result = compare(
            teacher,
            student,
            pack=pack,
            entities=table,
            relations=relation,
            limit=limit,
            settings=with_given(**compute.settings()),
            checkpoint=unfinished,
        )
        result.save(folder)
    for notice in result.notices:
        note(notice)
    note(f"wrote {folder}/report.html, report.json and audit.duckdb")
    output.write([result.retention])
