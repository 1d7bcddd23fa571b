"""DESCRIBE of names that nothing is stored about: asked live, kept for the session, stored only where that is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from larql_duck.cli import app as cli
from larql_duck.commands.opening import attach, connect
from larql_duck.errors import LarqlError, LevelError, PackError, SemanticError
from larql_duck.extraction import extract
from larql_duck.session import Session
from tests.conftest import MadeOnce
from tests.probing.support import bigram_engine

NAME = "Zanzibar"


# What the model says behind the last word of a prompt, whatever stands before it.
SAYS = {" a": {" Paris": 0.6}, " of": {" France": 0.7}, " in": {" Rome": 0.5}, " is": {" Berlin": 0.4}}


@pytest.fixture(scope="module")
def base(made_once: MadeOnce) -> Path:
    """A vindex of a model that answers by the last word of the question alone."""

    def build(path: Path) -> None:
        model = path.with_suffix(".model")
        bigram_engine(model, SAYS)
        extract(model, path, level="all", in_basis="embedding", probe=False)

    return made_once("says.vindex", build)


@pytest.fixture(scope="module")
def asked(base: Path) -> Iterator[Session]:
    """A session that asked about a name, for reading only."""
    with connect(base) as session:
        session.lql(f'DESCRIBE "{NAME}"')
        yield session


@pytest.fixture
def fresh(base: Path) -> Iterator[Session]:
    with connect(base) as session:
        yield session


def live(session: Session, table: str = "facts") -> list[tuple[object, ...]]:
    return session.sql(
        f"SELECT subject, count(*) FROM {table} WHERE source = 'live' GROUP BY ALL ORDER BY ALL"
    ).rows()


def test_an_unknown_name_is_asked_and_stands_in_every_table(asked: Session) -> None:
    facts = asked.sql("FROM facts WHERE source = 'live'").arrow()
    assert set(facts["subject"].to_pylist()) == {NAME}
    assert facts["n_features"].to_pylist() == [0] * facts.num_rows
    best = set(asked.sql("SELECT relation, object FROM facts WHERE rank = 1").rows())
    graph = asked.sql(
        f"SELECT relationship, object FROM model_graph WHERE subject = '{NAME}' AND source = 'live'"
    ).rows()
    assert best <= set(graph) and len(graph) >= 1
    described = asked.sql(
        f"SELECT relation, target, source FROM describe_entity('{NAME}', p_rows := 50) WHERE direction = 'out'"
    )
    assert {(r, t, "live") for r, t in graph} == set(described.rows())
    # Backwards too, and by any case.
    relation, value = graph[0]
    assert (NAME, relation) in asked.sql("SELECT subject, relation FROM who(NULL, $1)", [value]).rows()
    assert len(asked.lql(f'DESCRIBE "{NAME.upper()}" STORED')) == len(asked.lql(f'DESCRIBE "{NAME}"'))
    assert asked.sql("SELECT as_subject FROM entities WHERE entity = $1", [NAME]).rows() == [(len(graph),)]


def test_it_is_asked_once_and_in_its_own_types_questions(
    fresh: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fresh.lql(f'DESCRIBE "{NAME}"').rows()
    world = fresh.workspace.live.world
    monkeypatch.setattr(type(world), "about", lambda *a, **k: pytest.fail("asked again"))
    assert fresh.lql(f'DESCRIBE "{NAME}"').rows() == first
    assert fresh.describe([NAME])


def test_a_near_spelling_is_named_and_the_name_is_asked_as_it_stands(fresh: Session) -> None:
    fresh.probe(["Wakanda"], ["continent", "capital"], save=False)
    result = fresh.lql('DESCRIBE "Wakandda"')
    assert any('did you mean "Wakanda"?' in notice for notice in result.notices) and live(fresh)
    assert not any("did you mean" in notice for notice in fresh.lql(f'DESCRIBE "{NAME}"').notices)


def test_stored_asks_nothing(fresh: Session) -> None:
    result = fresh.lql(f'DESCRIBE "{NAME}" STORED')
    assert len(result) == 0 and live(fresh) == []
    assert result.notices == [f'nothing is known about "{NAME}"; ask the model: PROBE ENTITIES "{NAME}"']
    with pytest.raises(SemanticError, match="STORED asks it nothing"):
        fresh.lql(f'DESCRIBE "{NAME}" STORED SAVE')


def test_names_with_facts_are_asked_only_where_live_is_said(base: Path) -> None:
    subject = "Wakanda"
    with connect(base) as session:
        session.probe([subject], ["continent", "capital"], save=False)
        before = session.sql("SELECT relation FROM facts WHERE subject = $1", [subject]).rows()
        session.lql("DESCRIBE $name", {"name": subject.upper()})
        assert live(session) == []
        session.lql("DESCRIBE $name LIVE", {"name": subject})
        ((name, n),) = live(session)
        assert name == subject and n > 0
        # Of one relation there is one best answer, whoever gave it.
        twice = session.sql(
            "SELECT relation FROM facts WHERE rank = 1 AND subject = $1 GROUP BY relation HAVING count(*) > 1",
            [subject],
        )
        assert len(twice) == 0 and before
        session.lql("DESCRIBE $name LIVE", {"name": subject})
        assert live(session) == [(name, n)]


def test_an_edit_drops_live_answers_and_a_rollback_too(fresh: Session) -> None:
    fresh.lql(f'DESCRIBE "{NAME}"')
    assert live(fresh)
    fresh.lql("DELETE FROM EDGES WHERE layer = 0 AND feature = 3")
    assert live(fresh) == []
    # The edited model is asked then.
    fresh.lql(f'DESCRIBE "{NAME}"')
    assert [name for name, _ in live(fresh)] == [NAME]
    fresh.lql("ROLLBACK PATCH")
    assert live(fresh) == []


def test_what_an_edit_states_is_a_fact(tiny_vindex) -> None:
    with connect(tiny_vindex("llama")) as session:
        session.lql(
            'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Poseidon") MODE KNN'
        )
        session.lql('DESCRIBE "Atlantis"')
        assert live(session) == []


def test_probing_beside_live_answers_keeps_both(fresh: Session) -> None:
    fresh.lql(f'DESCRIBE "{NAME}"')
    before = live(fresh)
    fresh.probe(["France"], {"situated in": "{} lies in"}, save=False)
    assert live(fresh) == before and live(fresh, "triples")
    names = fresh.sql(
        "SELECT entity, count(*) FROM lq.entity_names GROUP BY entity HAVING count(*) > 1"
    ).rows()
    ids = fresh.sql("SELECT entity_id FROM lq.entity_names GROUP BY entity_id HAVING count(*) > 1").rows()
    assert names == [] and ids == []
    assert fresh.sql("SELECT count(*) FROM facts WHERE subject = 'France' AND source = 'probe'").rows() != [
        (0,)
    ]


def test_nothing_is_stored_without_save(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "m.vindex")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with connect(path) as session:
        session.lql(f'DESCRIBE "{NAME}"')
        session.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "compiled.vindex"}"')
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    with connect(tmp_path / "compiled.vindex") as session:
        assert session.sql("SELECT count(*) FROM facts WHERE subject = $1", [NAME]).rows() == [(0,)]


def test_save_stores_them_as_probe_does(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "m.vindex")
    with connect(path) as session:
        session.lql(f'DESCRIBE "{NAME}"')
        result = session.lql(f'DESCRIBE "{NAME}" SAVE')
        assert any("saved in" in notice for notice in result.notices)
        assert live(session) == [] and len(result)
        said = session.sql(
            "SELECT relation, object FROM facts WHERE subject = $1 ORDER BY ALL", [NAME]
        ).rows()
    with duckdb.connect(str(path / "model.duckdb"), read_only=True) as con:
        stored = con.execute(
            "SELECT relation, object FROM facts WHERE subject = $1 AND source = 'probe' ORDER BY ALL", [NAME]
        ).fetchall()
    assert stored == said and stored


def test_effects_are_measured_where_asked_for(tiny_vindex: Callable[[str], Path]) -> None:
    # The features of `base` do nothing.
    with connect(tiny_vindex("llama")) as session:
        session.lql(f'DESCRIBE "{NAME}" LIVE')
        assert live(session) and live(session, "edges") == []
        result = session.lql(f'DESCRIBE "{NAME}" WITH EFFECTS').arrow()
        assert max(result["n_features"].to_pylist()) > 0
        assert len(session.sql("FROM explain_fact($1, NULL)", [NAME]))
        # Asked anew, not beside the earlier answers.
        twice = session.sql(
            "SELECT 1 FROM facts WHERE rank = 1 GROUP BY subject, relation HAVING count(*) > 1"
        )
        assert len(twice) == 0


def test_a_browse_vindex_says_what_live_answers_need(tiny_model, tmp_path: Path) -> None:
    extract(tiny_model("llama"), tmp_path / "b.vindex", level="browse", in_basis="embedding", probe=False)
    with connect(tmp_path / "b.vindex") as session:
        result = session.lql(f'DESCRIBE "{NAME}"')
        assert len(result) == 0
        assert len([n for n in result.notices if "live answers need the model's weights" in n]) == 1
        with pytest.raises(LevelError):
            session.lql(f'DESCRIBE "{NAME}" LIVE')
        assert len(session.describe([NAME])) == 0


def test_describe_of_many_names_in_order_and_of_missing_ones(fresh: Session) -> None:
    frame = pd.DataFrame({"name": [NAME, None, "Atlantis", NAME, "  "]})
    rows = fresh.describe(frame).arrow()
    assert list(dict.fromkeys(rows["subject"].to_pylist())) == [NAME, "Atlantis"]
    assert set(rows["source"].to_pylist()) == {"live"}
    assert rows.column_names == ["subject", "relation", "object", "p", "confidence", "source"]


def test_lq_describe_is_a_table_function(fresh: Session) -> None:
    rows = fresh.sql("SELECT subject, relation, object FROM lq_describe($1)", [NAME]).rows()
    assert rows and {row[0] for row in rows} == {NAME}
    # The answers stand in the tables from the next statement on, and are the same.
    assert set(rows) == set(
        fresh.sql("SELECT subject, relation, object FROM triples WHERE source = 'live'").rows()
    )
    joined = fresh.sql(
        "SELECT n.name, count(d.relation) FROM (VALUES ('Zanzibar'), ('Atlantis'), (NULL)) AS n(name)"
        " LEFT JOIN LATERAL (FROM lq_describe(n.name)) AS d ON true GROUP BY ALL ORDER BY ALL"
    ).rows()
    assert [name for name, n in joined if n] == ["Atlantis", NAME] and (None, 0) in joined


def test_what_is_a_name_is_stored_and_the_rest_is_asked(fresh: Session) -> None:
    fresh.probe([NAME], ["is a"], save=False)
    first = fresh.sql("SELECT relation, object, source FROM lq_describe($1)", [NAME]).rows()
    assert len({relation for relation, *_ in first}) > 1
    # The same once the tables show them, and from Python.
    assert fresh.sql("SELECT relation, object, source FROM lq_describe($1)", [NAME]).rows() == first
    assert [tuple(r)[1:3] + tuple(r)[5:] for r in fresh.describe(NAME).rows()] == first


def test_what_has_no_effect_beside_names_is_refused(fresh: Session, tmp_path: Path) -> None:
    for given in ({"entities": ["x"]}, {"limit": 1}, {"save": False}, {"specific": True}, {"pack": "core"}):
        with pytest.raises(SemanticError, match="vocabulary alone"):
            fresh.probe(names=1, **given)
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises(SemanticError, match="a number of names, from 1"):
            fresh.probe(names=wrong)
    assert cli.run(["probe", str(fresh.vindex.path), "--names", "1", "--ablation", "mean"]) == 2
    with pytest.raises(LarqlError, match="leave out --no-probe or --names"):
        extract(tmp_path, tmp_path / "x.vindex", names=3, probe=False)


def test_entities_that_can_be_read_once_are_read_once(fresh: Session) -> None:
    reader = pa.table({"name": [NAME]}).to_reader()
    assert NAME in {row[0] for row in fresh.probe(reader, save=False).rows()}


def test_in_a_connection_of_ones_own(base: Path) -> None:
    with duckdb.connect() as con:
        session = attach(con, base, schema="m")
        session.describe([NAME])
        assert con.execute("SELECT count(*) FROM m.facts WHERE source = 'live'").fetchone() != (0,)
        session.close()
        assert con.execute("SELECT count(*) FROM duckdb_views() WHERE NOT internal").fetchone() == (0,)


@pytest.mark.parametrize(
    "name",
    [
        'O"Neill',
        "two\nlines",
        "{} in {{}}",
        "'; DROP TABLE facts; --",
        "東京",
        "القاهرة",
        "x" * 300,
        "İstanbul",
    ],
)
def test_names_are_data(fresh: Session, name: str) -> None:
    fresh.lql("DESCRIBE $name", {"name": name})
    assert {row[0] for row in live(fresh)} <= {name}


def test_a_name_that_is_too_long_is_told(fresh: Session) -> None:
    result = fresh.lql("DESCRIBE $name", {"name": "word " * 5000})
    assert any("was not asked about" in n for n in result.notices) and live(fresh) == []


def test_live_rows_are_gone_with_the_next_vindex(fresh: Session, tiny_vindex) -> None:
    fresh.lql(f'DESCRIBE "{NAME}"')
    fresh.lql(f'USE "{tiny_vindex("gpt2")}"')
    assert live(fresh) == []


def test_names_of_the_vocabulary_are_asked_on_and_on(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "m.vindex")
    asked = "SELECT DISTINCT subject FROM probes ORDER BY ALL"
    with connect(path) as session:
        first = session.probe(names=2)
        assert any("2 names were asked about" in notice for notice in first.notices)
        names = session.sql(asked).rows()
        assert len(names) == 2 and set(
            session.sql("SELECT DISTINCT subject FROM entity_types").rows()
        ) <= set(names)
    # The command goes on where that stopped.
    assert cli.run(["probe", str(path), "--names", "3"]) == 0
    with connect(path) as session:
        assert len(session.sql(asked).rows()) == 5 and set(names) < set(session.sql(asked).rows())
        session.lql("DELETE FROM EDGES WHERE layer = 0 AND feature = 3")
        with pytest.raises(PackError, match="COMPILE CURRENT"):
            session.probe(names=1)
    assert cli.run(["probe", str(path), "--names", "3", "--limit", "2"]) == 2


@pytest.mark.slow
def test_types_are_learnt_by_command_and_shown(
    tiny_vindex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(tiny_vindex("llama"), tmp_path / "m.vindex")
    assert cli.run(["types", str(path), "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("type,") and {line.split(",")[0] for line in lines[1:]} >= {
        "person",
        "city",
        "unknown",
    }
    with connect(path) as session:
        assert session.sql("SELECT count(*) FROM type_probe").rows()[0][0] == len(lines) - 1
        session.lql(f'DESCRIBE "{NAME}" LIVE')
        ((total,),) = session.sql("SELECT sum(p) FROM entity_types WHERE subject = $1", [NAME]).rows()
        assert 0.2 < total <= 1.0001


def test_an_extraction_asks_about_names_where_it_is_told_to(tiny_model, tmp_path: Path) -> None:
    options = {"in_basis": "embedding", "layers": (0, 0), "pack": str(tmp_path / "own.yaml")}
    (tmp_path / "own.yaml").write_text(
        "pack: own\nrelations:\n  - {relation: seat, description: d, templates: ['{} is'], entities: [Paris]}\n"
    )
    path = extract(tiny_model("llama"), tmp_path / "m.vindex", **options)
    assert pq.read_table(path / "tables" / "type_probe.parquet").num_rows == 0
    with pytest.raises(LarqlError, match="names is -1"):
        extract(tiny_model("llama"), tmp_path / "n.vindex", names=-1, **options)
