"""What fires a feature: against one plain pass a window, interrupted runs, raw rows, odd texts."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import larql_duck as lq
from larql_duck.atlas import collecting
from larql_duck.atlas.collecting import blocks, collect
from larql_duck.atlas.raw import write_raw
from larql_duck.atlas.statistics import QUANTILES, FeatureStats
from larql_duck.atlas.tables import atlas_tables, pieces
from larql_duck.atlas.texts import Window, open_corpus, windows
from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.cli import app as cli
from larql_duck.errors import LarqlError
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
TEXTS = [" ".join(p) for p in itertools.islice(itertools.permutations(WORDS, 3), 0, 200, 3)] + [WORDS[0] * 9]
TABLES = ("feature_stats", "feature_firings", "example_texts")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*TEXTS[:5], "", "   ", *TEXTS[5:]]) + "\n", encoding="utf-8")
    return path


def numbered() -> list[tuple[int, str]]:
    return [(i if i < 5 else i + 2, text) for i, text in enumerate(TEXTS)]


def collected(tiny: Tiny, texts: Path, kept: Path, **options: Any) -> dict[str, pa.Table]:
    kept.mkdir(exist_ok=True)
    corpus = open_corpus(texts)
    return atlas_tables(tiny.engine, corpus, collect(tiny.engine, corpus, kept, **options), lambda *_: None)


def single_passes(tiny: Tiny, size: int) -> list[dict[str, Any]]:
    """Every token's activations, a plain pass a window: document, position, token, [layers, features]."""
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
                counts = at > 0 and not engine.tokenizer.is_special(token)
                place = (number, offset + at - skip)
                rows.append(
                    {"place": place, "token": token, "counts": counts, "values": capture[:, 0, at].numpy()}
                )
    return rows


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_figures_and_examples_are_those_of_single_passes(
    family: str, tiny_of, texts: Path, tmp_path: Path
) -> None:
    tiny = tiny_of(family)
    engine = tiny.engine
    tables = collected(tiny, texts, tmp_path / "kept", window=8, top=4)
    rows = [r for r in single_passes(tiny, 8) if r["counts"]]
    values = np.stack([r["values"] for r in rows])
    assert len(values) > 500
    slots = [(i, f) for i in range(engine.n_layers) for f in range(engine.n_features[i])]
    stats = {(r["layer"], r["feature"]): r for r in tables["feature_stats"].to_pylist()}
    assert list(stats) == slots
    for layer in range(engine.n_layers):
        limit = np.sort(np.abs(values[:2000, layer]).ravel())
        limit = limit[max(1, round(0.99 * limit.size)) - 1]
        assert stats[layer, 0]["fires_above"] == pytest.approx(limit, rel=1e-3)
    for (layer, feature), row in stats.items():
        own = values[:, layer, feature]
        assert row["n"] == len(own)
        assert (row["mean"], row["max"], row["min"]) == pytest.approx(
            (own.mean(), own.max(), own.min()), abs=1e-4
        )
        # Activations of a pass of many texts differ in their last digits from those of one alone.
        most, least = (np.mean(np.abs(own) > row["fires_above"] * f) for f in (1 - 1e-4, 1 + 1e-4))
        assert least <= row["density"] <= most
        for name, share in QUANTILES.items():
            # Within .5 % in rank; many of these texts are alike, and where equal activations fill a bin, only the bin is known.
            low = float(np.quantile(own, max(share - 0.005, 0), method="lower"))
            high = float(np.quantile(own, min(share + 0.005, 1), method="higher"))
            assert low - abs(low) / 8 - 1e-5 <= row[name] <= high + abs(high) / 8 + 1e-5
    places = {r["place"]: i for i, r in enumerate(rows)}
    found: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for row in tables["feature_firings"].to_pylist():
        found.setdefault((row["layer"], row["feature"], row["sign"]), []).append(row)
    for (layer, feature), sign in itertools.product(slots, (1, -1)):
        own = sign * values[:, layer, feature]
        strongest = np.sort(own[own > 0])[::-1][:4]
        mine = found.get((layer, feature, sign), [])
        top = [r for r in mine if r["band"] == "top"]
        assert [sign * r["activation"] for r in top] == pytest.approx(strongest, abs=1e-4)
        assert [r["rank"] for r in mine] == list(range(1, len(mine) + 1))
        for r in mine:
            at = places[r["doc"], r["position"]]
            assert sign * r["activation"] == pytest.approx(own[at], abs=1e-4)
            assert r["token"] == engine.tokenizer.token(rows[at]["token"])
            if r["band"] != "top":
                share = np.mean(np.abs(own) < abs(r["activation"]))
                assert share >= QUANTILES[r["band"]] - 0.05 and sign * r["activation"] <= strongest[-1]
    assert {r["band"] for r in tables["feature_firings"].to_pylist()} > {"top", "p50"}


