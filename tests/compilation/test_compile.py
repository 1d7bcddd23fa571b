"""COMPILE: what the session computes and shows, the compiled vindex and the compiled models compute and show too."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
import yaml

from larql_duck import connect
from larql_duck.compilation.conflicts import resolve
from larql_duck.compilation.gguf_metadata import express
from larql_duck.compilation.model import compile_model
from larql_duck.compilation.slot_replacement import place, usage
from larql_duck.compilation.source import EditedWeights
from larql_duck.errors import LarqlError, ModelError, PatchError, VindexError
from larql_duck.extraction import extract
from larql_duck.inference.engine import Engine
from larql_duck.models.families import FAMILIES
from larql_duck.models.opening import open_model
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.patches.knn_store import read_knn_store, write_knn_store
from larql_duck.patches.operations import DeleteOp, InsertOp, UpdateOp
from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.arrays import read_down_meta
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.conftest import UPSTREAM
from tests.edits import PROMPTS, database_fact, insert, some, vector
from tests.tiny import make_tiny

CASES = {"llama": "f32", "gemma3_text": "bf16", "qwen3": "f16", "gpt2": "f32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    """A function family -> vindex of its tiny model, stored in the dtype of CASES."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            root = tmp_path_factory.mktemp("base")
            model = make_tiny(family, root / family, dtype=CASES[family])
            made[family] = extract(
                model, root / f"{family}.vindex", level="all", in_basis="embedding", probe=False
            )
        return made[family]

    return get


def overlay_of(vindex: Vindex, *lists: object) -> Overlay:
    return Overlay.of(vindex.n_features, vindex.hidden, lists or [some(vindex)])  # type: ignore[arg-type]


def logits(engine: Engine) -> torch.Tensor:
    return torch.cat([engine.logits(prompt) for prompt in PROMPTS])


def leftovers(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name.startswith("."))


# -- one model, three ways ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CASES)
def test_session_vindex_and_transformers_agree(family: str, base, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Vindex.open(base(family))
    with connect(base(family)) as s:
        plain = logits(s.model.engine)
        s.patches.append(some(source))
        session = logits(s.model.engine)
        assert (session - plain).abs().max() > 0.1
        written = s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"').dicts()
        s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "model"}" FORMAT safetensors')
        shown = s.sql("SELECT * FROM features ORDER BY layer, feature").arrow()
        s.patches.rollback()
    compiled = Vindex.open(tmp_path / "out.vindex")
    assert compiled.n_features == [64, 65, 64]
    assert verify(compiled.path) == []
    assert (logits(Engine.load(compiled)) - session).abs().max() < 1e-3
    assert compiled.table("features").equals(shown)
    assert {r["name"] for r in written if r["kind"] == "slot"} == {"L0 F5", "L1 F3", "L1 F64", "L2 F1"}
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for prompt, expected in zip(PROMPTS, session, strict=True):
        with torch.inference_mode():
            found = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        assert (found - expected).abs().max() < 1e-3
    _rows_are_kept(source, compiled, tmp_path / "model")
    assert leftovers(tmp_path) == []


def _rows_are_kept(source: Vindex, compiled: Vindex, model: Path) -> None:
    """Rows that no edit names have the source's bits; padding is zero; the dtype is the source's."""
    written = open_model(model)
    assert written.dtype == source.dtype
    family = source.family
    for layer in range(source.n_layers):
        names = {
            "gate": family.gate_name(layer),
            "up": family.up_name(layer),
            "down": family.down_name(layer),
        }
        touched = {0: [5], 1: [3], 2: [1]}[layer]
        kept = [f for f in range(64) if f not in touched]
        for which, name in names.items():
            if name is None:
                continue
            before, after = (_rows(v.tensor(name), which, family.transposed) for v in (source, compiled))
            exported = _rows(written.tensor(name), which, family.transposed)
            assert before.dtype == after.dtype == exported.dtype
            assert torch.equal(before[kept], after[kept]) and torch.equal(before[kept], exported[kept])
            assert exported.shape[0] == 96 and torch.equal(exported[: len(after)], after)
            assert not exported[len(after) :].any()


