"""Every command that writes, and everything that may stand where it writes: written as told, or refused in one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from larql_duck import files
from larql_duck.cli.app import run
from larql_duck.errors import LarqlError
from tests.conftest import Make

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes and sockets as files here")

INSERT = 'INSERT INTO EDGES (entity, relation, target) VALUES ("Oz", "capital", "Paris") MODE KNN;'
# command -> the suffix of its output, and its first bytes (None: a folder)
COMMANDS: dict[str, tuple[str, bytes | None]] = {
    "extract": (".vindex", None),
    "extract --force": (".vindex", None),
    "COMPILE INTO VINDEX": (".vindex", None),
    "COMPILE INTO MODEL": ("", None),
    "COMPILE INTO MODEL, GGUF": (".gguf", b"GGUF"),
    "SAVE PATCH": (".vlp", b"{"),
    "DIFF INTO PATCH": (".vlp", b"{"),
    "DIFF INTO REPORT": (".md", b"# Differences"),
    "TRACE SAVE, Parquet": (".parquet", b"PAR1"),
    "TRACE SAVE, TRAC": (".trace", b"TRAC"),
    "trace --plot": (".svg", b"<svg"),
    "report": (".html", b"<!doctype html>"),
    "activations": (".parquet", b"PAR1"),
    ".output": (".txt", b"a"),
}
ODD = ("a*b", "a?b", "a[b]c", "a\\b", "50%d", "two\nlines", "a'b\"c")
STANDING = ("file", "read-only", "foreign", "link", "link to folder", "dangling", "folder", "pipe", "socket")
MAKES_FOLDERS = {
    "extract",
    "extract --force",
    "COMPILE INTO VINDEX",
    "COMPILE INTO MODEL",
    "COMPILE INTO MODEL, GGUF",
    "report",
}
# What make test runs of the table: every kind for one command, and two kinds for every command that is quick.
SLOW = {
    "extract",
    "extract --force",
    "COMPILE INTO VINDEX",
    "COMPILE INTO MODEL",
    "activations",
    "trace --plot",
}


class TooLong(BaseException):
    """A command waits for something that never comes."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def over(_number: int, _frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def cli(*arguments: object, stdin: str = "") -> str | None:
    """What the command line says of its failure; None where it succeeds."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), at_most(60):
        status = run([str(a) for a in arguments])
    lines = said.getvalue().splitlines()
    assert "Traceback" not in said.getvalue()
    errors = [line for line in lines if line.startswith("error:")]
    assert len(errors) == (status != 0), lines
    return errors[0] if errors else None


def quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.fixture(scope="session")
def edited(probed_vindex: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch file with one fact, for commands that need edits."""
    path = tmp_path_factory.mktemp("patch") / "one.vlp"
    assert cli("lql", probed_vindex("llama"), f"{INSERT} SAVE PATCH {quoted(path)};") is None
    return path


@pytest.fixture
def write(
    tiny_model: Make, probed_vindex: Make, edited: Path, tmp_path: Path
) -> Callable[[str, Path], str | None]:
    """A function (command, output) -> the line of its refusal, None where it wrote."""
    texts = tmp_path.parent / f"{tmp_path.name}-texts.txt"
    texts.write_text("Paris is a city in France\n")

    def go(command: str, out: Path) -> str | None:
        vindex, name = probed_vindex("llama"), quoted(out)
        quick = ("--level", "browse", "--in-basis", "embedding", "--no-probe")
        lql = {
            "COMPILE INTO VINDEX": f"COMPILE CURRENT INTO VINDEX {name};",
            "COMPILE INTO MODEL": f"COMPILE CURRENT INTO MODEL {name};",
            "COMPILE INTO MODEL, GGUF": f"COMPILE CURRENT INTO MODEL {name} FORMAT gguf;",
            "SAVE PATCH": f"{INSERT} SAVE PATCH {name};",
            "DIFF INTO PATCH": f'{INSERT} DIFF "{vindex}" CURRENT INTO PATCH {name};',
            "DIFF INTO REPORT": f'DIFF "{vindex}" CURRENT INTO REPORT {name};',
            "TRACE SAVE, Parquet": f'TRACE "The capital of" SAVE {name};',
            "TRACE SAVE, TRAC": f'TRACE "The capital of" SAVE {name};',
        }
        if command in lql:
            return cli("lql", vindex, lql[command])
        if command == ".output":
            from larql_duck.repl.loop import Repl

            with at_most(60):
                try:
                    repl = Repl.__new__(Repl)
                    repl._closing, repl._file = contextlib.ExitStack(), None
                    repl.send_to(out)
                    repl.write("a")
                    repl.close()
                except LarqlError as error:
                    return str(error)
            return None
        return cli(
            *{
                "extract": ("extract", tiny_model("llama"), "-o", out, *quick),
                "extract --force": ("extract", tiny_model("llama"), "-o", out, *quick, "--force"),
                "trace --plot": ("trace", vindex, "The capital of", "--plot", out),
                "report": ("report", vindex, "-o", out),
                "activations": ("activations", vindex, texts, "--raw", out),
            }[command]
        )

    return go