def test_examples_show_what_the_model_read(tiny_vindex, texts: Path, tmp_path: Path) -> None:
    vindex = Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "x.vindex"))
    plain = dict(numbered())
    with lq.connect(vindex) as s:
        result = s.collect_examples(texts, top=3)
        assert len(result) == 3 and "tokens; saved in" in result.notices[-1]
        rows = s.sql("FROM feature_examples").dicts()
        for r in rows:
            before, rest = r["context"].split("[", 1)
            token, after = rest.split("]", 1)
            text = plain[r["doc"]].replace(" ", "")
            assert (before + token + after).replace(" ", "") in text and r["source"] == "texts.txt"
            if token and "<0x" not in r["token"]:
                assert token == r["token"]
        tokenizer = s.model.engine.tokenizer
        row = max(rows, key=lambda r: r["position"])
        assert row["position"] >= 33
        own = tokenizer.encode(plain[row["doc"]])
        expected = (
            tokenizer.decode(own[i:j], skip_special=True)
            for i, j in ((row["position"] - 24, row["position"]), (row["position"] + 1, row["position"] + 9))
        )
        before, after = expected
        assert row["context"].startswith(f"{before}[") and row["context"].endswith(f"]{after}")
        [best, *_] = s.sql("FROM examples_of(1, 5)").dicts()
        [sign] = s.sql("SELECT sign FROM features WHERE layer = 1 AND feature = 5").rows()[0]
        assert (best["sign"], best["rank"]) == (sign, 1)
        assert {r["sign"] for r in s.sql("FROM examples_of(1, 5, p_sign := -1)").dicts()} == {-1}
        kept = s.sql("FROM examples_of(1, 5, p_k := 1) WHERE band = 'top'").dicts()
        assert [r["rank"] for r in kept] == [1, 1]
    # In the tables, for whoever opens the vindex next.
    with lq.connect(vindex) as s:
        assert s.sql("FROM feature_examples").dicts() == rows
    assert lq.verify(vindex) == [] if hasattr(lq, "verify") else True


class Stopped(Exception):
    pass


def stop_after(calls: int):
    count = itertools.count()

    def stop(stage: str, done: float, total: float) -> None:
        if next(count) == calls:
            raise Stopped

    return stop


def test_an_interrupted_run_goes_on(
    llama: Tiny, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "_BLOCK", 40)
    monkeypatch.setattr(collecting, "FIRST_TOKENS", 50)
    monkeypatch.setattr(collecting, "_EVERY", 0.0)
    whole = collected(llama, texts, tmp_path / "whole", window=8)
    kept = tmp_path / "kept"
    with pytest.raises(Stopped):
        collected(llama, texts, kept, window=8, progress=stop_after(3))
    told: list[str] = []
    again = collected(llama, texts, kept, window=8, notice=told.append)
    assert len(told) == 1 and told[0].startswith("continues after")
    assert all(again[name].equals(whole[name]) for name in TABLES)
    # Other options begin anew.
    other = tmp_path / "other"
    with pytest.raises(Stopped):
        collected(llama, texts, other, window=8, progress=stop_after(3))
    told.clear()
    collected(llama, texts, other, window=16, notice=told.append)
    assert told == []