def _rows(tensor: torch.Tensor, which: str, transposed: bool) -> torch.Tensor:
    return tensor.t() if (which == "down") != transposed else tensor


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", CASES)
def test_gguf_holds_the_edited_model(family: str, kind: str, base, tmp_path: Path) -> None:
    vindex = Vindex.open(base(family))
    overlay = overlay_of(vindex)
    expected = logits(Engine.load(EditedWeights(vindex, overlay)))
    made = compile_model(vindex, overlay, tmp_path / "m.gguf", format="gguf", gguf_type=kind)
    source = open_model(made.path)
    found = logits(Engine.load(source))
    exact = kind == "F32" or kind.lower() == CASES[family]
    difference = (found - expected).abs()
    assert difference.max() < 1e-4 if exact else difference.mean() < 0.1
    own, other = load_tokenizer(vindex), load_tokenizer(source)
    for text in ("Москва 2024\n  don't", "The capital of France", " x"):
        assert own.encode(text) == other.encode(text)
    assert leftovers(tmp_path) == []


def test_without_edits_the_model_is_the_source(base, tmp_path: Path) -> None:
    vindex = Vindex.open(base("llama"))
    empty = Overlay.empty(vindex.n_features, vindex.hidden)
    compile_model(vindex, empty, tmp_path / "out")
    out, source = open_model(tmp_path / "out"), open_model(base("llama").parent / "llama")
    assert out.config["intermediate_size"] == 64
    assert sorted(out.names()) == sorted(source.names())
    assert all(torch.equal(out.tensor(n), source.tensor(n)) for n in source.names())


def test_shards_load(base, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    vindex = Vindex.open(base("qwen3"))
    made = compile_model(vindex, overlay_of(vindex), tmp_path / "out", limit=60_000)
    shards = [n for n in made.files if n.endswith(".safetensors")]
    assert len(shards) > 2 and all(made.files[n] < 70_000 for n in shards)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def test_a_compiled_vindex_is_edited_and_compiled_again(base, tmp_path: Path) -> None:
    with connect(base("llama")) as s:
        s.patches.append(some(s.vindex))
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "one.vindex"}"')
        s.patches.rollback()
    with connect(tmp_path / "one.vindex") as s:
        s.patches.append([insert(s.vindex, "Lemuria", "Mu", seed=30), DeleteOp(1, 64)])
        expected = logits(s.model.engine)
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "two.vindex"}"')
        s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "two.gguf"}" FORMAT gguf F32')
        s.patches.rollback()
    two = Vindex.open(tmp_path / "two.vindex")
    assert two.n_features == [64, 66, 64] and verify(two.path) == []
    assert (logits(Engine.load(two)) - expected).abs().max() < 1e-4
    assert (logits(Engine.load(open_model(tmp_path / "two.gguf"))) - expected).abs().max() < 1e-4


# -- what readers see -----------------------------------------------------------------------------------------


def test_an_edited_slot_of_a_layer_that_is_not_described(tiny_model, tmp_path: Path) -> None:
    source = extract(tiny_model("llama"), tmp_path / "x.vindex", layers=(2, 2), probe=False)
    with connect(source) as s:
        vectors = {w: vector(s.vindex, i, 0.05) for i, w in enumerate(("gate", "up", "down"))}
        s.patches.append([InsertOp(1, 64, "Atlantis", "Poseidon", "capital", **vectors)])
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
    assert verify(tmp_path / "out.vindex") == []


def test_the_plain_duckdb_client_sees_the_edits(base, tmp_path: Path) -> None:
    with connect(base("llama")) as s:
        s.patches.append([insert(s.vindex, "Atlantis", "Poseidon"), database_fact(s.vindex)])
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
        s.patches.rollback()
    with duckdb.connect(str(tmp_path / "out.vindex" / "model.duckdb"), read_only=True) as con:
        graph = con.execute(
            "SELECT subject, relationship, object, source FROM model_graph WHERE source = 'patch' ORDER BY 1"
        ).fetchall()
        assert graph == [("Atlantis", "capital", "Poseidon", "patch"), ("Italy", "currency", "euro", "patch")]
        assert con.execute("SELECT n_features FROM layers WHERE layer = 1").fetchone() == (65,)
        assert con.execute("SELECT count(*) FROM features WHERE layer = 1").fetchone() == (65,)


