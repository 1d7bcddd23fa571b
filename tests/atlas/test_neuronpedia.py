"""The atlas in Neuronpedia's shape, and files of that shape joined to features."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import larql_duck as lq
from larql_duck.atlas.neuronpedia import model_id_of, write_export
from larql_duck.cli import app as cli
from larql_duck.errors import LarqlError

PAGE = Path(__file__).parents[2] / "docs" / "exchange.md"
TEXTS = ["The capital of France is Paris", "Tokyo in Japan and Rome of Italy", "hot and cold 日本 of"] * 3


@pytest.fixture(scope="module")
def atlas(tiny_vindex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vindex with an atlas. Only to be read."""
    place = tmp_path_factory.mktemp("atlas")
    texts = place / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    vindex = Path(shutil.copytree(tiny_vindex("llama"), place / "x.vindex"))
    with lq.connect(vindex) as s:
        s.collect_examples(texts, top=4)
    return vindex


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_say_what_the_tables_do(atlas: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "exported"
    assert cli.run(["export", str(atlas), "--format", "neuronpedia", "-o", str(out), "--top", "2"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "activations.jsonl",
        "explanations.jsonl",
        "features.jsonl",
    ]
    with lq.connect(atlas) as s:
        model_parts = s.model.engine.modules
        head = model_parts.head.weight.detach() * model_parts.final_norm.weight.detach()
        logits = [(head - head.mean(0)) @ parts.down.weight.detach() for parts in model_parts.layers]
        stats = s.sql("FROM feature_stats ORDER BY layer, feature").dicts()
        tokens = s.sql("FROM feature_tokens ORDER BY rank").dicts()
        firings = s.sql("FROM feature_firings").dicts()
        texts = {t["text"]: t for t in s.sql("FROM example_texts").dicts()}
        [model] = s.sql("SELECT value FROM meta WHERE key = 'model'").fetchone() or []
    features = lines(out / "features.jsonl")
    assert [(f["layer"], f["index"]) for f in features] == [
        (str(r["layer"]), str(r["feature"])) for r in stats
    ]
    for record, row in zip(features, stats, strict=True):
        assert record["modelId"] == model_id_of(model) and record["sourceSetName"] == "neurons"
        assert (
            record["maxActApprox"] == pytest.approx(row["max"]) and record["frac_nonzero"] == row["density"]
        )
        assert record["hookName"] == f"blocks.{row['layer']}.mlp.hook_post"
        for side, name in (("out", "pos"), ("out_neg", "neg")):
            own = [
                t
                for t in tokens
                if (t["layer"], t["feature"], t["side"]) == (row["layer"], row["feature"], side)
            ]
            assert record[f"{name}_str"] == [t["token"] for t in own]
            assert record[f"{name}_values"] == pytest.approx(
                [float(logits[row["layer"]][t["token_id"], row["feature"]]) for t in own], abs=1e-4
            )
    top = [f for f in firings if f["band"] == "top" and f["rank"] <= 2]
    activations = lines(out / "activations.jsonl")
    assert len(activations) == len(top) > 100
    top.sort(key=lambda f: (f["layer"], f["feature"], -f["sign"], f["rank"]))
    known = {(f["layer"], f["feature"], f["text"], f["position"]): f["activation"] for f in firings}
    for record, firing in zip(activations, top, strict=True):
        assert (record["layer"], record["index"]) == (str(firing["layer"]), str(firing["feature"]))
        text = texts[firing["text"]]
        at = record["maxValueTokenIndex"]
        start = firing["position"] - at
        assert (
            record["tokens"][at]
            == text["content"][
                ([0, *text["ends"]])[firing["position"] - text["position"]] : text["ends"][
                    firing["position"] - text["position"]
                ]
            ]
        )
        assert "".join(record["tokens"]) in text["content"]
        expected = [
            known.get((firing["layer"], firing["feature"], firing["text"], start + i), 0.0)
            for i in range(len(record["tokens"]))
        ]
        assert record["values"] == pytest.approx(expected) and record["values"][at] == pytest.approx(
            firing["activation"]
        )
        assert (record["maxValue"], record["minValue"]) == (max(record["values"]), min(record["values"]))
    assert (out / "explanations.jsonl").read_text() == ""
    # Once more, over what is there; but over nothing else.
    assert (
        cli.run(["export", str(atlas), "--format", "neuronpedia", "-o", str(out), "--source-set", "mlp"]) == 0
    )
    assert {f["layer"] for f in lines(out / "features.jsonl")} == {"0-mlp", "1-mlp", "2-mlp"}


def test_names_or_else_relation_labels_are_explanations(probed_vindex, tmp_path: Path) -> None:
    vindex = Path(shutil.copytree(probed_vindex("llama"), tmp_path / "x.vindex"))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    with lq.connect(vindex) as s:
        s.collect_examples(tmp_path / "texts.txt", top=2)
        labels = "SELECT layer, feature, relation, relation_source FROM features WHERE relation IS NOT NULL ORDER BY ALL"
        labelled = s.sql(labels).rows()
        con = s.cursor()
        write_export(con, s.schema, s.vindex, tmp_path / "labels", model_id="m")
        con.execute(
            f"CREATE OR REPLACE VIEW {s.schema}.feature_names AS SELECT 1 AS layer, 5 AS feature, -1 AS sign, 'capitals' AS name,"
            " 'relation' AS source, 0.75 AS score, 20 AS n_scored"
        )
        write_export(con, s.schema, s.vindex, tmp_path / "names", model_id="m")
    records = lines(tmp_path / "labels" / "explanations.jsonl")
    assert labelled and labelled == [
        (int(r["layer"]), int(r["index"]), r["description"], r["typeName"]) for r in records
    ]
    assert lines(tmp_path / "names" / "explanations.jsonl") == [
        {
            "modelId": "m", "layer": "1", "index": "5", "description": "capitals", "typeName": "relation",
            "explanationModelName": "larql-duck", "notes": "sign -1, score 0.75 on 20",
        }
    ]  # fmt: skip


@pytest.mark.parametrize("index", [str, int])
def test_a_file_of_theirs_is_joined_as_the_page_says(atlas: Path, tmp_path: Path, monkeypatch, index) -> None:
    """Theirs have other fields beside these, and numbers for ids where a converter wrote them."""
    theirs = [
        {
            "id": f"c{i}", "modelId": "gpt2-small", "layer": layer, "index": index(number), "authorId": "x",
            "description": text, "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini", "scores": [],
            "createdAt": "2024-09-01T00:00:00.000Z", "embedding": None,
        }
        for i, (layer, number, text) in enumerate(
            [("1", 5, "names of places"), ("2-mlp", 9, "words of time"), ("2", 10**6, "nothing of ours")]
        )
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("explanations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in theirs))
    [query] = re.findall(r"```sql elsewhere\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[:1]
    with lq.connect(atlas) as s:
        rows = s.sql(query).dicts()
        mine = {(r[0], r[1]): r[2] for r in s.sql("SELECT layer, feature, top_token FROM features").rows()}
    assert [(r["layer"], r["feature"], r["description"]) for r in rows] == [
        (1, 5, "names of places"),
        (2, 9, "words of time"),
    ]
    assert [r["top_token"] for r in rows] == [mine[1, 5], mine[2, 9]]


def test_what_cannot_be_exported_is_one_line(tiny_vindex, atlas: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    bare = str(tiny_vindex("llama"))
    assert cli.run(["export", bare, "--format", "neuronpedia", "-o", str(out)]) == 1
    assert "run: larql-duck activations" in capsys.readouterr().err and not out.exists()
    with lq.connect(atlas) as s:
        for options, words in (
            ({"model_id": "a b"}, "model id 'a b'"),
            ({"model_id": "m", "source_set": ""}, "source set ''"),
            ({"model_id": "m", "top": 0}, "top 0"),
        ):
            with pytest.raises(LarqlError, match=words):
                write_export(s.cursor(), s.schema, s.vindex, out, **options)
        out.mkdir()
        (out / "activations.jsonl").write_text("my own notes")
        with pytest.raises(LarqlError, match=r"activations\.jsonl: holds something of another kind"):
            write_export(s.cursor(), s.schema, s.vindex, out, model_id="m")
        (out / "activations.jsonl").unlink()
        (out / "features.jsonl").mkdir()
        with pytest.raises(LarqlError, match="it is a folder"):
            write_export(s.cursor(), s.schema, s.vindex, out, model_id="m")
    assert [p.name for p in out.iterdir()] == ["features.jsonl"]


def test_ids_are_made_of_names() -> None:
    assert [model_id_of(n) for n in ("org/SmolLM2 135M", "tiny", "日本")] == ["smollm2-135m", "tiny", "model"]