def snapshot(folder: Path) -> dict[str, object]:
    """Every name below a folder with what it is: content of files, goals of links, the mode of others."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else None
        found[str(path.relative_to(folder))] = (mode, os.readlink(path) if path.is_symlink() else content)
    return found


def is_written(command: str, out: Path) -> bool:
    start = COMMANDS[command][1]
    if start is None:
        return (out / "index.json").is_file() or (out / "config.json").is_file()
    return out.is_file() and not out.is_symlink() and out.read_bytes().lstrip()[: len(start)] == start


def stand(kind: str, out: Path, older: bytes) -> None:
    """Put something of this kind at `out`, and beside it what it leads to."""
    other = out.parent / "other"
    if kind in ("file", "read-only"):
        out.write_bytes(older)
        out.chmod(0o444 if kind == "read-only" else 0o644)
    elif kind == "foreign":
        out.write_bytes(b"\x00the only copy of a thesis")
    elif kind == "link":
        other.write_bytes(older)
        out.symlink_to(other)
    elif kind == "link to folder":
        other.mkdir()
        out.symlink_to(other)
    elif kind == "dangling":
        out.symlink_to(other)
    elif kind == "folder":
        (out / "mine").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(out)
    else:
        # A socket's name may have about a hundred letters.
        here = os.getcwd()
        os.chdir(out.parent)
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(out.name)
        finally:
            os.chdir(here)


def older_of(command: str) -> bytes:
    start = COMMANDS[command][1] or b"x"
    return b'{"version": 1, "base_model": "m"}' if start == b"{" else start + b"\nolder"


@cache
def _sampled(command: str, kind: str) -> bool:
    if command == "SAVE PATCH":
        return kind not in ODD[1:]
    return command not in SLOW and kind in ("pipe", "foreign")


def table() -> Iterator[object]:
    for command in COMMANDS:
        for kind in (*STANDING, "nothing", "missing parent", *ODD):
            marks = () if _sampled(command, kind) else pytest.mark.extras
            yield pytest.param(command, kind, marks=marks, id=f"{command}-{kind!r}")


@pytest.mark.parametrize(("command", "kind"), table())
def test_written_as_told_or_refused_in_one_line(
    command: str, kind: str, write: Callable[[str, Path], str | None], tmp_path: Path
) -> None:
    suffix, start = COMMANDS[command]
    out = tmp_path / f"out{suffix}"
    if kind in ODD:
        out = tmp_path / f"{kind}{suffix}"
    elif kind == "missing parent":
        out = tmp_path / "no" / "such" / f"out{suffix}"
    elif kind in STANDING:
        stand(kind, out, older_of(command))
    before = snapshot(tmp_path)
    refusal = write(command, out)
    expected = kind in ODD or kind == "nothing" or (kind == "missing parent" and command in MAKES_FOLDERS)
    # What is made as a whole never takes a file's place; the other outputs take that of one of their kind.
    expected |= kind == "file" and start is not None and start != b"GGUF"
    if kind in ("a?b", "a\\b") and suffix == ".vindex":
        # DuckDB has no way to name the database; it is said before the work.
        expected = False
        assert refusal is not None and "DuckDB cannot name a database in a path with" in refusal
    assert (refusal is None) == expected, refusal
    if refusal is None:
        assert is_written(command, out)
        strange = [path for path in out.parent.iterdir() if path.name.startswith(".")]
        assert strange == []
    else:
        assert "\n" not in refusal and out.name in refusal
        assert snapshot(tmp_path) == before
        if kind.startswith("link"):
            assert str(tmp_path / "other") in refusal


# -- --force ------------------------------------------------------------------------------------------------


@pytest.fixture
def force(tiny_model: Make) -> Callable[..., str | None]:
    """A function (out, model) -> the refusal of a quick extraction with --force."""

    def go(out: object, model: Path | None = None) -> str | None:
        quick = ("--level", "browse", "--in-basis", "embedding", "--no-probe", "--force")
        return cli("extract", model or tiny_model("llama"), "-o", out, *quick)

    return go


def test_force_replaces_neither_folders_nor_the_model_nor_the_current_directory(
    force: Callable[..., str | None], tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "thesis" / "text.txt").write_text("years")
    shutil.copytree(tiny_model("llama"), home / "models" / "llama")
    (home / "empty" / "below").mkdir(parents=True)
    monkeypatch.chdir(home / "empty" / "below")
    model, before = home / "models" / "llama", snapshot(tmp_path)
    for out in (home / "thesis", home / "models", model, home, ".", "..", "nowhere/..", home / "empty"):
        refusal = force(out, model)
        assert refusal is not None and snapshot(tmp_path) == before, out


def test_force_replaces_a_vindex_and_an_empty_folder_and_nobodys_old_folder(
    force: Callable[..., str | None], probed_vindex: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, mine = tmp_path / "x.vindex", tmp_path / ".x.vindex.old"
    mine.mkdir()
    (mine / "mine.txt").write_text("kept")
    shutil.copytree(probed_vindex("llama"), out)
    (out / "notes.txt").write_text("mine")
    refusal = force(out)
    assert refusal is not None and "notes.txt" in refusal and (out / "notes.txt").exists()
    (out / "notes.txt").rename(out / "tables" / "mine.parquet")
    refusal = force(out)
    assert refusal is not None and "tables/mine.parquet" in refusal
    (out / "tables" / "mine.parquet").unlink()
    assert force(out) is None and '"browse"' in (out / "index.json").read_text()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert force(empty) is None and (empty / "index.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.vindex.old", "empty", "x.vindex"]
    assert (mine / "mine.txt").read_text() == "kept"


def test_the_old_vindex_stays_when_the_new_one_does_not_come(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.vindex.layout import aside_of
    from larql_duck.vindex.publish import publish_directory

    out, staging = tmp_path / "x.vindex", tmp_path / ".x.vindex.partial" / "vindex"
    shutil.copytree(world, out)
    shutil.copytree(world, staging)
    before, rename = snapshot(out), os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source) == staging:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        publish_directory(staging, out, aside_of(out))
    assert not aside_of(out).exists()
    assert snapshot(out) == before and sorted(os.listdir(tmp_path)) == [".x.vindex.partial", "x.vindex"]


# -- patches ------------------------------------------------------------------------------------------------


def test_overwrite_says_that_a_file_may_go(probed_vindex: Make, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    refusal = cli("lql", probed_vindex("llama"), f"{INSERT} SAVE PATCH {quoted(notes)};")
    assert refusal is not None and "OVERWRITE" in refusal and notes.read_text() == "mine"
    assert cli("lql", probed_vindex("llama"), f"{INSERT} SAVE PATCH {quoted(notes)} OVERWRITE;") is None
    assert notes.read_bytes().startswith(b"{")
    os.mkfifo(tmp_path / "pipe.vlp")
    refusal = cli("lql", probed_vindex("llama"), f'{INSERT} SAVE PATCH "{tmp_path}/pipe.vlp" OVERWRITE;')
    assert refusal is not None and "pipe" in refusal


# -- the system's errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "that you may write to"),
        (errno.EROFS, "that you may write to"),
        (errno.ENOENT, "make the folder"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "name another place"),
    ],
)
def test_the_next_step_fits_the_error(
    number: int, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = files.write_whole(tmp_path / "a.txt", "older")

    def failing(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(LarqlError, match=step) as caught:
        files.write_whole(older, "newer")
    assert ("space" in str(caught.value)) == ("space" in step) or number == errno.ENOSPC
    assert older.read_text() == "older" and os.listdir(tmp_path) == ["a.txt"]


def test_a_report_is_whole_or_the_older_one(
    probed_vindex: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    assert cli("report", probed_vindex("llama"), "-o", out) is None
    before = snapshot(tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refusal = cli("report", probed_vindex("llama"), "-o", out)
    assert refusal is not None and "free some space" in refusal and snapshot(tmp_path) == before


def test_folders_are_made_for_the_real_path_and_go_with_a_failure(
    write: Callable[[str, Path], str | None], force: Callable[..., str | None], tmp_path: Path
) -> None:
    assert write("extract", tmp_path / "none" / ".." / "new" / "x.vindex") is None
    assert os.listdir(tmp_path) == ["new"] and os.listdir(tmp_path / "new") == ["x.vindex"]
    broken = tmp_path / "new" / "model.gguf"
    broken.write_bytes(b"GGUF")
    assert force(tmp_path / "one" / "two" / "x.vindex", broken) is not None
    assert os.listdir(tmp_path) == ["new"]


# -- inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_inputs_that_are_no_files_are_refused_at_once(
    kind: str, probed_vindex: Make, tiny_model: Make, tmp_path: Path
) -> None:
    vindex = probed_vindex("llama")

    def place(name: str) -> Path:
        stand(kind, tmp_path / name, b"")
        return tmp_path / name

    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    weights = next((tmp_path / "model").glob("*.safetensors"))
    weights.unlink()
    os.mkfifo(weights)
    out = tmp_path / "out"
    for arguments in (
        ("extract", place("m.gguf"), "-o", out),
        ("extract", place("model.bin"), "-o", out),
        ("extract", tmp_path / "model", "-o", out),
        ("run", tmp_path / "m.gguf", "The"),
        ("lql", vindex, f'APPLY PATCH "{place("p.vlp")}";'),
        ("activations", vindex, place("texts.txt"), "--raw", out),
        ("activations", vindex, place("more.txt")),
        ("evaluate", vindex, "--texts", tmp_path / "texts.txt", "--patch", tmp_path / "p.vlp"),
        ("check-edits", vindex, "--cases", place("cases.json")),
        ("probe", vindex, "--dry-run", "--pack", place("pack.yaml")),
        ("probe", vindex, "--dry-run", "--entities", place("e.csv")),
        ("probe", vindex, "--dry-run", "--entities", place("e.parquet")),
    ):
        refusal = cli(*arguments)
        assert refusal is not None and "file" in refusal, arguments
        assert not out.exists()
