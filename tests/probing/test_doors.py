"""Probing through its doors: Python, LQL, the command line, and functions in SQL, on a tiny model."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from larql_duck.catalog import SCHEMAS, as_table, empty_table, quoted
from larql_duck.cli import app as cli
from larql_duck.commands.opening import attach, connect
from larql_duck.errors import LarqlError, LevelError, PackError, SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.probing import publish as publish_module
from larql_duck.probing.answers import Asked
from larql_duck.probing.confidence import Calibration
from larql_duck.probing.evidence import COLUMNS
from larql_duck.probing.outcomes import Outcome
from larql_duck.session import Session
from larql_duck.vindex.derive import derive_triples, label_features, weight_edges
from larql_duck.vindex.manifest import SECTION, load_manifest
from larql_duck.vindex.publish import commit_tables
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.world import write_vindex

WHERE = {"situated in": ["The capital of {} is", "{}'s capital is"]}
NAMES = ["France", "Germany", "Japan"]


@pytest.fixture(scope="module")
def base(tiny_vindex) -> Path:
    return tiny_vindex("gpt2")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A vindex of one's own, to be written to."""
    return shutil.copytree(base, tmp_path / "m.vindex")


@pytest.fixture(scope="module")
def probed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Session]]:
    """A copy in which a relation was probed and saved, and the session that did it."""
    path = shutil.copytree(base, tmp_path_factory.mktemp("probed") / "m.vindex")
    with connect(path) as session:
        session.probe(NAMES, WHERE)
        yield path, session


def columns(session: Session, sql: str) -> list[tuple[object, ...]]:
    return session.sql(sql).rows()


def test_one_row_per_fact_visible_at_once_and_in_every_table(copy: Path) -> None:
    with connect(copy) as s:
        result = s.probe(NAMES, WHERE)
        assert result.columns == ["subject", "relation", "object", "p", "confidence", "n_features", "effect"]
        assert [r["subject"] for r in result.dicts()] == NAMES
        assert {r["relation"] for r in result.dicts()} == {"situated in"}
        shown = s.lql('DESCRIBE "France"').dicts()
        assert (shown[0]["relation"], shown[0]["source"]) == ("situated in", "probe")
        assert shown[0]["target"] == result.dicts()[0]["object"]
        graph = columns(s, "SELECT object FROM model_graph WHERE subject = 'Japan' AND source = 'probe'")
        assert graph == [(result.dicts()[2]["object"],)]
        assert columns(s, "SELECT count(*) FROM probes") == [(6,)]
        labelled = columns(s, "SELECT count(*) FROM features WHERE relation_source = 'probe'")
        assert labelled == columns(s, "SELECT count(DISTINCT (layer, feature)) FROM feature_relations")
        assert labelled[0][0] > 0
        assert "situated in" in [r["relation"] for r in s.lql("SHOW RELATIONS").dicts()]


def test_saved_facts_are_there_for_everybody(probed: tuple[Path, Session]) -> None:
    path, session = probed
    own = columns(session, "FROM facts ORDER BY ALL")
    assert own
    with duckdb.connect(str(path / "model.duckdb"), read_only=True) as con:
        assert con.execute("FROM facts ORDER BY ALL").fetchall() == own
        assert con.execute("FROM triples").fetchall() == columns(session, "FROM triples")
    with connect(path) as other:
        for table in ("facts", "probes", "edges", "relations", "feature_relations", "features", "entities"):
            query = f"FROM {table} ORDER BY ALL"
            assert columns(other, query) == columns(session, query), table
    assert verify(path) == []


def test_labels_are_written_as_larql_reads_them(probed: tuple[Path, Session]) -> None:
    path, session = probed
    labels = json.loads((path / "feature_labels.json").read_text())
    rows = columns(session, "SELECT layer, feature FROM features WHERE relation_source = 'probe'")
    assert labels == {f"L{layer}_F{feature}": "situated in" for layer, feature in rows}


def test_weight_edges_connect_what_can_be_read() -> None:
    tokens = [" Paris", "\n\t", "\u00a0", "a\ufffd", "\0"]
    rows = [
        {"layer": 0, "feature": feature, "side": side, "rank": 1, "token": token, "z": 5.0, "activation": 1.0,
         "basis": "context" if side == "in" else "output"}
        for feature, (activating, promoted) in enumerate(itertools.product([*tokens, "France\n"], tokens))
        for side, token in (("in", activating), ("out", promoted))
    ]  # fmt: skip
    edges = weight_edges(pa.Table.from_pylist(rows, SCHEMAS["feature_tokens"])).to_pylist()
    assert {(e["subject"], e["relation"], e["object"]) for e in edges} == {
        ("France", "associated with", "Paris"), ("Paris", "associated with", "Paris"),
    }  # fmt: skip