def test_nothing_depends_on_how_texts_share_passes(
    llama: Tiny, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (collecting._PASS, 50):
        monkeypatch.setattr(collecting, "_PASS", size)
        tables = collected(llama, texts, tmp_path / str(size), window=8)
        firings = tables["feature_firings"].filter(pc.equal(tables["feature_firings"]["band"], "top"))
        found.append((tables["feature_stats"], firings))
    (stats, firings), (other_stats, other) = found
    assert firings.select(["layer", "feature", "sign", "rank"]).equals(
        other.select(["layer", "feature", "sign", "rank"])
    )
    np.testing.assert_allclose(firings["activation"], other["activation"], atol=1e-5)
    for name in ("mean", "max", "min"):
        np.testing.assert_allclose(stats[name], other_stats[name], atol=1e-5)


def test_raw_rows_are_each_tokens_strongest_features(
    llama: Tiny, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "_BLOCK", 40)
    monkeypatch.setattr(collecting, "FIRST_TOKENS", 50)
    table = pq.read_table(write_raw(llama.engine, texts, tmp_path / "o.parquet", window=8, top=3))
    assert table.schema.equals(SCHEMAS["raw"])
    found = table.to_pylist()
    rows = single_passes(llama, 8)
    assert len(found) == len(rows) * 3 * 3
    keys = [(r["text"], r["position"], r["layer"], r["rank"]) for r in found]
    assert keys == sorted(keys)
    places = {r["place"]: r for r in rows}
    for row in found:
        own = places[row["text"], row["position"]]["values"][row["layer"]]
        assert row["activation"] == pytest.approx(own[row["feature"]], abs=1e-4)
        assert abs(row["activation"]) == pytest.approx(np.sort(np.abs(own))[-row["rank"]], abs=1e-4)
    with pytest.raises(Stopped):
        write_raw(llama.engine, texts, tmp_path / "b.parquet", window=8, top=3, progress=stop_after(3))
    told: list[str] = []
    again = write_raw(llama.engine, texts, tmp_path / "b.parquet", window=8, top=3, notice=told.append)
    assert told[0].startswith("continues after") and pq.read_table(again).equals(table)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.parquet", "o.parquet", "texts.txt"]


def test_every_kind_of_file_gives_the_same(llama: Tiny, texts: Path, tmp_path: Path) -> None:
    lines = texts.read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(
        pa.table({"id": list(range(10)), "text": lines[:10], "other": lines[:10]}), folder / "a.parquet"
    )
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"n": 1, "text": text}) + "\n" for text in lines[10:30])
    )
    (folder / "c.txt").write_text("\n".join(lines[30:]), encoding="utf-8")
    (folder / "other.csv").write_text("not,read\n")
    whole, parts = (collected(llama, p, tmp_path / f"of {p.stem}") for p in (texts, folder))
    assert whole["feature_stats"].equals(parts["feature_stats"])
    assert whole["feature_firings"].equals(parts["feature_firings"])
    sources = parts["example_texts"]["source"].to_pylist()
    assert list(dict.fromkeys(sources)) == ["a.parquet", "b.jsonl", "c.txt"]
    assert open_corpus(folder / "a.parquet", "other").files[0].column == "other"
    for path, column, words in (
        (folder / "a.parquet", "missing", "text columns here: text, other"),
        (folder / "b.jsonl", "n", "text columns here: text"),
        (texts, "text", "Parquet and JSON lines only"),
    ):
        with pytest.raises(LarqlError, match=words):
            open_corpus(path, column)


def test_windows_cover_every_token_once(tiny: Tiny, texts: Path) -> None:
    tokenizer = tiny.engine.tokenizer
    found: dict[int, list[int]] = {}
    for window in windows(open_corpus(texts), tokenizer, 6):
        assert len(window.ids) <= 6
        own = found.setdefault(window.text, [])
        assert window.offset == len(own)
        own += window.ids[window.skip :]
    assert found == {number: tokenizer.encode(text) for number, text in numbered()}


