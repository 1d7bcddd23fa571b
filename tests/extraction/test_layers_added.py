"""`extract --layers` on a vindex adds layers to what it describes, and ends in what one extraction of all would make."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.catalog import SCHEMAS
from larql_duck.cli.app import run
from larql_duck.commands.opening import connect
from larql_duck.errors import VindexError
from larql_duck.extraction import extract, stages
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.extraction.compare import same
from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("model") / "llama", layers=4)


@pytest.mark.parametrize("basis", ["context", "embedding"])
def test_layers_that_are_added_are_those_of_one_extraction(model: Path, basis: str, tmp_path: Path) -> None:
    whole = extract(model, tmp_path / "whole.vindex", probe=False, in_basis=basis)
    out = extract(model, tmp_path / "x.vindex", probe=False, in_basis=basis, layers=(1, 2))
    measured: list[str] = []
    # In the vindex's own basis, whatever nobody says.
    extract(
        model, out, layers=(2, 3), progress=lambda stage, done, total: measured.append(f"{stage} {total}")
    )
    assert "promoted tokens 1" in measured, "layer 2 was there"
    assert Vindex.open(out).manifest.described_layers == range(1, 4)
    assert run(["extract", str(model), "-o", str(out), "--layers", "0"]) == 0
    same(whole, out)
    assert verify(out) == []
    with connect(out) as session:
        assert not session.lql("SHOW FEATURES 0").notices
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.vindex", "x.vindex"]


def test_what_was_probed_stays(probed_vindex, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "x.vindex"
    shutil.copytree(probed_vindex("llama"), out)
    before = Vindex.open(out)
    extract(out, out, layers=(0, 0))
    after = Vindex.open(out)
    for name in set(SCHEMAS) - {"meta"}:
        assert before.table(name).equals(after.table(name)), name


def test_layers_are_refused_that_would_not_fit(model: Path, tmp_path: Path) -> None:
    out = extract(model, tmp_path / "x.vindex", probe=False, in_basis="embedding", layers=(0, 0))
    before = (out / "index.json").read_bytes()
    with pytest.raises(VindexError, match=r"ask for --layers 1-3$"):
        extract(model, out, layers=(3, 3))
    with pytest.raises(VindexError, match=r"was made with --top-k 10, .* leave out --top-k"):
        extract(model, out, layers=(1, 1), top_k=4)
    other = make_tiny("llama", tmp_path / "other", layers=4, seed=1)
    with pytest.raises(VindexError, match="another model"):
        extract(other, out, layers=(1, 1))
    said: list[str] = []
    extract(model, out, layers=(0, 0), notice=said.append)
    assert said == ["layers 0-0 are described already"]
    assert (out / "index.json").read_bytes() == before


def test_an_addition_that_was_stopped_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract(model, tmp_path / "whole.vindex", probe=False, in_basis="context")
    out = extract(model, tmp_path / "x.vindex", probe=False, in_basis="context", layers=(0, 0))
    collected: list[int] = []
    real = stages.collect_layer

    def stopped(stream, layer, *rest, **options):
        collected.append(layer)
        if collected == [1, 2, 3]:
            raise KeyboardInterrupt
        return real(stream, layer, *rest, **options)

    monkeypatch.setattr(stages, "collect_layer", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(model, out, layers=(1, 3))
    assert Vindex.open(out).manifest.described_layers == range(1)
    extract(model, out, layers=(1, 3), resume=True)
    # One layer at most is run again.
    assert collected == [1, 2, 3, 3]
    same(whole, out)
