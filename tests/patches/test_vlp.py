from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from larql_duck.commands.opening import connect
from larql_duck.errors import PatchError
from larql_duck.patches.operations import DeleteKnnOp, DeleteOp, InsertOp, Meta, Operation, UpdateOp
from larql_duck.patches.overlay import Overlay
from larql_duck.patches.patch_file import PatchFile
from larql_duck.patches.vlp import read_patch, write_patch
from larql_duck.session import Session
from larql_duck.vindex.store import Vindex, base_checksum
from tests.conftest import UPSTREAM
from tests.edits import database_fact, insert, some, vector

BASE = UPSTREAM / "all-f32.vindex"
FILES = ("insert-knn", "insert-compose", "delete-update")
Change = Callable[[dict[str, Any]], object]


def upstream(name: str) -> Path:
    return UPSTREAM / "patches" / f"{name}.vlp"


def text(values: list[float] | np.ndarray) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def same(one: Operation, other: Operation) -> bool:
    for name in vars(one):
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, np.ndarray):
            if not np.array_equal(a, b):
                return False
        elif a != b:
            return False
    return type(one) is type(other)


def test_reference_files_apply_to_the_reference_vindex() -> None:
    with connect(BASE, patches=[upstream(n) for n in FILES]) as s:
        shown = s.lql("SELECT name, inserts, updates, deletes FROM PATCHES ORDER BY position").rows()
        assert shown == [("insert-knn", 2, 0, 0), ("insert-compose", 1, 0, 0), ("delete-update", 0, 1, 1)]
        assert {(f.entity, f.target) for f in s.patches.overlay.facts} == {
            ("Spain", "Spanish"), ("Italy", "euro"), ("France", "Seine"),
        }  # fmt: skip
        assert s.patches.overlay.slots() == [(2, 5), (2, 6), (2, 18)]


def test_reference_files_apply_to_our_vindex_of_the_same_model(tmp_path: Path) -> None:
    from larql_duck.extraction import extract

    out = extract(
        UPSTREAM / "tiny-llama", tmp_path / "o.vindex", level="all", in_basis="embedding", probe=False
    )
    with connect(out) as s:
        for name in FILES:
            s.lql(f'APPLY PATCH "{upstream(name)}"')
        assert s.patches.overlay.slots() == [(2, 5), (2, 6), (2, 18)]
        shown = s.sql(
            "SELECT top_token FROM features WHERE layer = 2 AND feature IN (6, 18) ORDER BY feature"
        )
        assert shown.rows() == [("London",), ("Seine",)]


def test_the_reference_deletion_changes_every_view_of_our_vindex(tmp_path: Path) -> None:
    from larql_duck.extraction import extract

    out = extract(UPSTREAM / "tiny-llama", tmp_path / "o.vindex", level="all", probe=False)
    frames = {
        "opposite": ["{} hot cold"],
        "language": ["The language of {} is"],
        "city": ["{} is a city in"],
        "part": ["of {}"],
        "currency": ["{} currency"],
    }
    with connect(out) as s:
        s.probe(
            ["France", "Germany", "Japan", "Spain", "Paris", "hot", "Europe", "Berlin"], frames, save=False
        )
        listed = "SELECT DISTINCT subject FROM edges WHERE layer = 2 AND feature = 5 ORDER BY subject"
        subject = s.sql(listed).rows()[0][0]
        asked = [
            'INFER "The capital of France is" TOP 400',
            "SELECT * FROM EDGES LIMIT 1000",
            "SELECT * FROM FEATURES WHERE layer = 2 AND feature = 5",
            f'DESCRIBE "{subject}"',
        ]
        before = [s.lql(a).rows() for a in asked]
        s.lql(f'APPLY PATCH "{upstream("delete-update")}"')
        for ask, rows in zip(asked, before, strict=True):
            assert s.lql(ask).rows() != rows, ask
        s.lql('REMOVE PATCH "delete-update"')
        assert [s.lql(a).rows() for a in asked] == before


