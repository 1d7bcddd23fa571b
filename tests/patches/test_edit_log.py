from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from larql_duck.commands.opening import attach, connect
from larql_duck.errors import PatchError
from larql_duck.inference.gate_search import ORDERS
from larql_duck.patches.operations import DeleteKnnOp, DeleteOp, InsertKnnOp, Operation, UpdateOp
from larql_duck.patches.overlay import Overlay
from larql_duck.patches.patch_file import PatchFile
from larql_duck.patches.vlp import read_patch, write_patch
from larql_duck.session import Session
from larql_duck.session.unsaved_edits import told_of_unsaved
from larql_duck.vindex.store import Vindex
from tests.conftest import UPSTREAM
from tests.editing.tables import contents
from tests.edits import database_fact, insert, vector

BASE = UPSTREAM / "all-f32.vindex"
PROMPT = "The capital of France is"


def operations(vindex: Vindex) -> dict[str, list[Operation]]:
    """Patches by name: b touches a's slot, d a's fact, f what c inserts; e nothing that others touch."""
    last = vindex.n_layers - 1
    up = {"up": vector(vindex, 5)} if vindex.family.up else {"gate": vector(vindex, 5)}
    return {
        "a": [UpdateOp(1, 3, down=vector(vindex, 1)), insert(vindex, "Atlantis", "Poseidon", seed=20)],
        "b": [DeleteOp(1, 3), UpdateOp(0, 2, gate=vector(vindex, 2))],
        "c": [DeleteOp(2, 5), insert(vindex, "Mu", "Ra", number=1, seed=30), database_fact(vindex)],
        "d": [insert(vindex, "atlantis", "Plato", layer=2, seed=40)],
        "e": [insert(vindex, "Lemuria", "Deva", seed=50), UpdateOp(last, 0, **up)],
        "f": [DeleteKnnOp("Italy")],
    }


CONFLICTS = [{"a", "b"}, {"a", "d"}, {"c", "f"}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(Vindex.open(BASE), tmp_path_factory.mktemp("patches"))


def written(vindex: Vindex, folder: Path) -> dict[str, Path]:
    """The patches of `operations` as files."""
    return {
        name: Path(write_patch(folder / f"{name}.vlp", PatchFile(tuple(ops)), vindex).path or "")
        for name, ops in operations(vindex).items()
    }


@pytest.fixture(scope="module")
def session() -> Session:
    return connect(BASE)


class State:
    """Everything that a user sees of a session's weights: numbers, hits, rows."""

    def __init__(self, s: Session) -> None:
        query = np.random.default_rng(0).normal(size=s.vindex.hidden).astype(np.float32)
        self.overlay = s.patches.overlay.fingerprint()
        # All of the vocabulary: logits and probabilities to the last bit.
        self.table = s.lql(f'INFER "{PROMPT}" TOP 1000').arrow()
        layers = range(s.vindex.n_layers)
        self.hits = [s.workspace.search().search(layers, query, 100, o) for o in ORDERS]
        self.features = s.sql(f"SELECT * FROM {s.schema}.features ORDER BY ALL").arrow()

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, State)
        hits = all(
            np.array_equal(getattr(a, n), getattr(b, n))
            for a, b in zip(self.hits, other.hits, strict=True)
            for n in ("layer", "feature", "gate", "activation")
        )
        return (
            hits and self.overlay == other.overlay
            and self.table.equals(other.table) and self.features.equals(other.features)
        )  # fmt: skip


def walk(s: Session, files: dict[str, Path], steps: list[str]) -> None:
    """Each step applies a patch that is not applied, or removes it; what must be refused is, everything else holds."""
    vindex = s.vindex
    parts = operations(vindex)
    before = State(s)
    seen: dict[tuple[str, ...], State] = {(): before}
    applied: list[str] = []
    for name in steps:
        if name not in applied:
            s.patches.apply(files[name])
            applied.append(name)
        else:
            later = applied[applied.index(name) + 1 :]
            depends = [o for o in later if {name, o} in CONFLICTS]
            if depends:
                with pytest.raises(PatchError, match=rf"{depends[0]}\.vlp"):
                    s.patches.remove(str(files[name]))
            else:
                s.patches.remove(str(files[name]))
                applied.remove(name)
        folded = Overlay.of(vindex.n_features, vindex.hidden, [parts[n] for n in applied], s.patches.stored)
        assert s.patches.overlay.fingerprint() == folded.fingerprint()
        state = State(s)
        assert seen.setdefault(tuple(applied), state) == state
    for name in reversed(applied):
        s.patches.remove(name)
    assert State(s) == before and not s.patches.overlay


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from("abcdef"), max_size=8))
def test_any_order_of_applying_and_removing_restores_exactly(
    steps: list[str], files: dict[str, Path], session: Session
) -> None:
    walk(session, files, steps)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_text", "qwen3", "gpt2"])