def test_blocks_number_all_tokens_and_stay_small() -> None:
    # Of texts of one token none counts.
    for own in ([Window(i, 0, (5,)) for i in range(9000)], [Window(i, 0, (1, 5, 6), 1) for i in range(4000)]):
        found = list(blocks(iter(own)))
        assert [w for block in found for w in block.windows] == own
        assert max(sum(len(w.ids) for w in block.windows) for block in found) <= 4100
        n = len(own[0].ids) - own[0].skip
        assert [i for block in found for i in block.numbers] == list(range(0, n * len(own), n))
        assert [block.end for block in found[:-1]] == [block.numbers[0] for block in found[1:]]
        assert found[-1].end == n * len(own)
        for block in found:
            passes = list(block.passes())
            assert sorted(i for _, firsts in passes for i in firsts) == block.numbers
            assert all(rows[0].text == own[firsts[0] // n].text for rows, firsts in passes)


def test_what_cannot_be_used_is_named(tiny_vindex, tmp_path: Path) -> None:
    vindex = Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "x.vindex"))
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "bad.jsonl").write_text('{"text": "of"}\nnot json\n')
    (tmp_path / "nothing").mkdir()
    good = tmp_path / "good.txt"
    good.write_text("The capital of France")
    with lq.connect(vindex) as s:
        for name, words in (
            ("absent.txt", "absent.txt: cannot be read"),
            ("empty.txt", "holds no text"),
            ("damaged.parquet", "damaged Parquet"),
            ("bad.jsonl", "line 2 is no JSON object"),
            ("nothing", "nothing: holds no texts"),
        ):
            with pytest.raises(LarqlError, match=words):
                s.collect_examples(tmp_path / name)
        with pytest.raises(LarqlError, match="at least 2"):
            s.collect_examples(good, window=1)
        with pytest.raises(LarqlError, match="top 0"):
            s.collect_examples(good, top=0)
        for out, words in (("no/o", "existing directory"), ("", "it is a folder")):
            with pytest.raises(LarqlError, match=words):
                write_raw(s.model.engine, good, tmp_path / out)
        s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome")')
        with pytest.raises(LarqlError, match="COMPILE CURRENT"):
            s.collect_examples(good)
    assert not list(tmp_path.glob(".*"))


def test_the_histogram_tells_quantiles_of_any_numbers() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    columns = [
        rng.normal(size=n),
        rng.lognormal(-3, 3, n),
        -rng.exponential(1e-3, n),
        np.zeros(n),
        rng.normal(6, 1, size=n),
        1e-6 * rng.normal(size=n),
        1e-12 * rng.normal(size=n) * rng.exponential(size=n),
        rng.choice([-5.0, 0, 7], n),
    ]
    values = np.stack(columns, axis=1).astype(np.float32)
    stats = FeatureStats(len(columns), 3)
    for part in np.array_split(values, 7):
        stats.add(np.arange(len(part)), torch.from_numpy(part).contiguous())
    shares = [0.01, 0.5, 0.9, 0.99, 0.999]
    for size, found in ((False, stats.quantiles(shares)), (True, stats.sizes(shares))):
        for i, share in enumerate(shares):
            for f in range(len(columns)):
                own = np.abs(values[:, f]) if size else values[:, f]
                low, high = np.mean(own < found[i, f] - 1e-9), np.mean(own <= found[i, f] + 1e-9)
                if f < 7:
                    assert low - 0.005 <= share <= high + 0.005, (f, share, found[i, f])
    assert stats.count == n and stats.quantiles([0.5])[0, 3] == 0


def test_the_stored_histogram_has_a_bin_for_each_power_of_two() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.lognormal(-2, 6, 3000) * rng.choice([-1, 1], 3000),
            [0.0, 2**-16, -(2**-16), 2**14, -(2.0**14), 1, 1.5],
        ]
    )
    stats = FeatureStats(2, 3)
    stats.add(np.arange(len(values)), torch.from_numpy(np.stack([values, -values], 1).astype(np.float32)))
    powers = 2.0 ** np.arange(-16, 15)
    sizes = np.digitize(np.abs(values.astype(np.float32)), powers)
    for row, sign in ((0, 1), (1, -1)):
        up, down = (
            np.bincount(sizes[own], minlength=32)
            for own in ((sign * values >= 0) & ~np.signbit(sign * values), np.signbit(sign * values))
        )
        assert stats.by_powers()[row].tolist() == [*down[::-1], *up]


def test_a_feature_fires_above_the_quantile_of_the_first_tokens() -> None:
    rng = np.random.default_rng(0)
    # Later tokens are larger, and some are equal.
    values = (np.round(rng.normal(size=(900, 40)), 3) * np.linspace(0.5, 2, 900)[:, None]).astype(np.float32)
    stats = FeatureStats(40, 3, first=700)
    for start, stop in ((0, 5), (5, 300), (300, 500), (500, 502), (502, 900)):
        stats.add(np.arange(start, stop), torch.from_numpy(values[start:stop]))
        if stop == 500:
            stats.settle()
    sizes = np.sort(np.abs(values[:500]).ravel())
    assert stats.fires_above == sizes[round(0.99 * sizes.size) - 1]
    assert stats.fired.tolist() == (np.abs(values) > stats.fires_above).sum(0).tolist()
    for sign, top in stats.strongest.items():
        top.settle()
        order = np.lexsort((np.arange(900)[:, None].repeat(40, 1), -sign * values), axis=0)[:3]
        assert top.columns.T.tolist() == order.tolist()
    assert stats.most.tolist() == values.max(0).tolist() and stats.least.tolist() == values.min(0).tolist()