def test_what_is_compiled_says_where_it_came_from_and_lists_its_edits(base, tmp_path: Path) -> None:
    vindex = Vindex.open(base("llama"))
    meta = dict(zip(*vindex.table("meta").to_pydict().values(), strict=True))
    weights = vindex.path.parent / "llama" / "model.safetensors"
    assert meta["checksum"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (meta["source"], meta["revision"]) == (weights.parent.name, None)
    assert meta["extracted_at"] == vindex.manifest.raw["source"]["extracted_at"]
    assert json.loads(meta["options"])["level"] == "all"
    # Names only: nobody learns where on a disk the model lay.
    assert str(vindex.path.parent) not in json.dumps(meta) + (vindex.path / "index.json").read_text()
    with connect(vindex.path) as s:
        s.patches.append([insert(s.vindex, "Atlan|tis", "Poseidon", seed=10)])
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "v"}"')
    with connect(tmp_path / "v") as s:
        stated = dict(s.sql("FROM meta").rows())
        assert (stated["edits"], stated["source"]) == ("1", meta["source"]) and stated["compiled_at"]
        assert "README.md" in s.vindex.manifest.checksums
        s.patches.append([insert(s.vindex, "Mu", "Lemuria", seed=20)])
        s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "m"}" FORMAT SAFETENSORS')
    # The model's card has the edits of both compilations.
    card = (tmp_path / "m" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {"tags": ["larql-duck", "model-editing"], "library_name": "transformers"}
    assert "| Atlan\\|tis | capital | Poseidon |" in text and "| Mu | capital | Lemuria |" in text
    assert meta["checksum"] in text


def test_down_meta_follows_the_tables(base, tmp_path: Path) -> None:
    with connect(base("llama")) as s:
        s.patches.append(some(s.vindex))
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
        s.patches.rollback()
    before = read_down_meta(base("llama") / "down_meta.bin")
    after = read_down_meta(tmp_path / "out.vindex" / "down_meta.bin")
    assert [len(layer) for layer in after] == [64, 65, 64]
    assert not np.frombuffer(after[0][5].tobytes(), np.uint8).any()
    vindex = Vindex.open(tmp_path / "out.vindex")
    down, head = vindex.down(1)[:, 64], vindex.tensor("lm_head.weight")
    record = after[1][64]
    assert record["score"] == pytest.approx(float(head[int(record["id"])] @ down), rel=1e-4)
    for entry in record["top"]:
        assert entry["logit"] == pytest.approx(float(head[int(entry["id"])] @ down), rel=1e-4)
    assert before[1][10].tobytes() == after[1][10].tobytes()


def test_knn_store_is_larqls_format(base) -> None:
    path = UPSTREAM / "knn" / "knn_store.bin"
    facts = read_knn_store(path, 32, 4, 447)
    assert [(f.layer, f.entity, f.relation, f.target, f.target_id) for f in facts] == [
        (2, "Spain", "language", "Spanish", 348),
        (1, "Italy", "currency", "euro", 359),
    ]
    assert [f.confidence for f in facts] == pytest.approx([1.0, 0.8])
    # LARQL keeps layers in no order, and rounds its keys towards zero: each fact's own bytes but for that.
    for fact in facts:
        own = write_knn_store([fact], 32)
        assert own[24 + 64 :] in path.read_bytes()
        key = np.frombuffer(own, "<f2", 32, 24)
        assert np.allclose(key, fact.key, atol=2e-3) and np.linalg.norm(key) == pytest.approx(1, abs=1e-3)
    again = write_knn_store([database_fact(Vindex.open(base("llama")))], 32)
    assert b'"templates":["The currency of {} is"]' in again


@pytest.mark.parametrize("keep", [3, 14, 40, 150])
def test_a_truncated_knn_store_is_one_line(keep: int, tmp_path: Path) -> None:
    data = (UPSTREAM / "knn" / "knn_store.bin").read_bytes()
    path = tmp_path / "knn_store.bin"
    path.write_bytes(data[:keep])
    with pytest.raises(VindexError) as caught:
        read_knn_store(path, 32, 4, 447)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# -- directories of LARQL's -----------------------------------------------------------------------------------


def test_an_upstream_patch_gives_upstreams_bytes(tmp_path: Path) -> None:
    with connect(UPSTREAM / "all-f32.vindex") as s:
        s.lql(f'APPLY PATCH "{UPSTREAM / "patches" / "insert-compose.vlp"}"')
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
    for file in sorted((UPSTREAM / "compose").iterdir()):
        assert (tmp_path / "out.vindex" / file.name).read_bytes() == file.read_bytes()
    assert verify(tmp_path / "out.vindex") == []
    assert read_down_meta(tmp_path / "out.vindex" / "down_meta.bin")[2][18]["id"] == 402


def test_an_upstream_deletion_is_compiled(tmp_path: Path) -> None:
    with connect(UPSTREAM / "all-f32.vindex") as s:
        s.lql(f'APPLY PATCH "{UPSTREAM / "patches" / "delete-update.vlp"}"')
        expected = s.model.engine.logits("The capital of France")
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
    compiled = Vindex.open(tmp_path / "out.vindex")
    assert not compiled.down(2)[:, 5].any()
    assert (Engine.load(compiled).logits("The capital of France") - expected).abs().max() < 1e-4


def test_a_larql_directory_grows(tmp_path: Path) -> None:
    with connect(UPSTREAM / "all-f32.vindex") as s:
        s.patches.append([insert(s.vindex, "Atlantis", "Poseidon")])
        expected = logits(s.model.engine)
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
        s.patches.rollback()
    compiled = Vindex.open(tmp_path / "out.vindex")
    assert compiled.n_features == [64, 65, 64, 64] and verify(compiled.path) == []
    assert (logits(Engine.load(compiled)) - expected).abs().max() < 1e-4


def test_a_larql_directory_makes_no_model(tmp_path: Path) -> None:
    with connect(UPSTREAM / "all-f32.vindex") as s, pytest.raises(VindexError, match="extract"):
        s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "out"}"')
    assert list(tmp_path.iterdir()) == []