def test_compose_gives_the_ffn_rows_that_the_reference_compiled() -> None:
    vindex = Vindex.open(BASE)
    patch = read_patch(upstream("insert-compose"), vindex)
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [patch.operations])
    for file, which in (("gate_vectors", "gate"), ("up_weights", "up"), ("down_weights", "down")):
        compiled = torch.from_numpy(np.fromfile(UPSTREAM / "compose" / f"{file}.bin", "<f4")).view(4, -1)
        for layer in range(4):
            base = getattr(vindex, which)(layer)
            assert torch.equal(overlay.matrix(layer, which, base).flatten(), compiled[layer])  # type: ignore[arg-type]


def test_an_update_without_vectors_changes_the_shown_token_alone_and_says_so() -> None:
    with connect(BASE) as s:
        base = s.lql('INFER "The capital of France is" TOP 400').rows()
        notices = s.lql(f'APPLY PATCH "{upstream("delete-update")}"').notices
        assert any("London carries no vectors" in n for n in notices)
        assert s.patches.overlay.rows[2][6].meta is not None and not s.patches.overlay.rows[2][6].vectors
        assert s.lql('INFER "The capital of France is" TOP 400').rows() != base, "the deletion counts"


def test_many_updates_without_vectors_are_counted(tmp_path: Path) -> None:
    vindex = Vindex.open(BASE)
    ops = tuple(UpdateOp(0, f, meta=Meta(f"a\nb{f}", 5, 1.0)) for f in range(20))
    path = write_patch(tmp_path / "p.vlp", PatchFile(ops), vindex).path
    with connect(BASE) as s:
        notices = s.lql(f'APPLY PATCH "{path}"').notices
        assert len(notices) == 6 and "15 more" in notices[-1] and not any("\n" in n for n in notices)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
def test_written_files_are_read_as_they_were(
    family: str, tiny_vindex: Callable[[str], Path], tmp_path: Path
) -> None:
    vindex = Vindex.open(tiny_vindex(family))
    operations = [
        *some(vindex),
        insert(vindex, "Ätlantis \"'", "Poseidon", number=1, kind="update", templates=("The capital of {} is",)),
        InsertOp(1, vindex.n_features[1] + 2, "Gone", "", "capital", kind="remove"),
        database_fact(vindex),
        DeleteKnnOp("Italy", "language"),
        DeleteKnnOp("Spain"),
    ]  # fmt: skip
    written = write_patch(tmp_path / "p.vlp", PatchFile(tuple(operations)), vindex)
    assert written.base_checksum == base_checksum(vindex) and written.created_at and written.description
    read = read_patch(tmp_path / "p.vlp", vindex)
    assert len(read.operations) == len(operations)
    assert all(same(a, b) for a, b in zip(read.operations, operations, strict=True))
    raw = json.loads((tmp_path / "p.vlp").read_text())
    assert raw["version"] == 1 and raw["operations"][0]["gate_vector_b64"] is None


DAMAGE: dict[str, Change] = {
    "version": lambda p: p.update(version=2),
    "found 1.0": lambda p: p.update(version=1.0),
    "another base (a\\nb;": lambda p: p.update(base_model="a\nb", base_checksum="0" * 64),
    "base_model": lambda p: p.pop("base_model"),
    "base_checksum": lambda p: p.update(base_checksum=7),
    "created_at": lambda p: p.update(created_at=None),
    "operations": lambda p: p.update(operations={}),
    "operation 1 is no": lambda p: p.update(operations=[3]),
    "field op": lambda p: p["operations"][0].update(op="explode"),
    "field layer": lambda p: p["operations"][0].update(layer=4),
    "field layer should": lambda p: p["operations"][0].update(layer=-1),
    "field feature": lambda p: p["operations"][0].update(feature="18"),
    "field entity": lambda p: p["operations"][0].pop("entity"),
    "field target": lambda p: p["operations"][0].update(target=" "),
    "field relation": lambda p: p["operations"][0].update(relation=["x"]),
    "field confidence": lambda p: p["operations"][0].update(confidence=1.5),
    "field kind": lambda p: p["operations"][0].update(kind="burn"),
    "field templates": lambda p: p["operations"][0].update(templates=["no place"]),
    "field gate_vector_b64": lambda p: p["operations"][0].update(gate_vector_b64="@@@"),
    "31 numbers": lambda p: p["operations"][0].update(up_vector_b64=text([1.0] * 31)),
    "127 bytes": lambda p: p["operations"][0].update(up_vector_b64=base64.b64encode(b"x" * 127).decode()),
    "not finite": lambda p: p["operations"][0].update(down_vector_b64=text([np.nan] * 32)),
    "not  finite": lambda p: p["operations"][0].update(gate_vector_b64=text([np.inf] * 32)),
    "field down_meta": lambda p: p["operations"][0].update(down_meta=[]),
    "down_meta: field i": lambda p: p["operations"][0]["down_meta"].update(i=447),
    "down_meta: field c": lambda p: p["operations"][0]["down_meta"].update(c="high"),
    "surrogate": lambda p: p["operations"][0].update(entity="\ud800"),
    "update 64": lambda p: p["operations"].append({"op": "update", "layer": 0, "feature": 64}),
}


