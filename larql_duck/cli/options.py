"""The options that commands share, a dataclass for each group; `command` gives a command the options of its groups."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer import Argument, Option

from larql_duck.cli import output
from larql_duck.cli.errors import UsageError, say
from larql_duck.errors import LarqlError, interruption
from larql_duck.progress import doing, shown

_HOW_TO_OPEN = "name it before the text, as in larql-duck lql NAME.vindex 'STATS'"

if TYPE_CHECKING:
    from larql_duck.inference.model import Model
    from larql_duck.result import Result
    from larql_duck.session import Session

VindexArgument = Annotated[Path, Argument(metavar="VINDEX", help="The vindex.")]
OptionalVindexArgument = Annotated[
    Path | None, Argument(metavar="VINDEX", envvar="LARQL_DUCK_VINDEX", help="The vindex to open.")
]
ModelArgument = Annotated[
    str,
    Argument(metavar="MODEL", help="A vindex, a Hugging Face directory, a .gguf file or pkg:PYTHON_PACKAGE."),
]
PromptArgument = Annotated[str, Argument(metavar="PROMPT", help="The prompt, as raw text.")]
PlotOption = Annotated[Path | None, Option("--plot", help="Draw it: .html, .svg or .png.")]
RelationOption = Annotated[
    list[str] | None, Option("--relation", help="Probe this relation only; may be repeated.")
]

RayOption = Annotated[
    str | None, Option("--ray", metavar="auto|ADDRESS", help="Let the nodes of a Ray cluster do the work.")
]


@dataclass(frozen=True)
class OutputOptions:
    """How results are written to stdout."""

    form: Annotated[
        Literal["table", "line", "markdown", "jsonl", "json", "csv", "tsv", "parquet"],
        Option(
            "--format", help="How results are written. json, csv, tsv and parquet: the last result alone."
        ),
    ] = "table"
    json: Annotated[bool, Option("--json", help="Short for --format json: one array.")] = False
    jsonl: Annotated[bool, Option("--jsonl", help="Short for --format jsonl: one object a line.")] = False
    csv: Annotated[bool, Option("--csv", help="Short for --format csv.")] = False
    parquet: Annotated[bool, Option("--parquet", help="Short for --format parquet.")] = False

    def __post_init__(self) -> None:
        short = [name for name in ("json", "jsonl", "csv", "parquet") if getattr(self, name)]
        if len(short) > 1 or (short and self.form not in ("table", short[0])):
            raise UsageError("choose one output format")
        if short:
            object.__setattr__(self, "form", short[0])
        if self.form == "parquet" and sys.stdout.isatty():
            raise UsageError(
                "Parquet is not for a terminal: redirect it to a file, as in --parquet > out.parquet"
            )

    def write(self, results: Iterable[Result]) -> None:
        """Write the results, each as soon as it is there."""
        output.write(results, self.form)


@dataclass(frozen=True)
class ComputeOptions:
    """Where and how forward passes are computed."""

    dtype: Annotated[
        Literal["f32", "f16", "bf16"] | None,
        Option("--compute-dtype", envvar="LARQL_DUCK_COMPUTE_DTYPE", help="f32 is the default."),
    ] = None
    device: Annotated[
        str | None,
        Option("--device", envvar="LARQL_DUCK_DEVICE", help="cpu (default), cuda, cuda:1 or auto."),
    ] = None

    def settings(self) -> dict[str, Any]:
        """The settings that were given."""
        given = {"compute_dtype": self.dtype, "device": self.device}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class PatchOptions:
    """The patches under which a command runs."""

    patch: Annotated[
        list[Path] | None, Option("--patch", help="Apply this .vlp file first; may be repeated.")
    ] = None


@dataclass(frozen=True)
class SessionOptions(ComputeOptions, PatchOptions):
    """How a session is opened."""

    texts: Annotated[
        Path | None,
        Option(
            "--texts",
            exists=True,
            dir_okay=False,
            help="Ordinary text, for INSERT and perplexity; without it the model writes some.",
        ),
    ] = None

    @contextmanager
    def session(self, vindex: Path | None) -> Iterator[Session]:
        """A Session on the vindex, with the patches applied."""
        from larql_duck.commands.opening import connect

        if self.patch and vindex is None:
            raise UsageError("--patch needs a vindex: name it first")
        with connect(vindex, patches=self.patch or (), texts=self.texts) as session:
            session.configure(how_to_open=_HOW_TO_OPEN, keep_unsaved=True, **self.settings())
            yield session


@dataclass(frozen=True)
class ModelOptions(ComputeOptions, PatchOptions):
    """How a model is opened for forward passes alone."""

    def open(self, model: str) -> Model:
        """The model or vindex at a path; errors as of Model.open."""
        from larql_duck.inference.model import Model

        return Model.open(model, dtype=self.dtype, device=self.device, patches=self.patch or ())


@dataclass(frozen=True)
class ScriptOptions:
    """A vindex, a text to run in it, and the values of its parameters."""

    vindex: OptionalVindexArgument = None
    text: Annotated[
        str | None, Argument(metavar="TEXT", help="What to run; without it, -c and -f: standard input.")
    ] = None
    command: Annotated[str | None, Option("-c", "--command", help="The text, where no vindex is named.")] = (
        None
    )
    file: Annotated[Path | None, Option("-f", "--file", help="Read the text from a file.")] = None
    param: Annotated[
        list[str] | None, Option("--param", help='name=value for $name in the text; quote text as name="5".')
    ] = None

    def read(self) -> str:
        """The text, from wherever it comes."""
        from larql_duck.vindex.address import address_of

        texts = [text for text in (self.text, self.command, self.file) if text is not None]
        if len(texts) > 1:
            raise UsageError("give one text: behind the vindex, with -c, or in a file with -f")
        named = self.vindex is None or self.vindex.exists() or address_of(self.vindex) is not None
        if not texts and not named:
            raise UsageError(
                f"{self.vindex}: no such vindex; the vindex comes first, then the text; "
                "a text without a vindex goes behind -c"
            )
        if self.file is not None and str(self.file) != "-":
            try:
                return self.file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise LarqlError(f"{self.file}: not UTF-8 text; save it as UTF-8") from None
        if not texts and sys.stdin.isatty():
            raise UsageError("nothing to run: give a text, a file with -f, or standard input")
        text = self.command if self.text is None else self.text
        return sys.stdin.read() if text is None else text

    def parameters(self) -> dict[str, str | int | float]:
        """The parameters' values: numbers as numbers, everything else (and what is quoted) as text."""
        values = {}
        for pair in self.param or []:
            name, separator, value = pair.partition("=")
            if not separator or not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise UsageError(f"--param {pair!r}: write name=value")
            values[name] = _value(value)
        return values


