"""Names of clusters and features: where they come from, what they are scored on, and what is stored of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
from sklearn.metrics import roc_auc_score
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from larql_duck.atlas.clusters import discover_by_contexts, name_clusters, read_atlas
from larql_duck.atlas.contexts import CHOOSE, HELD_OUT, PROPOSE, Contexts, _cut, _side, read_contexts
from larql_duck.atlas.naming import Group, Namer
from larql_duck.atlas.scoring import Scorer, auroc
from larql_duck.atlas.simulating import simulate
from larql_duck.cli import app as cli
from larql_duck.commands.opening import connect
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify

WORDS = [f"w{i}" for i in range(60)]


def spaces() -> Tokenizer:
    """A tokenizer of words between blanks."""
    backend = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0]))
    backend.pre_tokenizer = WhitespaceSplit()
    return Tokenizer(backend, {})


@pytest.fixture
def scorer() -> Scorer:
    rows = np.random.default_rng(0).normal(size=(len(WORDS), 64)).astype(np.float32) + 3.0
    return Scorer(rows, spaces())


def world(topics: int = 4, each: int = 60) -> tuple[Contexts, list[Group]]:
    """Groups of contexts; word 0 stands in all of group 0, and so on; the other words fall as they may."""
    rng = np.random.default_rng(1)
    texts, words = [], []
    for topic in range(topics):
        for _ in range(each):
            chosen = [WORDS[i] for i in rng.integers(topics, len(WORDS), 6)] + [WORDS[topic]]
            texts.append(" ".join(chosen))
            words.append(tuple(chosen))
    side = np.resize([PROPOSE, CHOOSE, HELD_OUT, HELD_OUT], len(texts))
    at = np.arange(len(texts)).reshape(topics, each)
    return Contexts(texts, words, side), [Group(own, np.ones(each), {}) for own in at]


def test_a_group_is_named_by_what_its_contexts_share(scorer: Scorer) -> None:
    contexts, groups = world()
    named = Namer(contexts, scorer).name(groups)
    assert [name and name.text.split()[0] for name in named.names] == WORDS[:4]
    assert named.mean > 0.9 and named.shuffled < 0.6
    assert all(name.n_scored == 30 and name.source == "contexts" for name in named.names if name)
    assert named == Namer(contexts, scorer).name(groups)


def test_letters_without_blanks_are_no_name(scorer: Scorer) -> None:
    contexts, groups = world()
    babble = "peglussiesdwiiejfjspeitvjznjjyzoitjbewjzilzs"
    contexts = replace(
        contexts, words=[tuple(babble if w == "w0" else w for w in own) for own in contexts.words]
    )
    names = [name.text for name in Namer(contexts, scorer).name(groups).names if name]
    assert "w1" in " ".join(names) and not any(babble in name for name in names)


def test_contexts_that_have_nothing_in_common_get_no_name(scorer: Scorer) -> None:
    contexts, _ = world(topics=40, each=20)
    mixed = np.random.default_rng(2).permutation(len(contexts.texts)).reshape(20, 40)
    named = Namer(contexts, scorer).name([Group(own, np.ones(40), {"tokens": ["w3"]}) for own in mixed])
    assert named.count() <= 3


def test_names_that_fail_where_they_are_chosen_are_not_scored(scorer: Scorer) -> None:
    contexts, groups = world()
    # Where names are chosen groups 1 to 3 are about something else.
    for i in np.flatnonzero(contexts.side == CHOOSE):
        if i >= 60:
            contexts.words[i] = tuple(WORDS[j] for j in np.random.default_rng(i).integers(10, len(WORDS), 7))
            contexts.texts[i] = " ".join(contexts.words[i])
    assert Namer(contexts, scorer).name(groups).count() > 1
    assert [bool(name) for name in Namer(contexts, scorer).name(groups, promise=0.9).names] == [
        True,
        False,
        False,
        False,
    ]


def test_held_out_contexts_decide_no_name(scorer: Scorer) -> None:
    contexts, groups = world()
    # On the held-out side every group is about something else.
    for i in np.flatnonzero(contexts.side == HELD_OUT):
        other = contexts.words[(i + 60) % 240][-1]
        contexts.words[i] = (*contexts.words[i][:-1], other)
        contexts.texts[i] = " ".join(contexts.words[i])
    assert Namer(contexts, scorer).name(groups).count() == 0


def test_evidence_from_elsewhere_competes_and_says_its_source(scorer: Scorer) -> None:
    contexts, groups = world()
    # No word of the contexts is seen: only what is known remains.
    unseen = Contexts(contexts.texts, [("",)] * len(contexts.texts), contexts.side)
    known = [Group(g.contexts, g.strength, {"facts": ["w9", WORDS[i]]}) for i, g in enumerate(groups)]
    names = Namer(unseen, scorer).name(known).names
    assert [(n.text, n.source) for n in names if n] == [(word, "facts") for word in WORDS[:4]]
    # A promoted token counts where the contexts hold it.
    promoted = [Group(g.contexts, g.strength, {"tokens": [WORDS[i]]}) for i, g in enumerate(groups)]
    assert Namer(unseen, scorer).name(promoted).count() == 0
    assert Namer(contexts, scorer).name(promoted).count() == 4


def test_the_score_is_an_auroc_of_cosines_and_sees_eight_tokens(scorer: Scorer) -> None:
    contexts, groups = world()
    own, others = ([contexts.texts[i] for i in g.contexts] for g in groups[:2])
    rows = np.random.default_rng(0).normal(size=(len(WORDS), 64)).astype(np.float32) + 3.0
    rows -= rows.mean(0)
    name = rows[0] / np.linalg.norm(rows[0])
    vectors = [rows[spaces().entity_ids(text)].mean(0) for text in own + others]
    cosines = [float(v @ name / np.linalg.norm(v)) for v in vectors]
    expected = roc_auc_score([1] * len(own) + [0] * len(others), cosines)
    assert scorer.score("w0", own, others) == pytest.approx(expected)
    assert scorer.score("w0", [f"w1 w1 w1 w1 {t} {t[:0]}w5" for t in own], others) == scorer.score(
        "w0", [f"{t} w5" for t in own], others
    )
    with pytest.raises(ValueError, match="at most 5 words"):
        scorer.score("a b c d e f", own, others)
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5


def test_a_context_ends_with_its_token_and_words_are_whole() -> None:
    content = "The capital of France, a country"
    texts, words = _cut(content, [3, 7, 11, 14, 21, 22, 24, 32])
    assert texts[1] == "The cap" and words[1] == ("the", "capital")
    assert words[4] == ("the", "capital", "of", "france") and words[5][-1] == ""
    assert texts[-1] == content and words[-1][-1] == "country"


def test_scripts_without_blanks_have_words_of_two_letters() -> None:
    # Katakana runs, and words with marks on their letters, are whole.
    for content, expected in (
        ("我在中国住", ["我在", "在中", "中国", "国住"]),
        ("東京のコンピュータ", ["東京", "京の", "コンピュータ"]),
        ("ที่ดี ไป", ["ที่ดี", "ไป"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("我 naïve", ["我", "naïve"]),
    ):
        texts, words = _cut(content, list(range(1, len(content) + 1)))
        assert list(dict.fromkeys(word for own in words for word in own if word)) == expected
        for text, own in zip(texts, words, strict=True):
            # No word begins before its context does.
            assert all(word[0] in text for word in own if word)
    assert _cut("我在中国住", [1, 2, 3, 4, 5])[1][3] == ("我在", "我在", "在中", "中国")


def test_sides_share_no_token() -> None:
    for doc in range(3):
        tokens: dict[int, set[int]] = {}
        for place in range(400):
            for token in range(max(place - 7, 0), place + 1):
                tokens.setdefault(_side(doc, 0, place), set()).add(token)
        naming = tokens.get(PROPOSE, set()) | tokens.get(CHOOSE, set())
        assert naming and tokens[HELD_OUT] and not naming & tokens[HELD_OUT]


# -- a vindex ---------------------------------------------------------------------------------------------------

TEXTS = ["The capital of France is Paris in Europe and Tokyo", "Rome of Italy is hot and cold in Europe"]


@pytest.fixture(scope="module")
def collected(tiny_vindex: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("names")
    copy = shutil.copytree(tiny_vindex("llama"), place / "m.vindex")
    words = [word for text in TEXTS for word in text.split()]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 30)) for _ in range(60)]
    (place / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert cli.run(["activations", str(copy), str(place / "texts.txt")]) == 0
    return copy


@pytest.fixture
def vindex(collected: Path, tmp_path: Path) -> Path:
    return shutil.copytree(collected, tmp_path / "m.vindex")


def test_no_text_stands_on_both_sides(vindex: Path) -> None:
    contexts, firings = read_contexts(Vindex.open(vindex))
    naming = {t for t, use in zip(contexts.texts, contexts.naming(), strict=True) if use}
    held = {t for t, side in zip(contexts.texts, contexts.side, strict=True) if side == HELD_OUT}
    assert naming and held and not naming & held
    stored = Vindex.open(vindex).table("feature_firings").to_pylist()
    tokens = {(r["layer"], r["feature"], r["sign"], r["activation"]): r["token"] for r in stored}
    for i in range(0, len(firings.layer), 97):
        key = (firings.layer[i], firings.feature[i], firings.sign[i], firings.activation[i])
        assert contexts.texts[firings.context[i]].endswith(tokens[key])


def test_clusters_are_of_features_that_fire_and_the_same_each_time(vindex: Path) -> None:
    opened = Vindex.open(vindex)
    atlas = read_atlas(opened)
    assert atlas is not None
    one, two = (discover_by_contexts(opened, atlas, k=6) for _ in range(2))
    assert (one.member == two.member).all()
    fire = {(r["layer"], r["feature"]) for r in opened.table("feature_stats").to_pylist() if r["density"] > 0}
    assert set(one.directions.slots()) <= fire
    assert name_clusters(one, atlas).names == name_clusters(two, atlas).names
    assert len(discover_by_contexts(opened, atlas).labels) == max(1, len(one.member) // 8)


def test_cluster_stores_names_and_says_how_good_they_are(
    vindex: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["cluster", str(vindex), "-k", "6"]) == 0
    said = capfd.readouterr().err
    assert "of 6 clusters have a name" in said and "features that fire have a name" in said
    verify(vindex)
    with connect(vindex) as s:
        for row in s.sql("SELECT name, name_source, score, n_scored FROM clusters").rows():
            assert len({value is None for value in row}) == 1
        rows = s.sql("SELECT score, n_scored, sign FROM feature_names").rows()
    assert all(score > 0.5 and n >= 5 and sign in (1, -1) for score, n, sign in rows)


def test_without_examples_the_next_step_is_named(
    tiny_vindex: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(tiny_vindex("llama"), tmp_path / "m.vindex")
    assert cli.run(["cluster", str(copy), "-k", "4"]) == 0
    assert f"larql-duck activations {copy}" in capfd.readouterr().err
    assert set(pq.read_table(copy / "tables" / "clusters.parquet")["name"].to_pylist()) == {None}
    for option in (["--by", "contexts"], ["--simulate", "2"]):
        assert cli.run(["cluster", str(copy), *option]) != 0
        assert f"run larql-duck activations {copy}" in capfd.readouterr().err


def test_show_relations_tells_asked_from_discovered(vindex: Path) -> None:
    assert cli.run(["cluster", str(vindex), "-k", "6"]) == 0
    with connect(vindex) as s:
        s.probe(["France", "Germany"], {"situated in": ["The capital of {} is", "{}'s capital is"]})
    path = vindex / "tables" / "clusters.parquet"
    table = pq.read_table(path).to_pylist()
    table[2] |= {"name": "european rivers", "name_source": "contexts", "score": 0.875, "n_scored": 20}
    import pyarrow as pa

    from larql_duck.catalog import SCHEMAS
    from larql_duck.vindex.publish import commit_tables

    commit_tables(vindex, {"clusters": pa.Table.from_pylist(table, schema=SCHEMAS["clusters"])})
    with connect(vindex) as s:
        rows = s.lql("SHOW RELATIONS;").rows()
    sources = {row[0]: row for row in rows}
    assert "probe" in sources["situated in"] and "cluster" in sources["european rivers"]
    order = [row[0] for row in rows]
    assert order.index("situated in") < order.index("european rivers")
    assert any(
        value == pytest.approx(0.875) for value in sources["european rivers"] if isinstance(value, float)
    )


def test_the_model_tests_names_on_contexts_that_did_not_name(vindex: Path) -> None:
    opened = Vindex.open(vindex)
    atlas = read_atlas(opened)
    assert atlas is not None
    from larql_duck.catalog import as_table

    slots = list(
        dict.fromkeys(zip(atlas.firings.layer.tolist(), atlas.firings.feature.tolist(), strict=True))
    )
    names = as_table(
        "feature_names",
        {
            "layer": [s[0] for s in slots], "feature": [s[1] for s in slots], "sign": [1] * len(slots),
            "name": ["Paris"] * len(slots), "source": ["contexts"] * len(slots), "score": [0.9] * len(slots),
            "n_scored": [9] * len(slots),
        },
    )  # fmt: skip
    with connect(vindex) as s:
        rows = simulate(s.workspace.engine(), atlas, names, 3)
    assert len(rows) == 3 and all(-1 <= row.correlation <= 1 and row.n >= 8 for row in rows)
