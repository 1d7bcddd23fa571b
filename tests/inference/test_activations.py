"""Which texts fire a feature: against one pass per text, interrupted runs, raw rows, odd corpora."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.errors import LarqlError
from larql_duck.inference import activations as module
from larql_duck.inference.activation_stats import BINS, LOW, FeatureStats
from larql_duck.inference.activations import write_activations
from larql_duck.inference.corpus import open_corpus, windows
from tests.inference.conftest import Tiny

WORDS = [
    "The capital of France",
    "is Paris",
    "in Europe and",
    "Tokyo",
    "Rome of Italy",
    "hot and cold",
    "日本",
]
TEXTS = [" ".join(p) for p in itertools.islice(itertools.permutations(WORDS, 3), 0, 90, 5)] + [WORDS[0] * 9]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*TEXTS[:5], "", "   ", *TEXTS[5:]]) + "\n", encoding="utf-8")
    return path


def numbered() -> list[tuple[int, str]]:
    return [(i if i < 5 else i + 2, text) for i, text in enumerate(TEXTS)]


def single_passes(tiny: Tiny, size: int) -> list[dict[str, Any]]:
    """Every token's activations, a plain pass a window: text, position, token, [layers, features]."""
    engine, rows = tiny.engine, []
    bos = [i for i in engine.tokenizer.encode("")[:1] if i == engine.tokenizer.bos_id]
    for number, text in numbered():
        ids = engine.tokenizer.encode(text)
        cuts = [(0, ids[:size], 0)]
        step = size - len(bos)
        cuts += [(o, bos + ids[o : o + step], len(bos)) for o in range(size, len(ids), step)]
        for offset, own, skip in cuts:
            capture = engine.capture(engine.pad(own), ["activation"], positions="all").need("activation")
            for at, token in list(enumerate(own))[skip:]:
                rows.append(
                    {"text": number, "position": offset + at - skip, "token": token, "first": at == 0,
                     "values": capture[:, 0, at].numpy()}
                )  # fmt: skip
    return rows


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_contexts_are_the_strongest_tokens_of_single_passes(
    family: str, tiny_of, corpus: Path, tmp_path: Path
) -> None:
    tiny = tiny_of(family)
    engine = tiny.engine
    out = write_activations(engine, corpus, tmp_path / "o.parquet", window=8, top=4)
    table = pq.read_table(out)
    assert table.schema.names == SCHEMAS["contexts"].names
    assert [t.id for t in table.schema.types] == [t.id for t in SCHEMAS["contexts"].types]
    rows = [
        r for r in single_passes(tiny, 8) if not r["first"] and not engine.tokenizer.is_special(r["token"])
    ]
    values = np.stack([r["values"] for r in rows])
    found = table.to_pylist()
    assert [(r["layer"], r["feature"], r["rank"]) for r in found] == [
        (i, f, k) for i in range(engine.n_layers) for f in range(engine.n_features[i]) for k in range(1, 5)
    ]
    places = {(r["text"], r["position"]): i for i, r in enumerate(rows)}
    for row in found:
        own = values[:, row["layer"], row["feature"]]
        strongest = np.sort(np.abs(own))[::-1]
        assert abs(row["activation"]) == pytest.approx(strongest[row["rank"] - 1], abs=1e-4)
        at = places[row["text"], row["position"]]
        assert row["activation"] == pytest.approx(own[at], abs=1e-4)
        assert row["mean"] == pytest.approx(own.mean(), abs=1e-4)
        assert sum(row["histogram"]) == len(rows) and len(row["histogram"]) == BINS
        power = np.floor(np.log2(strongest[0]))
        assert row["density"] == pytest.approx(np.mean(np.abs(own) >= 2.0 ** (power - 3)), abs=2 / len(rows))
        text = dict(numbered())[row["text"]]
        plain = row["before"] + row["token"] + row["after"]
        if "\ufffd" not in plain:
            assert plain.replace(" ", "") in text.replace(" ", "")


def test_raw_rows_are_each_tokens_strongest_features(llama: Tiny, corpus: Path, tmp_path: Path) -> None:
    out = write_activations(llama.engine, corpus, tmp_path / "o.parquet", window=8, raw=True, top=3)
    table = pq.read_table(out)
    assert table.schema.equals(SCHEMAS["raw"])
    found = table.to_pylist()
    rows = single_passes(llama, 8)
    assert len(found) == len(rows) * 3 * 3
    keys = [(r["text"], r["position"], r["layer"], r["rank"]) for r in found]
    assert keys == sorted(keys)
    places = {(r["text"], r["position"]): r for r in rows}
    for row in found:
        own = places[row["text"], row["position"]]["values"][row["layer"]]
        assert row["activation"] == pytest.approx(own[row["feature"]], abs=1e-4)
        assert abs(row["activation"]) == pytest.approx(np.sort(np.abs(own))[-row["rank"]], abs=1e-4)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("raw", [False, True])