# -- refusals -------------------------------------------------------------------------------------------------


def test_places_that_are_not_free(base, tmp_path: Path) -> None:
    source = shutil.copytree(base("llama"), tmp_path / "in.vindex")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "empty").mkdir()
    with connect(source) as s:
        for target in ("in.vindex", "in.vindex/inner", "full", "file"):
            for what in ("VINDEX", "MODEL"):
                with pytest.raises(VindexError, match="name another place"):
                    s.lql(f'COMPILE CURRENT INTO {what} "{tmp_path / target}"')
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "empty"}"')
    assert verify(tmp_path / "empty") == [] and verify(source) == []
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "precious"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("file", ["attn_weights.bin", "up_weights.bin", "tables/features.parquet"])
def test_damage_does_not_spread(file: str, base, tmp_path: Path) -> None:
    source = shutil.copytree(base("llama"), tmp_path / "in.vindex")
    with connect(source) as s:
        data = bytearray((source / file).read_bytes())
        data[len(data) // 2] ^= 1
        (source / file).write_bytes(data)
        with pytest.raises(VindexError) as caught:
            s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out"}"')
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.vindex"]


def test_an_error_leaves_nothing(base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("larql_duck.compilation.vindex.rebuild_database", full)
    with connect(base("llama")) as s, pytest.raises(VindexError, match="No space left on device"):
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out"}"')
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_gguf_cannot_express(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = make_tiny("llama", tmp_path / "model")
    known = json.loads((model / "tokenizer.json").read_text())
    words = {t: i for i, t in enumerate(sorted(known["model"]["vocab"], key=known["model"]["vocab"].get))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    vindex = Vindex.open(
        extract(model, tmp_path / "x.vindex", level="all", in_basis="embedding", probe=False)
    )
    empty = Overlay.empty(vindex.n_features, vindex.hidden)
    with pytest.raises(ModelError, match="SAFETENSORS"):
        compile_model(vindex, empty, tmp_path / "out.gguf", format="gguf")
    assert not (tmp_path / "out.gguf").exists() and leftovers(tmp_path) == []
    compile_model(vindex, empty, tmp_path / "out")


def test_browse_level_names_the_command(tiny_model, tmp_path: Path) -> None:
    path = extract(
        tiny_model("llama"), tmp_path / "b.vindex", level="browse", in_basis="embedding", probe=False
    )
    with connect(path) as s, pytest.raises(LarqlError, match="--level inference"):
        s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "out"}"')


# -- conflicts ------------------------------------------------------------------------------------------------


def test_conflicts_are_found_and_settled(base) -> None:
    vindex = Vindex.open(base("llama"))
    sure = insert(vindex, "Atlantis", "Poseidon", confidence=0.95)
    doubt = insert(vindex, "atlantis", "Plato", confidence=0.4, seed=40)
    over = InsertOp(0, 5, "France", "Seine", "river", 0.7, gate=vector(vindex, 4))
    lists = [[sure, over], [doubt, DeleteOp(0, 5)], [UpdateOp(2, 2, down=vector(vindex, 5))]]
    names = ["a.vlp", "b.vlp", "c.vlp"]
    same, conflicts = resolve(lists, names, vindex.n_features)
    assert same == lists
    assert {(c.what, c.patches, c.winner) for c in conflicts} == {
        ("Atlantis capital", (0, 1), 1),
        ("L0 F5", (0, 1), 1),
    }
    kept, _ = resolve(lists, names, vindex.n_features, "highest_confidence")
    assert kept == [[sure, over], [], lists[2]]
    with pytest.raises(PatchError, match=r"L0 F5 \(a.vlp, b.vlp\)"):
        resolve(lists, names, vindex.n_features, "fail")
    assert resolve([lists[0], lists[2]], names, vindex.n_features, "fail")[1] == []


def test_on_conflict_decides_what_is_compiled(base, tmp_path: Path) -> None:
    with connect(base("llama")) as s:
        for name, target, confidence, seed in (("a", "Poseidon", 0.9, 10), ("b", "Plato", 0.2, 40)):
            s.patches.append([insert(s.vindex, "Atlantis", target, confidence=confidence, seed=seed)])
            s.patches.save(tmp_path / f"{name}.vlp")
        with pytest.raises(PatchError, match="Atlantis capital"):
            s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "fail"}" ON CONFLICT FAIL')
        assert not (tmp_path / "fail").exists()
        for rule in ("LAST_WINS", "HIGHEST_CONFIDENCE"):
            found = s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / rule}" ON CONFLICT {rule}').dicts()
            assert [r["name"] for r in found if r["kind"] == "conflict"] == ["Atlantis capital"]
    shown = "SELECT object FROM model_graph WHERE subject = 'Atlantis'"
    for rule, target, seed in (("LAST_WINS", "Plato", 42), ("HIGHEST_CONFIDENCE", "Poseidon", 12)):
        with connect(tmp_path / rule) as s:
            assert s.sql(shown).one() == target
            assert np.array_equal(s.vindex.down(1)[:, 64].numpy(), vector(s.vindex, seed))


# -- INTO SLOTS -----------------------------------------------------------------------------------------------


def test_into_slots_overwrites_the_least_used(base, tmp_path: Path) -> None:
    vindex = Vindex.open(base("llama"))
    # The least used slot of all is one that an edit changed: it is not to be taken.
    edits = [insert(vindex, "Atlantis", "Poseidon", seed=50), DeleteOp(1, 7)]
    overlay = overlay_of(vindex, edits)
    texts = [[3, 8, 20, 5, 30, 40, 22, 60], [9, 14, 33, 70, 4, 12, 90, 17]]
    placed = place(vindex, overlay, texts)
    slot = placed.moved[1, 64]
    use = usage(Engine.load(EditedWeights(vindex, overlay)), texts[:1])[1]
    assert use[7] == 0 and slot == next(f for f in use[:64].argsort().tolist() if f != 7)
    assert placed.overlay.n_features == vindex.n_features
    assert np.array_equal(placed.overlay.rows[1][slot].down, edits[0].down)  # type: ignore[union-attr]
    with connect(base("llama")) as s:
        s.patches.append(edits)
        result = s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "out"}" INTO SLOTS')
        s.patches.rollback()
    assert open_model(tmp_path / "out").config["intermediate_size"] == 64
    rows = {r["kind"]: r for r in result.dicts()}
    assert rows["moved"]["name"] == "L1 F64" and "->" in rows["cost"]["detail"]
    assert "perplexity" in result.notices[0]