def test_the_graph_of_facts_is_a_file_too(probed: tuple[Path, Session]) -> None:
    path, session = probed
    stored = duckdb.sql(f"FROM {quoted(str(path / 'tables' / 'model_graph.parquet'))}").fetchall()
    assert [row[0] for row in stored] == sorted(row[0] for row in stored)
    assert sorted(stored) == sorted(columns(session, "SELECT * FROM model_graph"))
    assert {row[5] for row in stored} == {"probe"} and verify(path) == []


def test_a_feature_of_every_relation_is_labelled_by_none(base: Path) -> None:
    labels = as_table("feature_relations", {"layer": [0, 0], "feature": [0, 1], "relation": ["r", "r"], "support": [1.0, 0.5],
                                            "specificity": [0.5, 0.8], "mean_contribution": [1.0, 1.0]})  # fmt: skip
    rows = label_features(Vindex.open(base).table("features"), labels).to_pylist()
    assert [r["relation"] for r in rows[:2]] == [None, "r"]


def test_the_best_answer_comes_first_among_equally_confident_ones() -> None:
    facts = [
        {
            "subject": "x",
            "relation": "r",
            "object": name,
            "rank": rank,
            "p": 0.2,
            "confidence": 0.4,
            "source": "probe",
        }
        for rank, name in enumerate(("b", "a", "c"), 1)
    ]
    table = pa.Table.from_pylist(facts, schema=SCHEMAS["facts"])
    triples = derive_triples(table, empty_table("edges"), {"r"})
    assert triples.column("object").to_pylist() == ["b", "a", "c"]


def test_extraction_keeps_labels_and_what_was_judged(tiny_model, tmp_path: Path) -> None:
    from larql_duck.extraction import extract

    pack = tmp_path / "small.yaml"
    pack.write_text(
        "pack: small\nrelations:\n  - relation: capital of\n    description: d\n    answer: name\n"
        "    templates: ['The capital of {} is', \"{}'s capital is\"]\n"
        "    entities: [{subject: France, object: Paris}, {subject: Japan, object: Tokyo}, Germany]\n"
    )
    path = extract(tiny_model("gpt2"), tmp_path / "x.vindex", in_basis="embedding", pack=str(pack))
    vindex = Vindex.open(path)
    labelled = [r for r in vindex.table("features").to_pylist() if r["relation_source"] == "probe"]
    labels = json.loads((path / "feature_labels.json").read_text())
    assert labels == {f"L{r['layer']}_F{r['feature']}": r["relation"] for r in labelled} != {}
    assert set(vindex.manifest.raw[SECTION]["probe"]) == {"calibration"}
    assert verify(path) == []


def test_earlier_calibration_serves_relations_without_references(copy: Path) -> None:
    zeros = (0.0,) * len(COLUMNS)
    calibration = Calibration(
        zeros, (1.0,) * len(COLUMNS), zeros, math.log(1 / 3), {"known": (1.0, 0.0)}, 0.0
    )

    def learnt(section: dict[str, object]) -> None:
        publish_module.probe_section(section, {"calibration": calibration.as_json()})

    commit_tables(copy, {}, learnt)
    with connect(copy) as s:
        assert {round(r["confidence"], 9) for r in s.probe(NAMES, WHERE).dicts()} == {0.25}
        assert s.sql("SELECT DISTINCT calibrated FROM facts").rows() == [("pooled",)]


def test_probing_again_replaces_rows_and_keeps_others(copy: Path) -> None:
    with connect(copy) as s:
        s.probe(NAMES, WHERE)
        before = columns(s, "FROM facts WHERE subject <> 'Japan' ORDER BY ALL")
        s.probe(["Japan", "Italy"], WHERE)
        assert columns(s, "FROM facts WHERE subject NOT IN ('Japan', 'Italy') ORDER BY ALL") == before
        counts = columns(s, "SELECT subject, count(*) FROM facts WHERE rank = 1 GROUP BY 1 ORDER BY 1")
        assert counts == [("France", 1), ("Germany", 1), ("Italy", 1), ("Japan", 1)]
    assert load_manifest(copy).raw[SECTION]["packs"] == [{"name": "custom", "many": []}]


