"""The command line: extract, lql, sql, verify, repl. Results go to stdout, progress and remarks to stderr."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from larql_duck.errors import LarqlError, LqlSyntaxError

if TYPE_CHECKING:
    from larql_duck.result import Result
    from larql_duck.session import Session

# typer brings a click of its own or uses the installed one, depending on its version.
_UsageError: type[Any] = typer.BadParameter.__bases__[0]
_ClickError: type[Any] = _UsageError.__bases__[0]

app = typer.Typer(
    name="larql-duck",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

VindexOption = Annotated[
    Path | None, typer.Option("--vindex", envvar="LARQL_DUCK_VINDEX", help="The vindex to open first.")
]
PatchOption = Annotated[
    list[Path] | None, typer.Option("--patch", help="Apply this .vlp file first; may be repeated.")
]
TextsOption = Annotated[
    Path | None,
    typer.Option(
        "--texts",
        exists=True,
        dir_okay=False,
        help="What INSERT takes for ordinary text; without it the model writes some.",
    ),
]
FormatOption = Annotated[str, typer.Option("--format", help="table, json, csv or parquet.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Short for --format json: one object a line.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Short for --format csv.")]
ParquetOption = Annotated[
    bool, typer.Option("--parquet", help="Short for --format parquet (to a file or pipe).")
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option("--param", help='name=value for $name in the text; quote text as name="5".'),
]


def main() -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 not understood."""
    # OpenMP's threads spin while they wait. Beside any other busy process that made probing twelve times slower
    # (measured on two cores); it must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status after the command line `arguments` were carried out."""
    try:
        status = app(arguments, prog_name="larql-duck", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except LarqlError as error:
        _report(error)
        return error.exit_code
    except _ClickError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "larql-duck"
        _say(f"error: {error.format_message()} (see {command} --help)")
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return 130
    except RuntimeError as error:
        # What DuckDB makes of Ctrl-C when it notices the signal itself.
        if type(error) is not RuntimeError or "interrupted" not in str(error):
            raise
        _say("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _say(f"error: {error.filename or ''}{': ' if error.filename else ''}{error.strerror or error}")
        return 1


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """A transformer as a database that you query with SQL."""
    if context.invoked_subcommand is None:
        print(context.get_help())


# -- commands -------------------------------------------------------------------------------------------------


@app.command()
def extract(
    model: Annotated[
        str, typer.Argument(help="Hugging Face directory, .gguf file, hf://org/name or a vindex.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The vindex to make.")] = None,
    level: Annotated[str, typer.Option(help="What is stored: browse, inference or all.")] = "inference",
    dtype: Annotated[str, typer.Option(help="source, f16 or f32.")] = "source",
    layers: Annotated[str | None, typer.Option(help="Describe the features of layers A-B only.")] = None,
    top_k: Annotated[int, typer.Option(help="Tokens per feature and side.")] = 10,
    in_basis: Annotated[str, typer.Option(help="auto, context or embedding.")] = "auto",
    context_tokens: Annotated[
        int | None, typer.Option(help="Context pass: the N tokens of lowest id.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Ask the model for facts.")] = True,
    pack: Annotated[str, typer.Option(help="Relation pack: a name or a file.")] = "core",
    relation: Annotated[
        list[str] | None, typer.Option("--relation", help="Probe this relation only; may be repeated.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print time, disk and memory; write nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted extraction.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing vindex.")] = False,
) -> int:
    """Make a vindex from a model."""
    from larql_duck.extraction import pipeline

    options: dict[str, Any] = {
        "level": level,
        "dtype": dtype,
        "layers": _layers(layers),
        "top_k": top_k,
        "in_basis": in_basis,
        "context_tokens": context_tokens,
        "probe": probe,
        "pack": pack,
        "relations": tuple(relation) if relation else None,
    }
    if estimate:
        _print_estimate(pipeline.estimate(model, **options))
        return 0
    if out is None:
        raise _UsageError("Missing option '-o': where the vindex is to be made")
    with _progress() as report:
        path = pipeline.extract(
            model, out, **options, resume=resume, force=force, progress=report, notice=_note
        )
    _say(f"made {path}; ask it: larql-duck lql 'DESCRIBE \"France\"' --vindex {path}")
    return 0


@app.command()
def lql(
    text: Annotated[
        str | None, typer.Argument(help="LQL statements; without them and -f, standard input.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Read the statements from a file.")
    ] = None,
    vindex: VindexOption = None,
    form: FormatOption = "table",
    json: JsonOption = False,
    csv: CsvOption = False,
    parquet: ParquetOption = False,
    continue_on_error: Annotated[
        bool, typer.Option("--continue-on-error", help="Go on after a statement that failed.")
    ] = False,
    param: ParamOption = None,
    patch: PatchOption = None,
    texts: TextsOption = None,
) -> int:
    """Run LQL statements."""
    from larql_duck.cli import output

    source = _text(text, file)
    chosen = _format(form, json=json, csv=csv, parquet=parquet)
    failures: list[LarqlError] = []
    with _session(vindex, patch, texts) as session, _progress() as report:
        session.progress = report
        results = _results(session, source, _parameters(param), failures, go_on=continue_on_error)
        output.write(results, chosen)
    return max((error.exit_code for error in failures), default=0)


@app.command()
def sql(
    query: Annotated[
        str | None, typer.Argument(help="DuckDB SQL; without it and -f, standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the SQL from a file.")] = None,
    vindex: VindexOption = None,
    form: FormatOption = "table",
    json: JsonOption = False,
    csv: CsvOption = False,
    parquet: ParquetOption = False,
    param: ParamOption = None,
) -> int:
    """Run plain DuckDB SQL in a session, with the vindex's views, macros and vector functions."""
    from larql_duck.cli import output

    source = _text(query, file)
    chosen = _format(form, json=json, csv=csv, parquet=parquet)
    with _session(vindex) as session:
        output.write([session.sql(source, _parameters(param) or None)], chosen)
    return 0


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="The vindex to check.")]) -> int:
    """Check every byte of a vindex: sizes, checksums, and that tables and arrays agree."""
    from larql_duck.vindex.verify import verify as check

    with _progress() as report:
        problems = check(path, report)
    for problem in problems:
        _say(f"error: {problem}")
    if not problems:
        print(f"{path}: everything holds")
    return 1 if problems else 0


