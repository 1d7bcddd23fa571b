"""What was finished before an error can be resumed; what cannot work is said before the work."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from larql_duck import files
from larql_duck.atlas import collecting, raw
from larql_duck.cli import app
from larql_duck.commands import storing
from larql_duck.compilation import vindex as compiled
from larql_duck.errors import VindexError
from larql_duck.extraction import extract, stages, state
from larql_duck.inference import engine
from larql_duck.probing import page
from larql_duck.probing import publish as probed
from larql_duck.session import session
from larql_duck.vindex import derive
from larql_duck.vindex.layout import aside_of, staging_of
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.reliability.test_outputs import snapshot


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "out of memory"),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory",
        ),
        (
            duckdb.OutOfMemoryException("Out of Memory Error: failed\n\nPossible solutions:\n* 58 lines"),
            "out of memory",
        ),
    ],
)
def test_an_error_in_the_last_step_keeps_the_steps_before(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    out = tmp_path / "x.vindex"

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(stages, "rebuild_database", fails)
        with pytest.raises(VindexError, match=f"(?i){said}.*--resume") as caught:
            extract(tiny_model("llama"), out, probe=False)
    assert "\n" not in str(caught.value) and not out.exists() and staging_of(out).is_dir()
    # The finished steps are not repeated.
    monkeypatch.setattr(stages.arrays, "write_weights", full)
    extract(tiny_model("llama"), out, probe=False, resume=True)
    assert verify(out) == [] and [p.name for p in tmp_path.iterdir()] == ["x.vindex"]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


KEPT = "the finished steps are kept: the same command"
NOT_KEPT = "nothing of the unfinished step is kept"
EDIT = 'INSERT INTO EDGES (entity, relation, target) VALUES ("Oz", "capital", "Paris") MODE KNN;'
# What Ctrl-C meets: the arguments, the function in which it comes, what is said, what is left beside the inputs.
STOPPED = [
    ("extract MODEL -o OUT --no-probe", stages, "rebuild_database", KEPT, {".OUT.partial"}),
    ("extract MODEL -o OUT --no-probe", stages.arrays, "write_gates", NOT_KEPT, set()),
    ("probe VINDEX --pack core --relation capital", probed, "commit_tables", KEPT, {".VINDEX.probe"}),
    ("activations VINDEX TEXTS.txt", storing, "commit_tables", KEPT, {".VINDEX.activations"}),
    ("activations VINDEX TEXTS.txt", collecting, "_stream", NOT_KEPT, set()),
    ("activations VINDEX TEXTS.txt --raw OUT", raw, "checked", NOT_KEPT, set()),
    ("report VINDEX -o OUT", page, "page", NOT_KEPT, set()),
    ("check-edits VINDEX", session.Session, "evaluate_edits", NOT_KEPT, set()),
    (["lql", "VINDEX", EDIT.replace(" MODE KNN", "")], engine.Engine, "load", NOT_KEPT, set()),
    (["lql", "VINDEX", f'{EDIT} SAVE PATCH "OUT";'], files.os, "fsync", NOT_KEPT, set()),
    (["lql", "VINDEX", f'{EDIT} COMPILE CURRENT INTO VINDEX "OUT";'], compiled, "rebuild_database", NOT_KEPT, set()),
]  # fmt: skip


@pytest.fixture
def inputs(tiny_model, probed_vindex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the inputs of the commands here: MODEL, VINDEX, TEXTS.txt, PATCH.vlp."""
    shutil.copytree(tiny_model("llama"), tmp_path / "MODEL")
    shutil.copytree(probed_vindex("llama"), tmp_path / "VINDEX")
    (tmp_path / "TEXTS.txt").write_text("Paris is a city in France\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("arguments", "place", "function", "said", "left"), STOPPED)
def test_ctrl_c_says_what_is_kept(
    arguments: str | list[str], place: object, function: str, said: str, left: set[str],
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = {path.name for path in inputs.iterdir()}
    monkeypatch.setattr(collecting, "_EVERY", 0.0)
    monkeypatch.setattr(place, function, interrupted)
    assert app.run(arguments.split() if isinstance(arguments, str) else arguments) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"interrupted; {said}"), last
    assert {path.name for path in inputs.iterdir()} == before | left


# -- folders of unfinished work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name", "kind"),
    [
        ("extract MODEL -o OUT --no-probe", ".OUT.partial", "folder"),
        ("extract MODEL -o OUT --no-probe", ".OUT.partial", "file"),
        ("extract MODEL -o OUT --no-probe", ".OUT.partial", "link"),
        ("extract MODEL -o OUT --no-probe --resume", ".OUT.partial", "folder"),
        ("probe VINDEX --pack core --relation capital", ".VINDEX.probe", "folder"),
        ("activations VINDEX TEXTS.txt", ".VINDEX.activations", "folder"),
        ("activations VINDEX TEXTS.txt --raw OUT", ".OUT.partial", "folder"),
        ("compile", ".OUT.compiling", "folder"),
    ],
)
def test_what_bears_the_name_of_unfinished_work_is_named_and_stays(
    arguments: str, name: str, kind: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = inputs / "other"
    for folder in {inputs / name if kind == "folder" else other}:
        (folder / "mine" / ".deep").mkdir(parents=True)
        (folder / "state.npz").write_text("mine")
        (folder / "one.msgpack").write_text("mine")
    if kind == "file":
        (inputs / name).write_text("mine")
    elif kind == "link":
        (inputs / name).symlink_to(other)
    before = snapshot(inputs)
    compiling = ["lql", "VINDEX", f'{EDIT} COMPILE CURRENT INTO VINDEX "OUT";']
    assert app.run(compiling if arguments == "compile" else arguments.split()) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and f"{name}: is not larql-duck's" in said[0], said
    assert snapshot(inputs) == before


def test_a_folder_named_try_stays(inputs: Path) -> None:
    (inputs / ".OUT.try").mkdir()
    (inputs / ".OUT.try" / "mine").write_text("mine")
    assert app.run(["extract", "MODEL", "-o", "OUT", "--no-probe"]) == 0
    assert (inputs / ".OUT.try" / "mine").read_text() == "mine"


@pytest.mark.parametrize("came", ["empty folder", "vindex", "folder", "file"])
def test_what_comes_to_out_while_a_model_is_extracted_stays(
    came: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rebuild = inputs / "OUT", stages.rebuild_database

    def meanwhile(directory: Path) -> None:
        rebuild(directory)
        if came == "vindex":
            shutil.copytree(inputs / "VINDEX", out)
        elif came == "file":
            out.write_text("mine")
        else:
            (out / "mine" if came == "folder" else out).mkdir(parents=True)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "rebuild_database", meanwhile)
        with pytest.raises(VindexError, match=r"came there while .* --resume") as caught:
            extract("MODEL", out, probe=False)
    assert "\n" not in str(caught.value)
    assert (out / "mine").is_dir() if came == "folder" else came != "vindex" or verify(out) == []
    # Nothing is repeated.
    monkeypatch.setattr(stages.Extraction, "run", lambda _self: pytest.fail("the work was begun again"))
    if came in ("folder", "file"):
        with pytest.raises(VindexError, match="only a vindex is replaced"):
            extract("MODEL", out, probe=False, resume=True, force=True)
        out.rename(inputs / "away")
    extract("MODEL", out, probe=False, resume=True, force=came not in ("folder", "file"))
    assert verify(out) == [] and Vindex.open(out).table("facts").num_rows == 0
    assert not staging_of(out).exists()


def test_killed_between_two_renames_force_gives_the_older_vindex_back(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from larql_duck.extraction import extract\n"
        "real = os.rename\n"
        "def rename(a, b):\n"
        "    if Path(b).name == 'VINDEX': os.kill(os.getpid(), 9)\n"
        "    real(a, b)\n"
        "os.rename = rename\n"
        "extract('MODEL', 'VINDEX', probe=False, force=True)"
    )
    ended = subprocess.run([sys.executable, "-c", killed], cwd=inputs, env=child_environment())
    out = Path("VINDEX")
    older, staging = aside_of(out), staging_of(out)
    assert ended.returncode == -signal.SIGKILL and not out.exists() and older.is_dir()
    shutil.copytree(staging, "kept")

    def again(*more: str) -> tuple[int, str]:
        status = app.run(["extract", "MODEL", "-o", "VINDEX", "--no-probe", *more])
        return status, capsys.readouterr().err

    for command in (["lql", "VINDEX", "STATS"], ["verify", "VINDEX"]):
        assert app.run(command) == 1
        assert f"bring it back with: mv {older} VINDEX" in capsys.readouterr().err
    # Without --force the older one is back, and stays.
    status, said = again()
    assert status == 1 and "is back" in said and "exists already" in said
    assert verify(out) == [] and Vindex.open(out).table("facts").num_rows > 0
    # With --resume nothing is repeated.
    with monkeypatch.context() as patch:
        patch.setattr(stages.Extraction, "run", lambda _self: pytest.fail("the work was begun again"))
        assert again("--force", "--resume")[0] == 0
    assert verify(out) == [] and Vindex.open(out).table("facts").num_rows == 0 and not staging.exists()
    # What was put at OUT meanwhile does not cost the older one.
    shutil.copytree("kept", staging)
    status, said = again("--force")
    assert status == 1 and f"{older}: is the vindex that stood at VINDEX" in said and verify(older) == []
    # Where the new one stands, the older one goes.
    shutil.rmtree(staging / "vindex")
    assert again("--force")[0] == 0 and not staging.exists()


@pytest.mark.parametrize("broken", ["rename", "duckdb"])
def test_the_place_is_tried_before_the_work(tiny_model, tmp_path, monkeypatch, broken: str) -> None:
    if broken == "rename":
        monkeypatch.setattr(state.os, "rename", full)
    else:
        monkeypatch.setattr(
            state, "in_memory", lambda: (_ for _ in ()).throw(duckdb.IOException("no\nplace"))
        )
    monkeypatch.setattr(stages.arrays, "write_gates", lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(VindexError, match="choose another -o") as caught:
        extract(tiny_model("llama"), tmp_path / "x.vindex", probe=False)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_duckdb_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise duckdb.OutOfMemoryException(
            "Out of Memory Error: could not allocate\n\nPossible solutions:\n* more"
        )

    monkeypatch.setattr(derive, "_show", fails)
    with pytest.raises(VindexError, match="out of memory") as caught:
        derive.derive_entities(pa.table({}))
    assert "\n" not in str(caught.value)


def test_out_of_memory_is_one_line_of_the_program(monkeypatch, capsys) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(app, "app", fails)
    assert app.run([]) == 1
    assert (
        capsys.readouterr().err == "error: out of memory; close other programs, or use a machine with more\n"
    )


def test_what_a_killed_write_left_goes_with_the_next(tmp_path: Path) -> None:
    target = tmp_path / "edits.vlp"
    killed = (
        "import os, sys; from larql_duck.files import open_replacing\n"
        "with open_replacing(sys.argv[1]) as f:\n    f.write(b'half'); f.flush(); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", killed, str(target)], cwd=tmp_path, env=child_environment())
    assert ended.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".edits.vlp.notes").mkdir()
    with files.open_replacing(target) as file:
        file.write(b"outer")
        # A writer that lives keeps its own.
        files.write_whole(target, b"inner")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".edits.vlp.notes", "edits.vlp"]
    assert target.read_bytes() == b"outer"


def child_environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