def test_unsaved_facts_are_the_sessions_own(copy: Path) -> None:
    before = load_manifest(copy).raw
    with connect(copy) as s:
        s.probe(["France"], WHERE, save=False)
        s.probe(["Japan"], WHERE, save=False)
        assert columns(s, "SELECT subject FROM facts WHERE rank = 1 ORDER BY 1") == [("France",), ("Japan",)]
        s.probe(["Italy"], WHERE)
        shown = columns(s, "SELECT subject FROM facts WHERE rank = 1 ORDER BY 1")
        assert shown == [("France",), ("Italy",), ("Japan",)]
        s.use(copy)
        assert columns(s, "SELECT subject FROM facts WHERE rank = 1") == [("Italy",)]
    assert load_manifest(copy).raw != before


def test_many_answers_become_triples_and_stay_so(copy: Path) -> None:
    from larql_duck.knowledge.relations import Pack, Relation

    relation = Relation("near", "what is near", ("Near {} lies",), many=True, entities=("France",))
    with connect(copy) as s:
        s.probe(pack=Pack("mine", (relation,)))
        assert load_manifest(copy).raw[SECTION]["packs"] == [{"name": "mine", "many": ["near"]}]
        s.probe(["Japan"], WHERE)
        expected = columns(
            s, "SELECT object FROM facts WHERE relation = 'near' AND (rank = 1 OR p >= 0.1) ORDER BY 1"
        )
        found = columns(
            s, "SELECT object FROM triples WHERE relation = 'near' AND source = 'probe' ORDER BY 1"
        )
        assert found == expected


@pytest.mark.parametrize(
    "entities",
    [
        "SELECT name FROM (VALUES ('France'), ('Japan')) AS t(name)",
        pa.table({"subject": ["France", "Japan"], "population": [1, 2]}),
        ("France", "Japan", "France", ""),
    ],
    ids=["sql", "arrow", "list"],
)
def test_entities_come_in_many_forms(base: Path, entities: object) -> None:
    with connect(base) as s:
        result = s.probe(entities, WHERE, save=False)
        assert [r["subject"] for r in result.dicts()] == ["France", "Japan"]


def test_a_duckdb_relation_gives_entities_and_references(base: Path) -> None:
    with connect(base) as s:
        relation = s.con.sql("SELECT 'France' AS subject, 'the land of France' AS text, 'Paris' AS object")
        s.probe(relation, WHERE, save=False)
        assert columns(s, "SELECT prompt FROM probes ORDER BY 1") == [
            ("The capital of the land of France is",),
            ("The land of France's capital is",),
        ]


def test_lql_probe(base: Path) -> None:
    with connect(base) as s:
        result = s.lql(
            'PROBE ENTITIES "France", "Japan" RELATIONS "colour" TEMPLATE "The capital of {} is" DRY RUN'
        )
        assert [(r["subject"], r["relation"]) for r in result.dicts()] == [
            ("France", "colour"), ("Japan", "colour"),
        ]  # fmt: skip
        assert any("would be saved" in note for note in result.notices)
        countries = pa.table({"land": ["Spain", "Italy"]})
        result = s.lql('PROBE ENTITIES (SELECT land FROM countries) RELATIONS "capital" LIMIT 1 DRY RUN')
        assert [r["subject"] for r in result.dicts()] == ["Spain"]
        assert countries.num_rows == 2
        result = s.lql('PROBE PACK "core" RELATIONS "capital" LIMIT 2 DRY RUN')
        assert len({r["subject"] for r in result.dicts()}) <= 2 and set(result.df()["relation"]) == {
            "capital"
        }


def test_lql_probe_says_what_is_wrong(base: Path, tmp_path: Path) -> None:
    with connect(base) as s:
        with pytest.raises(PackError, match="capital"):
            s.lql('PROBE RELATIONS "capitol" DRY RUN')
        with pytest.raises(SemanticError, match="LIMIT 0 is out of range"):
            s.lql('PROBE RELATIONS "capital" LIMIT 0')
        with pytest.raises(SemanticError, match="nobody to ask"):
            s.lql("PROBE ENTITIES (SELECT 'x' WHERE false) RELATIONS \"capital\"")
        with pytest.raises(PackError, match=r"read as SQL.*names come in a list: \['Peru'\]"):
            s.probe("Peru", WHERE)
        with pytest.raises(PackError, match="no pack"):
            s.lql('PROBE PACK "core2"')
    world = write_vindex(tmp_path / "browse.vindex")
    with connect(world) as s, pytest.raises(LevelError, match="level inference"):
        s.lql('PROBE ENTITIES "France"')