def test_an_interrupted_run_goes_on(
    llama: Tiny, corpus: Path, tmp_path: Path, raw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 40)
    monkeypatch.setattr(module, "_EVERY", 0.0)
    whole = pq.read_table(write_activations(llama.engine, corpus, tmp_path / "a.parquet", window=8, raw=raw))
    calls = itertools.count()

    def stop(stage: str, done: float, total: float) -> None:
        if next(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        write_activations(llama.engine, corpus, tmp_path / "b.parquet", window=8, raw=raw, progress=stop)
    assert not (tmp_path / "b.parquet").exists()
    remarks: list[str] = []
    out = write_activations(
        llama.engine, corpus, tmp_path / "b.parquet", window=8, raw=raw, notice=remarks.append
    )
    assert len(remarks) == 1 and remarks[0].startswith("continues after")
    assert pq.read_table(out).equals(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "texts.txt"]


def test_a_run_with_other_options_starts_anew(
    llama: Tiny, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 40)
    monkeypatch.setattr(module, "_EVERY", 0.0)

    def stop(stage: str, done: float, total: float) -> None:
        if done > 10:
            raise Stopped

    with pytest.raises(Stopped):
        write_activations(llama.engine, corpus, tmp_path / "b.parquet", window=8, progress=stop)
    remarks: list[str] = []
    write_activations(llama.engine, corpus, tmp_path / "b.parquet", window=16, notice=remarks.append)
    assert remarks == []


def test_parquet_corpora(llama: Tiny, corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": list(range(len(lines))), "text": lines, "other": lines}), path)
    a = pq.read_table(write_activations(llama.engine, corpus, tmp_path / "a.parquet"))
    b = pq.read_table(write_activations(llama.engine, path, tmp_path / "b.parquet"))
    assert a.equals(b)
    assert open_corpus(path, "other").column == "other"
    with pytest.raises(LarqlError, match="text columns here: text, other"):
        open_corpus(path, "missing")
    with pytest.raises(LarqlError, match="Parquet files only"):
        open_corpus(corpus, "text")


def test_windows_cover_every_token_once(tiny: Tiny, corpus: Path) -> None:
    tokenizer = tiny.engine.tokenizer
    found: dict[int, list[int]] = {}
    for window in windows(open_corpus(corpus), tokenizer, 6):
        assert len(window.ids) <= 6
        own = found.setdefault(window.text, [])
        assert window.offset == len(own)
        own += window.ids[window.skip :]
    assert found == {number: tokenizer.encode(text) for number, text in numbered()}


def test_what_cannot_be_used_is_named(llama: Tiny, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and then nothing")
    good = tmp_path / "good.txt"
    good.write_text("The capital of France")
    for texts, out, words in (
        (tmp_path / "absent.txt", "o", "absent.txt: cannot be read"),
        (empty, "o", "holds no text"),
        (damaged, "o", "damaged Parquet"),
        (good, "no/o", "existing directory"),
        (good, "", "it is a folder"),
    ):
        with pytest.raises(LarqlError, match=words):
            write_activations(llama.engine, texts, tmp_path / out)
    with pytest.raises(LarqlError, match="at least 2"):
        write_activations(llama.engine, good, tmp_path / "o", window=1)
    with pytest.raises(LarqlError, match="top 0"):
        write_activations(llama.engine, good, tmp_path / "o", top=0)
    assert not list(tmp_path.glob(".*"))


def test_histograms_count_powers_of_two() -> None:
    firing = FeatureStats(2, 2)
    values = torch.tensor([[0.0, 2.0**LOW], [-1.0, 1.5], [1e9, -(2.0**-13)], [2.0, 0.75]])
    firing.add(np.arange(4), values)
    expected = np.zeros((2, BINS), int)
    one = -LOW + 1
    expected[0, [0, one, BINS - 1, one + 1]] = 1
    expected[1, [1, one, 0, one - 1]] = 1
    assert np.array_equal(firing.histogram, expected)
    assert firing.density().tolist() == [0.25, 0.5]