@app.command()
def repl(
    vindex: Annotated[
        Path | None, typer.Argument(envvar="LARQL_DUCK_VINDEX", help="The vindex to open first.")
    ] = None,
    patch: PatchOption = None,
    texts: TextsOption = None,
) -> int:
    """Ask interactively, in LQL or SQL."""
    from larql_duck.repl import run as start

    return int(start(vindex, patch or (), texts) or 0)


# -- what commands share --------------------------------------------------------------------------------------


@contextmanager
def _session(
    vindex: Path | None, patches: Sequence[Path] | None = None, texts: Path | None = None
) -> Iterator[Session]:
    from larql_duck.commands.opening import connect

    if patches and vindex is None:
        raise _UsageError("--patch needs a vindex: name it with --vindex")
    with connect(vindex, patches=patches or (), texts=texts) as session:
        yield session


def _results(
    session: Session, text: str, parameters: dict[str, Any], failures: list[LarqlError], *, go_on: bool
) -> Iterator[Result]:
    """Each statement's results; a failure ends them, or (go_on) is reported and kept in `failures`."""
    from larql_duck.lql import parse

    for statement in parse(text, parameters):
        try:
            yield from session.run(statement, text)
        except LarqlError as error:
            if not go_on:
                raise
            _report(error)
            failures.append(error)


def _text(text: str | None, file: Path | None) -> str:
    if text is not None and file is not None:
        raise _UsageError("give the text or a file, not both")
    if text is not None:
        return text
    if file is not None and str(file) != "-":
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise LarqlError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    if file is None and sys.stdin.isatty():
        raise _UsageError("nothing to run: give the text, a file with -f, or standard input")
    return sys.stdin.read()


def _format(form: str, **short: bool) -> str:
    from larql_duck.cli.output import FORMATS

    given = [name for name, chosen in short.items() if chosen]
    if len(given) > 1 or (given and form not in ("table", given[0])):
        raise _UsageError("choose one output format")
    chosen = given[0] if given else form
    if chosen not in FORMATS:
        raise _UsageError(f"--format {chosen!r} is not known: use {', '.join(FORMATS)}")
    if chosen == "parquet" and sys.stdout.isatty():
        raise _UsageError(
            "Parquet is not for a terminal: redirect it to a file, as in --parquet > out.parquet"
        )
    return chosen


def _parameters(given: list[str] | None) -> dict[str, Any]:
    """name=value pairs; numbers as numbers, everything else (and what is quoted) as text."""
    found: dict[str, Any] = {}
    for pair in given or []:
        name, separator, value = pair.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise _UsageError(f"--param {pair!r}: write name=value")
        found[name] = _value(value)
    return found


def _value(text: str) -> str | int | float:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"-?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][-+]?\d+)", text):
        return float(text)
    return text


def _layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if match is None:
        raise _UsageError(f"--layers {text!r}: write A-B, as in 4-11")
    return int(match[1]), int(match[2] or match[1])


def _print_estimate(estimate: Any) -> None:
    for stage, seconds in estimate.seconds.items():
        print(f"{stage:<10} {_seconds(seconds)}")
    print(f"{'time':<10} {_seconds(estimate.total_seconds)} (basis {estimate.basis})")
    print(f"{'disk':<10} {estimate.disk / 1e6:.0f} MB")
    print(f"{'memory':<10} {estimate.memory / 1e6:.0f} MB")


def _seconds(value: float) -> str:
    return (
        f"{value:.0f} s"
        if value < 120
        else f"{value / 60:.0f} min"
        if value < 7200
        else f"{value / 3600:.1f} h"
    )


@contextmanager
def _progress() -> Iterator[Any]:
    """A callback (stage, done, total) that draws a bar on stderr; without a terminal there it draws nothing."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from larql_duck.progress import bars

    with bars() as report:
        yield report


def _note(line: str) -> None:
    _say(f"note: {line}")


def _report(error: LarqlError) -> None:
    """One line on stderr; in a terminal a syntax error shows its place, too."""
    if isinstance(error, LqlSyntaxError) and sys.stderr.isatty():
        _say(f"error: {error.highlight()}", lines=True)
        return
    _say(f"error: {error}")


def _say(line: str, *, lines: bool = False) -> None:
    with suppress(BrokenPipeError):
        print(line if lines else " ".join(line.split()), file=sys.stderr)


from larql_duck.cli import edits, inference, knowledge  # noqa: E402  (their commands use what stands above)

app.add_typer(knowledge.app)
app.add_typer(inference.app)
app.add_typer(edits.app)
