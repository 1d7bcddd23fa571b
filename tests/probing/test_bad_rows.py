"""One bad row among good ones: it has its own notice or NULL, and the others have their answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import larql_duck as lq
from larql_duck.atlas.raw import write_raw
from larql_duck.editing.background_corpus import given_text
from larql_duck.errors import LarqlError, SemanticError
from larql_duck.session import Session
from tests.tiny import make_tiny

# A token of the tokenizer that the model has no embedding for, as Gemma 3's text models have; and too much text.
BEYOND, LONG = "<image_soft_token>", "word " * 300
ROWS = pd.DataFrame({"name": pd.Series(["France", BEYOND, None, pd.NA, LONG, "", "Japan"], dtype=object)})
GOOD = ["France", "Japan"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    from larql_duck.extraction import extract

    base = tmp_path_factory.mktemp("beyond")
    model = make_tiny("llama", base / "model", layers=2)
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer["added_tokens"].append({"id": rows, "content": BEYOND, **flags})
    file.write_text(json.dumps(tokenizer))
    path = extract(model, base / "x.vindex", level="all", in_basis="embedding", probe=False)
    with lq.connect(path) as made:
        yield made


def test_probe_names_who_was_not_asked_about(session: Session) -> None:
    names = ["France", BEYOND, LONG, "Japan"]
    templates = {"situated in": ["The capital of {} is", "{} has"], "near": ["Near {} lies"]}
    result = session.probe(names, templates, save=False)
    asked = session.sql("SELECT subject, count(*) FROM probes GROUP BY ALL ORDER BY ALL").rows()
    assert asked == [("France", 3), ("Japan", 3)]
    told = [n for n in result.notices if "was not asked about" in n]
    assert len(told) == 2
    assert f"no embedding for the token {BEYOND!r}" in told[0] and "context holds 128" in told[1]
    alone = session.probe(GOOD, templates, save=False)
    assert [r["object"] for r in result.dicts()] == [r["object"] for r in alone.dicts()]


def test_a_column_has_null_where_the_model_cannot_run(session: Session) -> None:
    result = session.sql("SELECT lq_complete(name, 2), lq_ask(name, 'capital') FROM ROWS")
    found, told = result.rows(), " ".join(result.notices)
    for function in ("lq_complete", "lq_ask"):
        assert f"{function} of {BEYOND[:40]!r} is NULL: the model has no embedding" in told
    assert [text is not None for text, _ in found] == [name in GOOD for name in ROWS["name"].fillna("")]
    assert all(answer is None for text, answer in found if text is None)


@pytest.mark.parametrize(
    "function", ["lq_infer_top(name, 1)", "lq_trace(name)", "lq_features(name, NULL, 3)", "lq_logit_lens(name, 1)"]
)  # fmt: skip
def test_a_pass_gives_no_rows_there_and_says_why(function: str, session: Session) -> None:
    result = session.sql(f"SELECT DISTINCT name FROM ROWS, LATERAL {function} ORDER BY name")
    assert [name for (name,) in result.rows()] == GOOD
    assert [f"no answer to {name[:40]!r}" in " ".join(result.notices) for name in (BEYOND, LONG)] == [
        True
    ] * 2
    assert session.sql("SELECT 1").notices == []


@pytest.mark.parametrize(
    "call",
    ["lq_infer_top(NULL)", "lq_infer_top('x', NULL)", "lq_trace(NULL)", "lq_trace('x', '')", f"lq_trace('x', '{BEYOND}')",
     "lq_features(NULL)", "lq_features('x', NULL, NULL)", "lq_logit_lens(NULL)", "lq_logit_lens('x', NULL)"],
)  # fmt: skip
def test_null_and_what_is_no_token_give_no_rows(call: str, session: Session) -> None:
    assert session.sql(f"FROM {call}").rows() == []


def test_null_is_null(session: Session) -> None:
    calls = "lq_ask(NULL, 'capital'), lq_ask('x', NULL), lq_complete(NULL), lq_complete('x', NULL), lq_complete('', 2)"
    assert session.sql(f"SELECT {calls}").rows() == [(None,) * 5]


@pytest.mark.parametrize("statement", [f'INFER "{BEYOND} is"', f'TRACE "x" FOR "{BEYOND}"'])
def test_one_prompt_is_refused_in_a_line(statement: str, session: Session) -> None:
    with pytest.raises(LarqlError, match=f"no embedding for the token '{BEYOND}'"):
        session.lql(statement)


def test_a_text_of_a_corpus_is_left_out_and_told(session: Session, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(f"The capital of France\n{BEYOND} and\nof Japan\n{BEYOND}\n")
    told: list[str] = []
    out = write_raw(session.model.engine, texts, tmp_path / "o.parquet", top=9, notice=told.append)
    assert session.sql(f"SELECT DISTINCT text FROM '{out}' ORDER BY text").rows() == [(0,), (2,)]
    assert len(told) == 1 and told[0].startswith(f"text 1 is left out where it holds '{BEYOND}'")
    rows = given_text(session.model.engine, [f"{BEYOND} of", "The capital of France is Paris"], 2).rows
    assert [session.model.engine.tokenizer.decode(row) for row in rows] == ["The capital of France is Paris"]


def test_insert_leaves_bad_rows_out_and_says_so(session: Session) -> None:
    rows = [
        ("Mu", "capital", "Paris"),
        (BEYOND, "capital", "x"),
        (None, "capital", "x"),
        ("Lemuria", "capital", pd.NA),
    ]
    frame = pd.DataFrame(rows, columns=["entity", "relation", "target"])
    for given in (rows, frame):
        result = session.insert(given, mode="knn")
        assert [r["entity"] for r in result.dicts()] == ["Mu"]
        assert any("2 of 4 rows lack" in n and "row 3, 4" in n for n in result.notices)
        assert any(f"'{BEYOND}', capital, was left out: the model has no" in n for n in result.notices)
    result = session.lql(
        "INSERT INTO EDGES (entity, relation, target) SELECT entity, relation, target FROM frame MODE KNN"
    )
    assert [r["entity"] for r in result.dicts()] == ["Mu"]
    session.patches.rollback()


@pytest.mark.parametrize("row", [(BEYOND, "capital", "x"), ("Mu", "capital", BEYOND), (LONG, "capital", "x")])
def test_insert_of_bad_rows_alone_is_refused(row: tuple[str, str, str], session: Session) -> None:
    with pytest.raises(SemanticError, match=r"was left out: (the model has no embedding|the prompt has)"):
        session.insert([row])
    assert not session.patches.dirty


def test_names_are_compared_composed(session: Session) -> None:
    """A name that macOS writes in pieces is the composed one."""
    split, whole = "Zu\u0308rich", "Z\xfcrich"
    session.probe([split], {"situated in": ["The capital of {} is"]}, save=False)
    assert session.sql("SELECT count(*) FROM probes WHERE subject = $name", {"name": whole}).one() == 1
    session.insert([(split, "capital", "Paris")], mode="knn")
    result = session.insert([(whole, "capital", "Rome")], mode="knn")
    assert len(result.dicts()) == 1 and [f.target for f in session.patches.overlay.knn] == ["Rome"]
    shown = session.lql(f'DESCRIBE "{split}"').dicts()
    assert [r["target"] for r in shown] == ["Rome"] and shown == session.lql(f'DESCRIBE "{whole}"').dicts()
    session.patches.rollback()