def test_pieces_of_a_text_end_where_its_tokens_do(tiny: Tiny) -> None:
    tokenizer = tiny.engine.tokenizer
    for text in ("The capital of France is Paris", "日本 and 🦆 of", "a\nb\n\n  c"):
        ids = tokenizer.encode(text, special=False)
        content, ends = pieces(tokenizer, ids)
        assert len(ends) == len(ids) and ends == sorted(ends) and ends[-1] == len(content)
        assert content == tokenizer.continuation(ids)


def test_the_command(tiny_vindex, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vindex = str(shutil.copytree(tiny_vindex("llama"), tmp_path / "x.vindex"))
    assert cli.run(["activations", vindex, str(texts), "--top", "2", "--json"]) == 0
    out = capsys.readouterr()
    assert [row["layer"] for row in json.loads(out.out)] == [0, 1, 2] and "examples_of" in out.err
    raw = tmp_path / "o.parquet"
    assert cli.run(["activations", vindex, str(texts), "--raw", str(raw)]) == 0
    assert pq.read_table(raw).schema.names == SCHEMAS["raw"].names


def test_an_edited_slot_shows_no_examples_of_its_former_feature(
    tiny_vindex, texts: Path, tmp_path: Path
) -> None:
    vindex = Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "x.vindex"))
    count = "SELECT count(*) FROM feature_firings WHERE layer = 1 AND feature = 5"
    with lq.connect(vindex) as s:
        s.collect_examples(texts, top=3)
        [(before,)] = s.sql(count).rows()
        assert before and s.sql("FROM examples_of(1, 5)").rows()
        s.lql("DELETE FROM EDGES WHERE layer = 1 AND feature = 5")
        assert s.sql(count).rows() == [(0,)] and not s.sql("FROM examples_of(1, 5)").rows()
        assert s.sql("SELECT example FROM lql_features WHERE layer = 1 AND feature = 5").rows() == [(None,)]
        assert s.sql(count.replace("5", "6")).rows()[0][0] > 0
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path}/y.vindex"')
        s.lql("ROLLBACK PATCH")
        assert s.sql(count).rows() == [(before,)]
    with lq.connect(tmp_path / "y.vindex") as s:
        assert s.sql(count).rows() == [(0,)] and s.sql(count.replace("5", "6")).rows()[0][0] > 0


def test_the_best_example_stands_beside_a_features_tokens(probed_vindex, texts: Path, tmp_path: Path) -> None:
    vindex = Path(shutil.copytree(probed_vindex("llama"), tmp_path / "x.vindex"))
    statements = (
        "FROM explain_fact('France', NULL)",
        'EXPLAIN INFER "The capital of France is" TOP 5',
        "SHOW FEATURES 1",
        "FROM lq_features('The capital of France is', p_k := 20)",
    )
    with lq.connect(vindex) as s:
        for statement in statements:
            assert {r["example"] for r in s.lql(statement).dicts()} == {None}
        assert "example" not in s.lql('DESCRIBE "France"').arrow().column_names
        s.collect_examples(texts, top=3)
        best = {
            (r["layer"], r["feature"], r["sign"]): r["context"]
            for r in s.sql("FROM feature_examples WHERE rank = 1").dicts()
        }
        usual = {(a, b): c for a, b, c in s.sql("SELECT layer, feature, sign FROM features").rows()}
        for statement in statements:
            rows = [r for r in s.lql(statement).dicts() if r.get("feature") is not None]
            assert any(r["example"] for r in rows), statement
            for r in rows:
                slot = r["layer"], r["feature"]
                activation = r.get("activation")
                sign = usual[slot] if not activation else 1 if activation > 0 else -1
                assert r["example"] == best.get((*slot, sign)), (statement, r)
        plain = s.lql('DESCRIBE "France"').dicts()
        verbose = s.lql('DESCRIBE "France" VERBOSE').dicts()
        assert [r["relation"] for r in verbose][: len(plain)] == [r["relation"] for r in plain]
        shown = [r["example"] for r in verbose if r["direction"] == "out"]
        assert shown and all(e in best.values() for e in shown if e) and any(shown)