# -- a real model ---------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_real_model_three_ways(smollm2_vindex: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = ["France", "Japan", "Brazil", "India"]
    forms = [
        "The capital of {} is",
        "The currency of {} is the",
        "People in {} speak",
        "Long ago, in {},",
        "In {} the",
    ]
    prompts = [form.format(name) for form in forms for name in names]
    with connect(smollm2_vindex) as s:
        vindex = s.vindex
        plain = s.model.engine.logits(prompts)
        vectors = {w: vector(vindex, i, 0.05) for i, w in enumerate(("gate", "up", "down"))}
        s.patches.append([InsertOp(10, 1536, "Atlantis", "Poseidon", "capital", **vectors), DeleteOp(20, 5)])
        session = torch.cat([s.model.engine.logits(p) for p in prompts])
        assert (session - plain).abs().max() > 0.05
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
        s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "model"}" FORMAT SAFETENSORS')
        s.lql(f'COMPILE CURRENT INTO MODEL "{tmp_path / "f16.gguf"}" FORMAT GGUF F16')
        s.patches.rollback()
    assert verify(tmp_path / "out.vindex") == []

    def found(engine: Engine) -> torch.Tensor:
        return torch.cat([engine.logits(p) for p in prompts])

    assert (found(Engine.load(Vindex.open(tmp_path / "out.vindex"))) - session).abs().max() < 1e-3
    half = found(Engine.load(open_model(tmp_path / "f16.gguf")))
    assert [set(r.topk(5).indices.tolist()) for r in half] == [
        set(r.topk(5).indices.tolist()) for r in session
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for prompt, expected in zip(prompts, session, strict=True):
        with torch.inference_mode():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        assert (logits - expected).abs().max() < 1e-3


NESTED = {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 8.0}}


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("llama", {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
        ("llama", {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default"}}),
        ("llama", {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0},
                   "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
        ("llama", {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}}),
        ("gemma3_text", {"rope_theta": 5.0, "rope_local_base_freq": 3.0, "rope_parameters": NESTED}),
        ("gemma3_text", {"rope_theta": 5.0, "rope_local_base_freq": 3.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_parameters": NESTED}),
    ],
)  # fmt: skip
def test_rotary_keys_that_contradict_each_other_are_written_as_the_forward_pass_takes_them(
    family: str, keys: dict[str, Any], tiny_model
) -> None:
    from transformers import CONFIG_MAPPING

    config = json.loads((tiny_model(family) / "config.json").read_text())
    config = {k: v for k, v in config.items() if not k.startswith("rope_")} | keys

    def taken(stated: dict[str, Any]) -> list[tuple[str, float]]:
        """Type and base as transformers reads them, of layers with full attention and of the others."""
        rope = CONFIG_MAPPING[family].from_dict(copy.deepcopy(stated)).rope_parameters
        layers = (rope.get(name, rope) for name in ("full_attention", "sliding_attention"))
        return [(own["rope_type"], own["rope_theta"]) for own in layers]

    known, expected = FAMILIES[family], taken(config)
    assert [
        (own["rope_type"], own["rope_theta"])
        for own in (known.rope(config, name) for name in ("full_attention", "sliding_attention"))
    ] == expected
    settled = known.settled(config)
    assert taken(settled) == expected and settled.get("rope_theta", expected[0][1]) == expected[0][1]
    assert settled.get("rope_local_base_freq", expected[1][1]) == expected[1][1]
    embedding = {"token_embd.weight": (config["vocab_size"], config["hidden_size"])}
    metadata = express(config, known, embedding, Path("x.gguf")).metadata
    assert metadata[f"{known.gguf_arch}.rope.freq_base"] == expected[0][1]
    assert metadata.get(f"{known.gguf_arch}.rope.scaling.type", "default") == expected[0][0]