def test_other_families_are_restored_exactly(
    family: str, tiny_vindex: Callable[[str], Path], tmp_path: Path
) -> None:
    with connect(tiny_vindex(family)) as s:
        walk(s, written(s.vindex, tmp_path), list("acbaefcd"))


def test_a_patch_on_which_a_later_one_depends_stays_and_names_it(files: dict[str, Path]) -> None:
    with connect(BASE, patches=[files["a"], files["c"], files["b"]]) as s:
        before = s.patches.overlay.fingerprint()
        with pytest.raises(PatchError, match=r"a\.vlp.*b\.vlp.*layer 1, feature 3"):
            s.lql('REMOVE PATCH "a"')
        assert s.patches.overlay.fingerprint() == before
        s.lql(f'REMOVE PATCH "{files["b"]}"')
        s.lql('REMOVE PATCH "a"')
        assert [p.name for p in s.patches.applied] == ["c"]


def test_edits_that_are_not_saved_count_as_a_later_patch(files: dict[str, Path]) -> None:
    with connect(BASE, patches=[files["a"]]) as s:
        s.patches.append([insert(s.vindex, "ATLANTIS", "Zeus", seed=60)])
        with pytest.raises(PatchError, match="not saved yet"):
            s.lql('REMOVE PATCH "a"')
        s.lql("ROLLBACK PATCH")
        s.lql('REMOVE PATCH "a"')
        assert not s.patches.overlay


def test_the_statements_of_a_recording(tmp_path: Path) -> None:
    one, two = tmp_path / "one.vlp", tmp_path / "two.vlp"
    with connect(BASE) as s:
        assert s.lql("SHOW PATCHES").rows() == []
        s.lql("DELETE FROM EDGES WHERE layer = 1 AND feature = 3")
        assert [r[-1] for r in s.lql("SHOW PATCHES").rows()] == [True]
        with pytest.raises(PatchError, match="SAVE PATCH"):
            s.lql("SAVE PATCH")
        s.lql(f'BEGIN PATCH "{one}"')
        with pytest.raises(PatchError, match=r"one\.vlp.*open already"):
            s.lql(f'BEGIN PATCH "{two}"')
        s.lql("DELETE FROM EDGES WHERE layer = 1 AND feature = 4")
        s.lql("SAVE PATCH")
        assert s.lql("SELECT name, deletes, recording FROM PATCHES").rows() == [("one", 2, False)]
        with pytest.raises(PatchError, match="nothing to save"):
            s.lql(f'SAVE PATCH "{two}"')
        kept = s.patches.overlay.fingerprint()
        s.lql(f'BEGIN PATCH "{two}"; DELETE FROM EDGES WHERE layer = 2 AND feature = 5; ROLLBACK PATCH')
        assert s.patches.overlay.fingerprint() == kept and not two.exists() and s.patches.recording is None
        s.lql("DELETE FROM EDGES WHERE layer = 2 AND feature = 5")
        with pytest.raises(PatchError, match="a saved patch never changes"):
            s.lql(f'SAVE PATCH "{one}"')
        s.lql(f'SAVE PATCH "{two}"')
        with pytest.raises(PatchError, match="applied already"):
            s.lql(f'APPLY PATCH "{two}"')
        with pytest.raises(PatchError, match=r"no patch 'three' is applied; applied: .*one\.vlp, .*two\.vlp"):
            s.lql('REMOVE PATCH "three"')
    with connect(BASE, patches=[one, two]) as s:
        assert s.patches.overlay.slots() == [(1, 3), (1, 4), (2, 5)]


def test_appended_features_get_the_next_free_numbers(files: dict[str, Path]) -> None:
    with connect(BASE, patches=[files["e"], files["a"], files["c"]]) as s:
        numbers = {f.entity: f.feature for f in s.patches.overlay.facts if f.mode == "compose"}
        assert numbers == {"Lemuria": 64, "Atlantis": 65, "Mu": 66}
        s.lql('REMOVE PATCH "e"')
        assert s.patches.overlay.fact("Atlantis", "capital").feature == 64  # type: ignore[union-attr]