def test_two_processes_that_save_lose_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process publishes between our reading and our writing: both runs' facts stay."""
    with connect(copy) as one, connect(copy) as two:
        real = publish_module.commit_tables
        overtaken = []

        def overtake(*arguments: object, **options: object) -> None:
            if not overtaken:
                overtaken.append(True)
                two.probe(["Japan"], WHERE)
            real(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(publish_module, "commit_tables", overtake)
        one.probe(["France"], WHERE)
        assert columns(one, "SELECT DISTINCT subject FROM facts ORDER BY 1") == [("France",), ("Japan",)]
    facts = Vindex.open(copy).table("facts")
    assert set(facts.column("subject").to_pylist()) == {"France", "Japan"}


# -- functions --------------------------------------------------------------------------------------------------


def test_ask_is_what_probing_says(base: Path) -> None:
    with connect(base) as s:
        answers = columns(
            s,
            "SELECT name, lq_ask(name, 'capital') FROM (VALUES ('France'), (NULL), ('Japan'), ('')) AS t(name)",
        )
        assert [a for _, a in answers][1] is None and [a for _, a in answers][3] is None
        facts = {r["subject"]: r for r in s.probe(["France", "Japan"], "capital", save=False).dicts()}
        for name, answer in answers:
            if answer is not None:
                assert answer["object"] == facts[name]["object"]
                assert answer["p"] == pytest.approx(facts[name]["p"], abs=1e-6)
        assert columns(s, "SELECT lq_ask('France', NULL)") == [(None,)]
        # As in entities: NA as pandas prints it is nobody.
        missing = "SELECT lq_ask('<NA>', 'capital'), lq_ask(' ', 'capital'), lq_ask('France', '<NA>'), lq_ask('France', '')"
        assert columns(s, missing) == [(None, None, None, None)]


def test_ask_takes_stored_facts_without_a_model(tmp_path: Path) -> None:
    world = write_vindex(tmp_path / "browse.vindex")
    with connect(world) as s:
        assert columns(s, "SELECT lq_ask('france', 'Capital')") == [({"object": "Paris", "p": 0.77},)]
        with pytest.raises(LevelError, match="lq_ask"):
            s.sql("SELECT lq_ask('Utopia', 'capital')")
        with pytest.raises(SemanticError, match="capital"):
            s.sql("SELECT lq_ask('Utopia', 'capitol')")


def test_ask_runs_one_batch_and_remembers(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from larql_duck.session.udfs import answers

    calls: list[list[str]] = []
    real = answers.ask_subjects

    def counting(engine, relation, subjects=None, **options):  # type: ignore[no-untyped-def]
        calls.append(list(subjects))
        return real(engine, relation, subjects, **options)

    monkeypatch.setattr(answers, "ask_subjects", counting)
    with connect(base) as s:
        query = "SELECT lq_ask('country ' || (i % 5), 'capital') FROM range(300) AS t(i)"
        first = columns(s, query)
        assert sorted(calls[0]) == [f"country {i}" for i in range(5)] and len(calls) == 1
        assert columns(s, query) == first and len(calls) == 1
        # An EXPLAIN asks nobody.
        s.sql("EXPLAIN SELECT lq_ask('Peru', 'capital')")
        assert len(calls) == 1


def test_complete_continues_and_is_the_same_alone_and_in_a_batch(base: Path) -> None:
    from larql_duck.inference.generate import stream

    with connect(base) as s:
        prompts = ["The capital of France is", "One two", "The"]
        found = columns(s, f"SELECT p, lq_complete(p, 4) FROM (SELECT unnest({prompts!r}) AS p)")
        for prompt, text in found:
            alone = "".join(piece.text for piece in stream(s.model.engine, str(prompt), max_tokens=4))
            assert str(text).startswith(alone) or alone.startswith(str(text))
            assert columns(s, "SELECT lq_complete($$" + str(prompt) + "$$, 4)") == [(text,)]
        row = columns(
            s, "SELECT lq_complete(NULL, 4), lq_complete('x', NULL), lq_complete('x', 0), lq_complete('The')"
        )
        assert row[0][:3] == (None, None, "") and row[0][3]
        with pytest.raises(SemanticError, match="out of range"):
            s.sql("SELECT lq_complete('x', -1)")


def test_functions_in_a_users_connection(base: Path) -> None:
    with duckdb.connect() as con:
        session = attach(con, base, schema="m")
        try:
            assert con.execute("SELECT m.lq_complete('The', 2)").fetchall()
            assert con.execute("SELECT m.lq_ask(NULL, 'capital')").fetchall() == [(None,)]
        finally:
            session.close()


# -- the command line -------------------------------------------------------------------------------------------


def test_cli_probe_saves_and_prints(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "names.csv"
    file.write_text("name;iso\nFrance;FR\nJapan;JP\n")
    arguments = ["probe", str(copy), "--relation", "situated in", "--template", "The capital of {} is"]
    assert cli.run([*arguments, "--entities", str(file), "--jsonl"]) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["subject"] for line in out.splitlines()] == ["France", "Japan"]
    assert err.index("columns name, iso separated by ';'; 2 rows, 2 names: France, Japan") < err.index(
        "saved in"
    )
    assert not list(copy.parent.glob(".*.probe"))
    with connect(copy) as s:
        assert columns(s, "SELECT count(DISTINCT subject) FROM facts") == [(2,)]


def test_cli_probe_takes_a_first_line_for_a_name(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names.csv"
    file.write_text("name\nFrance\n")
    arguments = [
        "probe",
        str(base),
        "--relation",
        "situated in",
        "--template",
        "The capital of {} is",
        "--dry-run",
    ]
    assert cli.run([*arguments, "--entities", str(file), "--jsonl", "--no-header"]) == 0
    assert "no header; 2 rows, 2 names: name, France\n" in capfd.readouterr().err


def test_cli_probe_resumes(
    copy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.probing import replies as replies_module

    asked = []
    real = replies_module.ask

    def counting(engine: Engine, prompts: Sequence[Asked]) -> list[Outcome]:
        if len(asked) == 1 and monkeypatch_state["fail"]:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return real(engine, prompts)

    monkeypatch_state = {"fail": False}
    monkeypatch.setattr(replies_module, "ask", counting)
    arguments = ["probe", str(copy), "--pack", "core", "--relation", "capital", "--limit", "40"]
    assert cli.run([*arguments, "--dry-run"]) == 0
    whole = len(asked)
    asked.clear()
    monkeypatch_state["fail"] = True
    assert cli.run(arguments) == 130
    assert len(asked) == 1
    monkeypatch_state["fail"] = False
    assert cli.run([*arguments, "--resume"]) == 0
    assert len(asked) == whole > 1
    # How the relation is asked is known now: no pilot tries again.
    asked.clear()
    assert cli.run([*arguments, "--dry-run"]) == 0
    assert 0 < len(asked) < whole
    capfd.readouterr()


def test_cli_errors_are_one_line(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world = write_vindex(tmp_path / "browse.vindex")
    for arguments, status in (
        (["probe", str(world)], 1),
        (["probe", str(base), "--pack", "nothing"], 1),
        (["probe", str(base), "--template", "{} is"], 2),
        (["probe", str(base), "--entities", str(tmp_path / "missing.csv"), "--relation", "capital"], 1),
        (["probe", str(base), "--header"], 2),
        (["probe", str(base), "--entities", "names.parquet", "--no-header"], 2),
    ):
        assert cli.run(arguments) == status
        assert capfd.readouterr().err.count("\n") == 1


def test_cli_lists_packs(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["packs", "--jsonl"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert rows[0]["pack"] == "core" and rows[0]["relations"] == 12


def test_a_larql_directory_cannot_grow(copy: Path) -> None:
    raw = json.loads((copy / "index.json").read_text())
    del raw[SECTION]
    raw["extract_level"] = "browse"
    (copy / "index.json").write_text(json.dumps(raw))
    with connect(copy) as s, pytest.raises(LarqlError, match="written by LARQL"):
        s.probe(["France"], WHERE)


def test_an_unknown_relation_is_asked_with_a_template_that_is_named(copy: Path) -> None:
    with connect(copy) as s:
        result = s.probe(["France", "Japan"], ["motto"])
        assert columns(s, "SELECT DISTINCT prompt FROM probes WHERE subject = 'Japan'") == [
            ("The motto of Japan is",)
        ]
        (told,) = [n for n in result.notices if "made up" in n]
        assert '"The motto of {} is" was made up' in told and '"{}\'s motto is"' in told
        # Known now: asked again as it was, also in a template of one's own.
        assert not [n for n in s.probe(["Italy"], ["motto"]).notices if "made up" in n]
        s.probe(["France"], {"byname": ["People call {}"]})
        s.probe(["Germany"], ["byname"])
        prompts = columns(s, "SELECT prompt FROM probes WHERE relation = 'byname' AND subject = 'Germany'")
        assert prompts == [("People call Germany",)]
        with pytest.raises(PackError, match=r"captial.*capital"):
            s.probe(["France"], ["captial"])