# Commands that run statements, their own or those of others.
_STATEMENTS = ("lql", "sql", "repl", "serve", "mcp")


def epilog(*examples: str) -> str:
    """What stands below the options of a help text: examples, a line each."""
    return "\n".join(["\b", "Examples:", *(f"  larql-duck {example}" for example in examples)])


def command(
    app: typer.Typer, *examples: str, name: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that makes a function a command of `app`; examples are what follows `larql-duck` on the command line.

    A parameter whose type is one of the dataclasses above stands for the options of its fields; the function gets the
    dataclass made of them. All other parameters are typer's.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
        options: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in groups:
                options += _options(groups[parameter.name])
            else:
                options.append(
                    parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
                )

        @functools.wraps(function)
        def run(**given: Any) -> Any:
            for parameter, group in groups.items():
                given[parameter] = group(**{field.name: given.pop(field.name) for field in fields(group)})
            # A session says itself what each statement is.
            working = nullcontext() if function.__name__ in _STATEMENTS else doing(function.__name__)
            try:
                with shown(), working:
                    return function(**given)
            except (KeyboardInterrupt, RuntimeError) as error:
                # Here, because versions of typer make different things of Ctrl-C.
                if (line := interruption(error)) is None:
                    raise
                say(line)
                return 130

        run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in options}
        app.command(name, epilog=epilog(*examples))(run)
        return function

    return register


def _options(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])


def layer_range(text: str | None) -> tuple[int, int] | None:
    """(first, last) layer of 'A-B' or 'A', both included and counted from 0."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if match is None:
        raise UsageError(f"--layers {text!r}: write A-B, as in 4-11")
    return int(match[1]), int(match[2] or match[1])


def _value(text: str) -> str | int | float:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"-?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][-+]?\d+)", text):
        return float(text)
    return text