def test_a_later_operation_of_a_patch_may_name_its_own_feature(tmp_path: Path) -> None:
    vindex = Vindex.open(BASE)
    down = vector(vindex, 9)
    ops = (insert(vindex, "Mu", "Ra", number=7), UpdateOp(1, 71, down=down))
    path = write_patch(tmp_path / "own.vlp", PatchFile(ops), vindex).path
    with connect(BASE, patches=[str(path)]) as s:
        row = s.patches.overlay.rows[1][64]
        assert row.down is not None and np.array_equal(row.down, down)
        with pytest.raises(PatchError, match="features 0-63"):
            s.patches.append([DeleteOp(1, 71)])


def test_leaving_with_unsaved_edits_says_so_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with connect(BASE) as s:
        s.patches.append([DeleteOp(0, 1)])
        s.use(BASE)
        assert capsys.readouterr().err.count("\n") == 1
        assert not s.patches.overlay and s.lql("SHOW PATCHES").rows() == []
        s.patches.append([DeleteOp(0, 1), DeleteOp(0, 2)])
        assert repr(s.patches) == "<EditLog: patches applied: none; edits not saved: 2>"
    assert "2 edits were not saved and are gone; SAVE PATCH" in capsys.readouterr().err
    with connect(BASE) as s:
        s.patches.append([DeleteOp(0, 1)])
        s.lql(f'SAVE PATCH "{tmp_path / "x.vlp"}"')
    assert capsys.readouterr().err == ""


def test_two_sessions_do_not_see_each_other(files: dict[str, Path]) -> None:
    con = duckdb.connect()
    with (
        connect(BASE) as plain,
        attach(con, BASE, "one", patches=[files["a"]]) as one,
        attach(con, BASE, "two") as two,
    ):
        before, other = contents(plain), State(one)
        two.patches.apply(files["b"])
        two.patches.apply(files["c"])
        assert contents(plain) == before and not plain.patches.overlay
        assert one.patches.overlay.slots() == [(1, 3), (1, 64)] and State(one) == other
        assert con.sql("SELECT name FROM one.patches").fetchall() == [("a",)]
        assert con.sql("SELECT name FROM two.patches ORDER BY position").fetchall() == [("b",), ("c",)]
        ask = f'INFER "{PROMPT}" TOP 400'
        assert plain.lql(ask).rows() != two.lql(ask).rows() != one.lql(ask).rows()