@pytest.fixture(scope="module")
def patched() -> Iterator[Session]:
    """A session under a patch, which damaged ones must leave as it is."""
    with connect(BASE, patches=[upstream("insert-knn")]) as s:
        yield s


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_patch_is_one_line_and_changes_nothing(what: str, patched: Session, tmp_path: Path) -> None:
    raw = json.loads(upstream("insert-compose").read_text())
    DAMAGE[what](raw)
    path = tmp_path / "damaged.vlp"
    path.write_text(json.dumps(raw))
    before = patched.patches.overlay.fingerprint(), patched.patches.patch_rows()
    with pytest.raises(PatchError) as caught:
        patched.lql(f'APPLY PATCH "{path}"')
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    wanted = {"surrogate": "field entity", "update 64": "features 0-63", "not  finite": "not finite"}
    assert wanted.get(what, what) in line
    assert (patched.patches.overlay.fingerprint(), patched.patches.patch_rows()) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": NaN}', b"[" * 100_000, b'{"version": 1'],
    ids=["empty", "cut", "list", "null", "not utf-8", "NaN", "deep", "no end"],
)
def test_what_is_no_patch_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.vlp"
    path.write_bytes(content)
    with pytest.raises(PatchError, match=r"x\.vlp: not a patch") as caught:
        read_patch(path, Vindex.open(BASE))
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_named_with_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("subject,relation,object\nFrance,capital,Paris\n")
    with connect(BASE) as s, pytest.raises(PatchError) as caught:
        s.lql(f'APPLY PATCH "{path}"')
    assert str(caught.value) == (
        f"{path}: not a patch: it begins with 'subject,relation,object'; "
        "APPLY PATCH takes a .vlp file as SAVE PATCH writes it, which is a JSON object"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_only_files_are_read(tmp_path: Path) -> None:
    """A pipe or a device may never end."""
    os.mkfifo(tmp_path / "pipe.vlp")
    for path in (tmp_path / "pipe.vlp", tmp_path, Path(os.devnull)):
        with pytest.raises(PatchError, match="is no file"):
            read_patch(path, Vindex.open(BASE))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_patch_is_one_line(part: float, tmp_path: Path) -> None:
    data = upstream("insert-compose").read_bytes()
    (tmp_path / "x.vlp").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(PatchError, match="damaged"):
        read_patch(tmp_path / "x.vlp", Vindex.open(BASE))


def test_a_missing_file_is_named() -> None:
    with connect(BASE) as s, pytest.raises(PatchError, match=r"nowhere\.vlp: cannot be read"):
        s.lql('APPLY PATCH "nowhere.vlp"')


def test_another_base_is_refused_unless_forced(tiny_vindex: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "other.vindex"
    shutil.copytree(BASE, copy)
    with connect(BASE) as s:
        s.patches.append([DeleteOp(0, 3)])
        s.lql(f'SAVE PATCH "{tmp_path / "p.vlp"}"')
    index = json.loads((copy / "index.json").read_text())
    index["checksums"].pop("gate_vectors.bin")
    data = bytearray((copy / "gate_vectors.bin").read_bytes())
    data[0] ^= 1
    (copy / "gate_vectors.bin").write_bytes(bytes(data))
    (copy / "index.json").write_text(json.dumps(index))
    with connect(copy) as s:
        with pytest.raises(PatchError, match="another base"):
            s.lql(f'APPLY PATCH "{tmp_path / "p.vlp"}"')
        assert not s.patches.overlay
        notices = s.lql(f'APPLY PATCH "{tmp_path / "p.vlp"}" FORCE').notices
        assert any("FORCE" in n for n in notices) and s.patches.overlay.slots() == [(0, 3)]
    # No checksum: shapes alone decide, and a notice says whom it was made for.
    with connect(tiny_vindex("gemma3_text")) as s:
        notices = s.lql(f'APPLY PATCH "{upstream("insert-compose")}"').notices
        assert any("tiny-llama and carries no checksum" in n for n in notices)


def test_vectors_are_rounded_to_what_the_vindex_stores(tmp_path: Path) -> None:
    vindex = Vindex.open(UPSTREAM / "inference-f16.vindex")
    patch = read_patch(upstream("insert-compose"), vindex)
    gate = patch.operations[0].gate  # type: ignore[union-attr]
    assert np.array_equal(gate, gate.astype(np.float16).astype(np.float32))


SAVE = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from larql_duck.patches.operations import UpdateOp
from larql_duck.patches.patch_file import PatchFile
from larql_duck.patches.vlp import write_patch
from larql_duck.vindex.store import Vindex

vindex, path, when = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
replace = os.replace

def die(*names):
    if when == "replaced":
        replace(*names)
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = die
if when == "half":
    # The system ends the process in the middle of the write that passes this size.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
ops = tuple(UpdateOp(0, i % 64, down=np.full(32, 2, np.float32)) for i in range(2000))
write_patch(path, PatchFile(ops), Vindex.open(vindex))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals here")
@pytest.mark.parametrize("when", ["half", "written", "replaced"])
def test_saving_is_whole_or_not_at_all(when: str, tmp_path: Path) -> None:
    """A process that dies while it writes, before its file takes the name, and after: the old file, or the new one."""
    path = tmp_path / "p.vlp"
    vindex = Vindex.open(BASE)
    write_patch(path, PatchFile((DeleteOp(0, 3),)), vindex)
    old = path.read_bytes()
    command = [sys.executable, "-c", SAVE, str(BASE), str(path), when]
    died = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert died.returncode == -(signal.SIGXFSZ if when == "half" else signal.SIGKILL), died.stderr
    if when == "replaced":
        assert len(read_patch(path, vindex).operations) == 2000
    else:
        assert path.read_bytes() == old
    # The next save is not disturbed by what the dead process left.
    write_patch(path, PatchFile((DeleteOp(0, 4),)), vindex)
    assert read_patch(path, vindex).operations == (DeleteOp(0, 4),)


def test_a_file_that_cannot_be_written_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.vlp"
    with connect(BASE) as s:
        s.patches.append([DeleteOp(0, 3)])
        s.patches.save(path)
        before = path.read_bytes()
        s.patches.append([DeleteOp(0, 4)])
        with pytest.raises(PatchError, match="no folder"):
            s.lql(f'SAVE PATCH "{tmp_path / "none" / "q.vlp"}"')

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(PatchError, match="No space left"):
            s.lql(f'SAVE PATCH "{tmp_path / "q.vlp"}"')
        monkeypatch.undo()
        assert s.patches.dirty and path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["p.vlp"]
        s.patches.rollback()


def test_saved_vectors_are_those_of_the_session(tmp_path: Path) -> None:
    with connect(BASE) as s:
        vindex = s.vindex
        s.patches.append([insert(vindex, "Atlantis", "Poseidon"), UpdateOp(0, 1, gate=vector(vindex, 4))])
        before = s.patches.overlay.fingerprint()
        s.lql(f'SAVE PATCH "{tmp_path / "p.vlp"}"')
        assert s.patches.overlay.fingerprint() == before and not s.patches.dirty
    with connect(BASE, patches=[tmp_path / "p.vlp"]) as s:
        assert s.patches.overlay.fingerprint() == before