def test_a_refresh_that_fails_takes_everything_back(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    with connect(BASE, patches=[files["a"]]) as s:
        before = State(s)
        calls = []
        real = s.workspace.views.update

        def once() -> None:
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
            real()

        monkeypatch.setattr(s.workspace.views, "update", once)
        with pytest.raises(KeyboardInterrupt):
            s.patches.apply(files["c"])
        assert State(s) == before and [p.name for p in s.patches.applied] == ["a"]


def test_the_command_line_applies_patches(files: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    from larql_duck.cli.app import run

    command = ["lql", str(BASE), "SHOW PATCHES", "--csv"]
    assert run([*command, "--patch", str(files["a"]), "--patch", str(files["c"])]) == 0
    out = capfd.readouterr().out
    assert f"1,a,{files['a']}" in out and f"2,c,{files['c']}" in out
    assert run([*command, "--patch", "missing.vlp"]) == 1
    refused = capfd.readouterr().err
    assert refused.count("\n") == 1 and "missing.vlp" in refused


def test_run_writes_under_patches(tmp_path: Path) -> None:
    from larql_duck.inference.model import Model

    vindex = Vindex.open(BASE)
    ops = tuple(DeleteOp(2, f) for f in range(64))
    path = write_patch(tmp_path / "none.vlp", PatchFile(ops), vindex).path
    base = "".join(Model.open(BASE).generate(PROMPT, tokens=3))
    edited = Model.open(BASE, patches=[str(path)])
    assert "".join(edited.generate(PROMPT, tokens=3)) != base


def test_a_database_fact_under_two_patches_is_the_later_ones(files: dict[str, Path]) -> None:
    with connect(BASE, patches=[files["c"]]) as s:
        first = database_fact(s.vindex)
        s.patches.append([InsertKnnOp(1, "italy", "Currency", "lira", 5, first.key)])
        assert [(f.target, f.patch) for f in s.patches.overlay.knn] == [("lira", 1)]
        s.patches.rollback()
        assert [f.target for f in s.patches.overlay.knn] == ["euro"]


# -- one file, two sessions -----------------------------------------------------------------------------------


def test_a_file_that_another_session_saved_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "shared.vlp"
    with connect(BASE) as one, connect(BASE) as two:
        one.lql(f'BEGIN PATCH "{path}"; DELETE FROM EDGES WHERE layer = 1 AND feature = 3')
        two.lql(f'BEGIN PATCH "{path}"; DELETE FROM EDGES WHERE layer = 2 AND feature IN (5, 6)')
        one.lql("SAVE PATCH")
        kept = path.read_bytes()
        with pytest.raises(PatchError) as caught:
            two.lql("SAVE PATCH")
        assert str(caught.value) == (
            f"{path}: holds 1 edit that this session neither read nor wrote; save to another file, "
            "or write SAVE PATCH ... OVERWRITE"
        )
        # Neither the file nor the session's edits have changed, and both next steps work.
        assert path.read_bytes() == kept and two.patches.overlay.slots() == [(2, 5), (2, 6)]
        two.lql(f'SAVE PATCH "{tmp_path / "mine.vlp"}"')
        two.lql("DELETE FROM EDGES WHERE layer = 0 AND feature = 0")
        two.lql(f'SAVE PATCH "{path}" OVERWRITE')
    with connect(BASE, patches=[path]) as s:
        assert s.patches.overlay.slots() == [(0, 0)]


def test_a_file_that_was_read_may_be_replaced_unless_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "p.vlp"
    write_patch(path, PatchFile((DeleteOp(1, 3),)), Vindex.open(BASE))
    with connect(BASE) as s:
        begun = s.lql(f'BEGIN PATCH "{path}"')
        assert (
            "holds 1 edit that this session neither read nor wrote: SAVE PATCH will not" in begun.notices[0]
        )
        s.lql("ROLLBACK PATCH")
        s.lql(
            f'APPLY PATCH "{path}"; REMOVE PATCH "{path}"; DELETE FROM EDGES WHERE layer = 2 AND feature = 5'
        )
        s.lql(f'SAVE PATCH "{path}"')
        s.lql(f'REMOVE PATCH "{path}"; DELETE FROM EDGES WHERE layer = 0 AND feature = 5')
        write_patch(path, PatchFile((DeleteOp(1, 3), DeleteOp(1, 4))), Vindex.open(BASE))
        with pytest.raises(
            PatchError, match="changed since this session read or wrote it, and holds 2 edits"
        ):
            s.lql(f'SAVE PATCH "{path}"')
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(PatchError, match="holds a patch that cannot be read"):
            s.lql(f'SAVE PATCH "{path}"')
        path.unlink()
        s.lql(f'SAVE PATCH "{path}"')


def test_of_sessions_that_save_at_once_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, n = tmp_path / "p.vlp", 4

    def slowly(*args: Any, **options: Any) -> PatchFile:
        time.sleep(0.1)
        return write_patch(*args, **options)

    monkeypatch.setattr("larql_duck.patches.edit_log.write_patch", slowly)
    sessions = [connect(BASE) for _ in range(n)]
    for i, s in enumerate(sessions):
        s.patches.append([DeleteOp(1, i)])
    together = threading.Barrier(n)

    def save(s: Session) -> bool:
        together.wait()
        try:
            s.patches.save(path)
        except PatchError:
            return False
        return True

    with ThreadPoolExecutor(n) as pool:
        saved = list(pool.map(save, sessions))
    assert sum(saved) == 1
    with connect(BASE, patches=[path]) as s:
        assert s.patches.overlay.slots() == [(1, saved.index(True))]
    for s in sessions:
        s.patches.rollback()
        s.close()


def test_sessions_that_end_in_one_second_leave_a_copy_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("larql_duck.session.unsaved_edits.user_state_path", lambda _: tmp_path)
    stopped = SimpleNamespace(strftime=lambda _: "20260101-000000")
    monkeypatch.setattr("larql_duck.session.unsaved_edits.time", stopped)
    for feature in (3, 4):
        with connect(BASE) as s:
            s.patches.append([DeleteOp(1, feature)])
            assert "a copy lies in" in told_of_unsaved(s.patches, BASE, keep=True)
    left = sorted((tmp_path / "unsaved").glob("*.vlp"))
    slots = {read_patch(path, Vindex.open(BASE)).operations[0].feature for path in left}
    assert slots == {3, 4}
