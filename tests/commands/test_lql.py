"""Statements end to end over the synthetic world: columns, clauses, notices, errors, pipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck.commands.opening import connect
from larql_duck.errors import (
    LarqlError,
    LevelError,
    LqlSyntaxError,
    NotSupportedError,
    QueryError,
    SemanticError,
    VindexError,
)
from larql_duck.lowering import PLANNERS
from larql_duck.lql.table import STATEMENTS
from larql_duck.session import Session
from tests.world import NASTY

DESCRIBE = [
    "band",
    "relation",
    "target",
    "direction",
    "confidence",
    "p",
    "score",
    "layer",
    "layers",
    "n_features",
    "also",
    "source",
]
WALK = [
    "layer", "feature", "gate", "activation", "z", "relation", "activates_on", "top_token", "down_tokens", "basis", "mode", "token",
    "band",
]  # fmt: skip
NEIGHBORS = ["hop", "subject", "relation", "object", "confidence"]


def rows(session: Session, text: str, **parameters: object) -> list[tuple[object, ...]]:
    return session.lql(text, parameters).rows()


def test_options_stand_in_the_signatures(world: Path) -> None:
    import inspect

    for method in (Session.configure, Session.trace):
        kinds = {p.kind for p in inspect.signature(method).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
    with connect(world) as session:
        seen: list[str] = []
        session.configure(tracer=seen.append, threads=2)
        session.configure(compute_dtype="bf16", texts="Some text.")
        session.sql("SELECT 1")
        assert seen == ["SELECT 1"] and session.workspace.texts == "Some text."
        settings = session.options.settings
        assert (settings.threads, settings.compute_dtype, settings.device) == (2, "bf16", "cpu")
        session.configure(tracer=None, threads=None)
        session.sql("SELECT 2")
        assert len(seen) == 1 and session.options.settings.threads is None


def test_the_sentence_in_double_quotes(s: Session) -> None:
    result = s.lql('SELECT relationship, object FROM model_graph WHERE subject = "France";')
    assert result.columns == ["relationship", "object"]
    assert ("capital", "Paris") in result.rows()


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ('DESCRIBE "France"', DESCRIBE),
        ('DESCRIBE "France" RAW', DESCRIBE),
        ('WALK "France"', WALK),
        ('WALK "France" COMPARE TOP 2', WALK),
        ('WALK "the France" TOP 2', WALK),
        ('WALK "France" BASIS EMBEDDING', WALK),
        ('EXPLAIN WALK "France"', WALK),
        ('EXPLAIN WALK "France" BASIS EMBEDDING VERBOSE', WALK),
        ('NEIGHBORS OF "France"', NEIGHBORS),
        ('PATHS FROM "France" TO "Germany"', ["path", "length", "confidence"]),
        ("SHOW LAYERS", ["layer", "band", "n_features", "with_tokens", "labelled", "top_token"]),
        ("SHOW FEATURES 3", ["layer", "feature", "activates_on", "sign", "top_token", "score", "down_tokens", "relation", "relation_source", "example"]),
        ("SHOW ENTITIES", ["entity", "n_facts", "as_subject", "as_object", "relations", "layers"]),
        ("SHOW MODELS", ["model", "path", "bytes", "layers", "features", "level", "dtype", "status"]),
        ("STATS", ["section", "name", "value", "number"]),
        (
            "SHOW RELATIONS",
            ["relation", "token", "source", "n_features", "n_facts", "score", "layers", "examples", "description"],
        ),
        ("SELECT * FROM EDGES", ["entity", "relation", "target", "layer", "feature", "score", "effect", "confidence", "source", "stale"]),
        (
            'SELECT * FROM EDGES NEAREST TO "France" AT LAYER 5 LIMIT 1',
            ["entity", "relation", "target", "layer", "feature", "score", "effect", "confidence", "source", "stale", "distance", "basis"],
        ),
        ('EXPLAIN SQL DESCRIBE "x"', ["sql"]),
    ],
)  # fmt: skip
def test_columns(s: Session, text: str, columns: list[str]) -> None:
    assert s.lql(text).columns == columns


# -- DESCRIBE -------------------------------------------------------------------------------------------------


def test_describe_modes(s: Session) -> None:
    # Two facts point to it.
    assert len(rows(s, 'DESCRIBE "Paris"')) == len(rows(s, 'DESCRIBE "Paris" BRIEF')) == 12
    assert len(rows(s, 'DESCRIBE "Paris" VERBOSE')) == 22
    raw = s.lql('DESCRIBE "Paris" RAW')
    assert len(raw) == 22 and {r["relation"] for r in raw.dicts()} == {None}


def test_describe_bands_and_layers(s: Session) -> None:
    def weights(clauses: str) -> list[object]:
        return [
            r["target"] for r in s.lql(f'DESCRIBE "France" {clauses}').dicts() if r["source"] == "weights"
        ]

    assert weights("") == ["Macron", "Paris"] == weights("KNOWLEDGE")
    assert weights("ALL LAYERS") == ["French", "Macron", "Paris", "wine"]
    assert weights("SYNTAX") == ["French"] == weights("AT LAYER 2")
    assert weights("OUTPUT") == ["wine"]
    assert {r["source"] for r in s.lql('DESCRIBE "France" ALL LAYERS RELATIONS ONLY').dicts()} == {"probe"}


def test_an_unknown_entity_gives_no_rows_and_a_notice_to_type(s: Session) -> None:
    result = s.lql('DESCRIBE "Ada Lovelace" STORED')
    assert result.rows() == []
    assert result.notices == [
        'nothing is known about "Ada Lovelace"; ask the model: PROBE ENTITIES "Ada Lovelace"'
    ]
    (notice,) = s.lql('DESCRIBE "wine" STORED').notices
    assert 'DESCRIBE "wine" ALL LAYERS' in notice
    # Followed, it is not given again.
    (notice,) = s.lql('DESCRIBE "wine" ALL LAYERS STORED').notices
    assert 'PROBE ENTITIES "wine"' in notice and "DESCRIBE" not in notice
    (notice,) = s.lql('DESCRIBE "wine" ALL LAYERS RELATIONS ONLY STORED').notices
    assert 'DESCRIBE "wine" ALL LAYERS' in notice
    assert s.lql('DESCRIBE "France"').notices == []
    # Without STORED the model would be asked, whose weights this vindex lacks.
    needs, known = s.lql('DESCRIBE "Ada Lovelace"').notices
    assert "--level inference" in needs and known == 'nothing is known about "Ada Lovelace"'


# -- WALK -----------------------------------------------------------------------------------------------------


def test_walk_takes_the_index_for_a_token_and_vectors_for_the_rest(s: Session) -> None:
    assert {r["basis"] for r in s.lql('WALK "France"').dicts()} == {"index"}
    assert len(s.lql('WALK "France" TOP 4')) == 4
    prompt = s.lql('WALK "the France" TOP 4')
    assert {r["basis"] for r in prompt.dicts()} == {"embedding"} and len(prompt) == 40
    assert "no weights are stored" in prompt.notices[0]
    missing = s.lql('WALK "the France" BASIS INDEX TOP 1')
    assert {r["basis"] for r in missing.dicts()} == {
        "embedding"
    } and "BASIS EMBEDDING was used" in missing.notices[0]
    assert s.lql('WALK "the France" BASIS EMBEDDING').notices == []


def test_walk_embedding_is_the_last_tokens_row_against_all_gates(s: Session) -> None:
    import numpy as np

    from tests.world import embeddings, gates, tokens

    token_id = next(t[0] for t in tokens() if t[1] == " France")
    values = gates() @ embeddings()[token_id]
    found = s.lql('WALK "the France" BASIS EMBEDDING TOP 3 LAYERS 2,7-8').dicts()
    assert [r["layer"] for r in found] == [2] * 3 + [7] * 3 + [8] * 3
    for layer in (2, 7, 8):
        best = np.argsort(-abs(values[layer]), kind="stable")[:3]
        assert [r["feature"] for r in found if r["layer"] == layer] == list(best)
        np.testing.assert_allclose(
            [r["gate"] for r in found if r["layer"] == layer], values[layer][best], rtol=1e-5
        )
    signed = s.lql('WALK "the France" BASIS EMBEDDING TOP 3 LAYERS 2 MODE PURE').dicts()
    assert [r["feature"] for r in signed] == list(np.argsort(-values[2], kind="stable")[:3])
    # The features' statistics were measured in the context basis.
    assert {r["z"] for r in found} == {None}


def test_explain_walk_shows_token_and_band_and_filters(s: Session) -> None:
    found = s.lql('EXPLAIN WALK "the France" KNOWLEDGE').dicts()
    assert {r["token"] for r in found} == {" France"} and {r["band"] for r in found} == {"knowledge"}
    assert [r["layer"] for r in found] == [layer for layer in range(4, 8) for _ in range(5)]
    verbose = s.lql('EXPLAIN WALK "the France" VERBOSE LAYERS 5').dicts()
    assert len(verbose) == 10 and {len(r["down_tokens"]) for r in verbose} == {5}
    labelled = s.lql('EXPLAIN WALK "the France" RELATIONS ONLY BASIS EMBEDDING').dicts()
    assert [(r["layer"], r["feature"]) for r in labelled] == [(4, 2), (5, 9)]
    assert {r["token"] for r in s.lql('WALK "France"').dicts()} == {None}


# -- SELECT ---------------------------------------------------------------------------------------------------


def test_names_and_aliases(s: Session) -> None:
    assert rows(s, 'SELECT target FROM EDGES WHERE entity = "Japan" AND relation = "capital" LIMIT 1') == [
        ("Tokyo",)
    ]
    result = s.lql(
        'SELECT subject, object AS o FROM edges WHERE subject = "Japan" AND object = "Tokyo" LIMIT 1'
    )
    assert (result.columns, result.rows()) == (["subject", "o"], [("Japan", "Tokyo")])
    assert rows(
        s, 'SELECT entity, target FROM model_graph WHERE relation = "capital" AND entity = "Japan"'
    ) == [("Japan", "Tokyo")]
    assert rows(s, 'SELECT entity FROM FACTS WHERE target = "Tokyo"') == [("Japan",)]
    assert rows(s, "SELECT count(*) FROM FEATURES WHERE token = top_token AND score = c_score") == [(400,)]


def test_layers_of_entities_are_membership(s: Session) -> None:
    def names(where: str) -> set[object]:
        return {r[0] for r in rows(s, f"SELECT entity FROM ENTITIES WHERE {where}")}

    assert names("layer = 9") == {"France"}
    assert (
        names("layer IN (9, 99)")
        == names("ENTITIES.layer >= 9")
        == names("layer BETWEEN 9 AND 12")
        == {"France"}
    )
    assert names("layer <> 9") == names("NOT list_contains(layers, 9)") == names("true") - {"France"}
    assert names("layer NOT IN (5, 8)") == {
        r[0] for r in rows(s, "SELECT entity FROM ENTITIES WHERE NOT list_has_any(layers, [5, 8])")
    }


def test_no_rows_for_a_misspelt_relation_is_remarked(s: Session) -> None:
    assert s.lql('SELECT * FROM EDGES WHERE relation = "capitol"').notices == [
        'no relation "capitol"; did you mean capital?'
    ]
    assert (
        s.lql('SELECT * FROM EDGES WHERE relation = "capital" AND entity = "France" AND layer = 0').notices
        == []
    )


def test_queries_that_sqlglot_cannot_take_apart_find_their_tables(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.lql.literals import Sql

    def unreadable(part: Sql) -> object:
        raise LqlSyntaxError("no", line=1, column=1, text=part.lql)

    monkeypatch.setattr(Sql, "tree", property(unreadable))
    assert rows(
        s,
        'SELECT e.target FROM EDGES AS e JOIN model_graph AS g ON g.subject = e.entity WHERE e.entity = "Japan" LIMIT 1',
    )
    assert rows(s, "SELECT count(*) FROM FEATURES") == [(400,)]
    assert rows(s, 'DESCRIBE "Japan" |> SELECT count(*) FROM _') == [(2,)]


def test_joins_windows_ctes_and_user_tables(fresh: Session) -> None:
    fresh.con.execute("CREATE TABLE mine AS SELECT 'Japan' AS name, 1 AS n")
    query = (
        "WITH best AS (SELECT *, row_number() OVER (PARTITION BY entity ORDER BY score DESC) AS place FROM EDGES) "
        "SELECT m.n, b.target FROM mine AS m JOIN best AS b ON b.entity = m.name WHERE place = 1"
    )
    assert rows(fresh, query) == [(1, "Asia")]
    # A CTE may be named like a table, and reads the table inside itself.
    assert rows(fresh, "WITH edges AS (SELECT count(*) AS n FROM EDGES) SELECT n > 60 FROM edges") == [
        (True,)
    ]


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (
            lambda s: s.lql("STATS", params={}),
            TypeError,
            r"lql\(\) has no argument params; did you mean parameters\?",
        ),
        (lambda s: s.insert([], relatoin="x"), TypeError, "has no argument relatoin; did you mean relation"),
        (lambda s: s.configure(devise="cpu"), TypeError, "has no argument devise; did you mean device"),
        (
            lambda s: s.trace("x", decompos=True),
            TypeError,
            "has no argument decompos; did you mean decompose",
        ),
        (lambda s: s.quary, AttributeError, "no attribute 'quary'; there are catalog, close"),
        (lambda s: s.scirpt, AttributeError, "no attribute 'scirpt'; did you mean script"),
        (lambda s: lq.conect, AttributeError, "no attribute 'conect'; did you mean connect"),
        (lambda s: connect(5), SemanticError, "a vindex is named by its path, not by 5"),
        (lambda s: connect(device="gpu"), LarqlError, "device 'gpu' is not known; use cpu"),
        (
            lambda s: s.sql("SELECT entity FROM facts"),
            QueryError,
            "^no column entity here: plain SQL calls it subject",
        ),
        (
            lambda s: s.sql('DESCRIBE "France"'),
            QueryError,
            "; DESCRIBE as LQL has it is run by lql: larql-duck lql",
        ),
        (lambda s: s.lql('FROM FEATURES\n WHERE layer = "abc"'), SemanticError, "line 2, column 16: .*'abc'"),
        (
            lambda s: s.lql('WALK "x" TOP $k', {"k": "abc"}),
            LqlSyntaxError,
            r"found \$k, which is 'abc'",
        ),
        (lambda s: s.lql('WALK "x" TOP 0'), SemanticError, "TOP 0 is out of range"),
    ],
)
def test_small_slips_are_told(s: Session, ask, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ask(s)


def test_a_dataframe_that_a_table_hides_is_told(s: Session) -> None:
    import pandas as pd

    facts, other = pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]})
    assert len(facts) == len(other)
    hidden = [
        "facts is the vindex's table, and your DataFrame of that name was not read: give it another name"
    ]
    for ask in (s.lql, s.sql):
        assert ask("SELECT count(*) FROM facts").notices == hidden
        assert ask("SELECT count(*) FROM other JOIN lq.facts ON true").notices == []
    assert s.lql('DESCRIBE "France" |> FROM _').notices == []


def test_dataframes_in_scope(s: Session) -> None:
    import pandas as pd

    countries = pd.DataFrame({"name": ["France", "Japan"]})
    # Names that our own code uses as well.
    sql = text = con = countries
    assert len(sql) + len(text) + len(con) == 6
    expected = {("France", "Paris"), ("Japan", "Tokyo")}
    found = s.sql(
        "SELECT c.name, g.object FROM countries AS c JOIN model_graph AS g ON g.subject = c.name"
        " WHERE g.relationship = 'capital'"
    )
    assert set(found.rows()) == expected
    assert set(rows_here(s, countries)) == expected
    assert s.sql("SELECT count(*) FROM sql, text, con").one() == 8


def rows_here(s: Session, frame: object) -> list[tuple[object, ...]]:
    assert frame is not None
    return s.lql(
        'SELECT name, target FROM frame JOIN EDGES ON entity = name WHERE relation = "capital"'
    ).rows()


def test_nearest_orders_by_distance_and_joins(s: Session) -> None:
    nearest = s.lql('SELECT feature, distance FROM FEATURES NEAREST TO "France" AT LAYER 5').dicts()
    assert len(nearest) == 20
    assert [r["distance"] for r in nearest] == sorted(r["distance"] for r in nearest)
    joined = s.lql(
        'SELECT n.feature, e.target FROM FEATURES AS n NEAREST TO "France" AT LAYER 5 BASIS EMBEDDING '
        'JOIN EDGES AS e USING (layer, feature) WHERE e.entity = "France" AND n.distance < 2 ORDER BY ALL'
    )
    assert joined.rows() == [(9, "Europe"), (9, "French"), (9, "Paris"), (9, "Paris")]
    assert rows(s, 'SELECT count(*) FROM FEATURES NEAREST TO "France" AT LAYER 5') == [(40,)]
    assert s.lql('SELECT * FROM EDGES NEAREST TO "France" AT LAYER 5').notices != []


# -- pipes ----------------------------------------------------------------------------------------------------


def test_pipes_carry_rows(s: Session) -> None:
    piped = 'DESCRIBE "France" |> SELECT target, confidence FROM _ WHERE confidence > 0.7 |> SELECT count(*) AS n FROM _'
    assert rows(s, piped) == [(2,)]
    assert len(s.script(piped)) == 1
    assert rows(s, "SHOW MODELS |> SELECT count(*) >= 0 FROM _ |> SELECT * FROM _") == [(True,)]
    assert rows(s, 'WALK "the France" TOP 2 |> SELECT max(layer) FROM _') == [(9,)]
    assert rows(s, 'STATS |> WITH a AS (SELECT value FROM _ WHERE name = "layers") SELECT * FROM a') == [
        ("10",)
    ]


def test_a_stage_that_reads_nothing_runs_on_its_own(s: Session) -> None:
    both = s.script('DESCRIBE "France" |> SHOW LAYERS 3')
    assert [r.columns[0] for r in both] == ["band", "layer"]
    assert s.lql('DESCRIBE "France" |> SHOW LAYERS 3').columns[0] == "layer"


def test_explain_sql_runs_as_printed(s: Session) -> None:
    for text in (
        'DESCRIBE "France" ALL LAYERS',
        'WALK "France" TOP 3',
        'DESCRIBE "France" |> SELECT target FROM _ |> SELECT count(*) FROM _',
        "SELECT entity FROM ENTITIES WHERE layer = 9 ORDER BY 1",
        'WALK "the France" TOP 1 LAYERS 3',
    ):
        sql = s.lql(f"EXPLAIN SQL {text}").one()
        assert s.sql(sql).rows() == s.lql(text).rows()
    assert "lq_udf_topk" in s.lql('EXPLAIN SQL WALK "the France"').one().splitlines()[0]
    with pytest.raises(SemanticError, match="SHOW MODELS is carried out by Python"):
        s.lql("EXPLAIN SQL SHOW MODELS")


# -- introspection --------------------------------------------------------------------------------------------


def test_show_clauses_count(s: Session) -> None:
    assert [r[0] for r in rows(s, "SHOW LAYERS 3, 5, 8-9")] == [3, 5, 8, 9]
    assert len(rows(s, "SHOW FEATURES 3")) == 10
    assert [
        r[1] for r in rows(s, 'SHOW FEATURES 5 WHERE relation = "capital" OR feature IN (1, 2) LIMIT 2')
    ] == [1, 2]
    assert [r[0] for r in rows(s, "SHOW ENTITIES AT LAYER 9")] == ["France"]
    assert len(rows(s, "SHOW ENTITIES LIMIT 4")) == 4
    assert rows(s, "SHOW RELATIONS AT LAYER 0") == []
    assert s.lql("SHOW RELATIONS WITH EXAMPLES").dicts()[0]["examples"]
    assert {r["relation"] for r in s.lql("SHOW RELATIONS RAW").dicts()} == {None}


def test_stats_say_where(s: Session, world: Path) -> None:
    figures = {(r["section"], r["name"]): r for r in s.lql("STATS").dicts()}
    assert figures["index", "path"]["value"] == str(world)
    assert figures["index", "bytes"]["number"] > 10_000
    assert figures["knowledge", "facts"]["number"] == 21
    assert figures["bands", "knowledge"]["value"] == "4-7"
    with connect() as other:
        assert other.lql(f'STATS "{world}"').dicts() == s.lql("STATS").dicts()


def test_show_models_looks_around(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LARQL_DUCK_PATH", str(world.parent))
    (tmp_path / "broken.vindex").mkdir()
    (tmp_path / "broken.vindex" / "index.json").write_text("{}")
    with connect() as session:
        found = {r["model"]: r for r in session.lql("SHOW MODELS").dicts()}
    assert found["world.vindex"]["status"] == "ready" and found["world.vindex"]["layers"] == 10
    assert "version" in found["broken.vindex"]["status"] and found["broken.vindex"]["layers"] is None


def test_neighbors_and_paths(s: Session) -> None:
    assert rows(s, 'NEIGHBORS OF "Japan"') == [
        (1, "Japan", "continent", "Asia", 0.91),
        (1, "Japan", "capital", "Tokyo", 0.7),
    ]
    assert [r[0] for r in rows(s, 'NEIGHBORS OF "Japan" HOPS 2 RELATIONS "capital" LIMIT 1')] == [1]
    ((path, length, confidence),) = rows(s, 'PATHS FROM "France" TO "Germany"')
    assert (length, confidence) == (2, pytest.approx(0.9 * 0.88))
    assert [t["object"] for t in path] == ["Europe", "Europe"]
    assert 'PROBE ENTITIES "x", "y"' in s.lql('PATHS FROM "x" TO "y"').notices[0]
    assert "no path" in s.lql('PATHS FROM "France" TO "Japan" MAX 1').notices[0]
    # Which of the two is missing.
    for asked, missing in (("Utopia", "Europe"), ("Europe", "Utopia")):
        assert s.lql(f'PATHS FROM "{asked}" TO "{missing}"').notices == [
            'nothing is known about "Utopia"; ask the model: PROBE ENTITIES "Utopia"'
        ]


def test_a_subject_in_another_case_or_without_facts_is_told(s: Session) -> None:
    for text in (
        "FROM EDGES WHERE entity = 'japan'",
        "FROM model_graph WHERE subject = 'JAPAN' AND relationship = 'capital'",
    ):
        [said] = s.lql(f"SELECT * {text}").notices
        assert said == 'names are compared letter by letter here; did you mean "Japan"?'
    assert s.lql('SELECT * FROM EDGES WHERE entity = "Tokyo"').notices == [
        'nothing is stored with "Tokyo" as its subject; ask the model: DESCRIBE "Tokyo"'
    ]
    # As an object it is known.
    assert (
        s.lql('SELECT * FROM EDGES WHERE target = "Tokyo" AND entity = "Japan" AND layer = 77').notices == []
    )


def test_a_misspelt_name_is_guessed(s: Session) -> None:
    assert s.lql('DESCRIBE "Frnace" STORED').notices == [
        'nothing is known about "Frnace"; did you mean "France"? Else ask the model: PROBE ENTITIES "Frnace"'
    ]
    assert 'did you mean "Japan"?' in s.lql('NEIGHBORS OF "japann"').notices[0]
    [said] = s.lql('PATHS FROM "Frnace" TO "Jpan"').notices
    assert said.startswith(
        'nothing is known about "Frnace" and "Jpan"; did you mean "France" and "Japan"? Else'
    )
    assert "did you mean" not in s.lql('DESCRIBE "Xyzzy" STORED').notices[0]
    france = (
        'nothing is known about "Frnace"; did you mean "France"? Else ask the model: PROBE ENTITIES "Frnace"'
    )
    for text in (
        'EDGES WHERE entity = "Frnace"',
        "ENTITIES WHERE 'a' < 'b' AND entity = 'Frnace'",
        'EDGES WHERE target = "Frnace"',
    ):
        assert s.lql(f"SELECT * FROM {text}").notices == [france], text
    for text in (
        "explain_fact('Frnace', 'capital')", "describe_entity( 'Frnace' )", "who('capital', 'Frnace')", "who(NULL, 'Frnace')",
        "neighbors('Frnace')", "paths('Frnace', 'Japan')", "paths('Japan', 'Frnace')",
        "model_graph WHERE subject = 'Frnace' AND relationship = 'capital'",
    ):  # fmt: skip
        assert s.sql(f"FROM {text}").notices == [france], text
    assert "Côte d'Ivoir" in s.sql("FROM explain_fact('Côte d''Ivoir', NULL)").notices[0]
    # Of a name that is known nothing is said, and nothing where rows come back.
    for text in (
        "explain_fact('France', 'currency')",
        "facts WHERE subject = 'France' OR subject = 'Frnace'",
    ):
        assert s.sql(f"FROM {text}").notices == [], text
    assert s.sql("SELECT entity, distance FROM entities_near('GERMANI')").rows() == [
        ("Germany", 1),
        ("German", 1),
    ]
    assert not len(s.sql("FROM entities_near('F')")) and not len(s.sql("FROM entities_near(NULL)"))


def test_a_name_is_found_in_any_case_and_with_or_without_the(s: Session) -> None:
    expected = rows(s, 'DESCRIBE "France"')
    for name in ("france", "The France", "the france", " THE FRANCE "):
        assert rows(s, f'DESCRIBE "{name}"') == expected and expected
    assert rows(s, 'PATHS FROM "the france" TO "GERMANY"') == rows(s, 'PATHS FROM "France" TO "Germany"')
    # An article is no name.
    assert not len(s.lql('DESCRIBE "The"'))


@pytest.mark.parametrize(
    "text", ['DESCRIBE ""', 'DESCRIBE " "', 'NEIGHBORS OF ""', 'PATHS FROM "France" TO ""']
)
def test_nobody_is_asked_about_an_empty_name(s: Session, text: str) -> None:
    assert s.lql(text).notices == ['an empty text is no name; give one, as in DESCRIBE "France"']


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            'DESCRIBE "x" AT LAYER 99',
            SemanticError,
            "line 1, column 23: layer 99 is out of range: the model has layers 0-9",
        ),
        ('WALK "x" LAYERS 3-10', SemanticError, "layer 10 is out of range"),
        ("SHOW FEATURES -1", SemanticError, "layer -1 is out of range"),
        ('SELECT * FROM EDGES NEAREST TO "x" AT LAYER 12', SemanticError, "layer 12 is out of range"),
        ('WALK "x" TOP -5', SemanticError, "TOP -5 is out of range: it must be at least 1"),
        ('NEIGHBORS OF "x" HOPS 7', SemanticError, "HOPS 7 is out of range: it must be from 1 to 6"),
        ('PATHS FROM "x" TO "y" MAX 0', SemanticError, "MAX 0 is out of range"),
        (
            'NEIGHBORS OF "x" RELATIONS "capitol"',
            SemanticError,
            'no relation "capitol"; did you mean capital?',
        ),
        (
            "SELECT\n  targt FROM EDGES",
            SemanticError,
            "line 2, column 3: unknown column targt; did you mean target?",
        ),
        ("SELECT * FROM FEATURS", SemanticError, "unknown table FEATURS; did you mean FEATURES?"),
        (
            "SELECT x.target FROM (SELECT subject, object FROM EDGES) x",
            SemanticError,
            "unknown column target; what it is read from calls it object",
        ),
        ("SHOW FEATURES 3 WHERE tokn = 'x'", SemanticError, "unknown column tokn; did you mean token?"),
        ("SELECT * FROM _", SemanticError, "it is the result piped in"),
        (
            'SELECT * FROM TOKENS NEAREST TO "x" AT LAYER 1',
            SemanticError,
            "write EDGES or FEATURES, not TOKENS",
        ),
        ("SELECT layer FROM ENTITIES", SemanticError, "ENTITIES has a list of layers"),
        ('EXPLAIN WALK "x" FOR "y"', SemanticError, "FOR belongs to EXPLAIN INFER"),
        ('EXTRACT MODEL "x" INTO "y" COMPONENTS FFN_GATE', SemanticError, "write WITH BROWSE"),
        ('WALK "x" BASIS CONTEXT', LevelError, "--level inference"),
        ('WALK "the x" MODE DENSE', LevelError, "MODE DENSE needs a vindex of level inference"),
        ('SELECT * FROM FEATURES NEAREST TO "x" AT LAYER 1 BASIS CONTEXT', LevelError, "BASIS CONTEXT"),
        ('USE "/no/such.vindex"', VindexError, "no such vindex"),
        (
            'SELECT * FROM EDGES WHERE layer = "five"',
            SemanticError,
            "Could not convert string 'five' to INT32",
        ),
        ("SELECT entity::INTEGER FROM EDGES", QueryError, "Could not convert"),
        ("DESCRIB x", LqlSyntaxError, "did you mean DESCRIBE?"),
    ],
)
def test_errors_name_what_is_wrong(s: Session, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        s.lql(text)
    assert "\n" not in str(caught.value)
    assert rows(s, "SELECT 1") == [(1,)]


def test_statements_of_later_versions_say_so(s: Session) -> None:
    for row in STATEMENTS:
        if row.not_run:
            with pytest.raises(NotSupportedError, match=f"^{row.name} is not run by this version"):
                s.lql(row.example)
        else:
            assert row.name in PLANNERS or row.name in ("WITH", "FROM", "EXPLAIN SQL"), row.name


def test_without_a_vindex(world: Path) -> None:
    with connect() as session:
        for text in ('DESCRIBE "x"', "SELECT * FROM EDGES", "STATS"):
            with pytest.raises(VindexError, match=r'connect\("NAME'):
                session.lql(text)
        assert session.lql("SELECT 1 AS one").rows() == [(1,)]
        used = session.lql(f'USE "{world}"')
        assert used.dicts()[0]["layers"] == 10
        assert session.lql('DESCRIBE "France"').rows()


def test_nothing_runs_when_the_text_is_not_understood(fresh: Session) -> None:
    fresh.con.execute("CREATE TABLE t AS SELECT 1 AS a")
    with pytest.raises(LqlSyntaxError):
        fresh.script("SELECT * FROM t; DESCRIBE; SELECT 2")


# -- hostile text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*NASTY, "nul\0byte", "", "\ud7ff", "'" * 50, '"' * 51, "$x", "lq.triples", "--", "/*"]
)
def test_hostile_names_are_data(s: Session, name: str) -> None:
    for text in (
        "DESCRIBE $e",
        "NEIGHBORS OF $e",
        "PATHS FROM $e TO $e",
        "SELECT target FROM EDGES WHERE entity = $e",
        "WALK $e TOP 1 BASIS INDEX",
    ):
        if not name.strip() and text.startswith("WALK"):
            continue
        result = s.lql(text, {"e": name})
        assert all("\n" not in notice for notice in result.notices)
        if name in NASTY and text.startswith("DESCRIBE"):
            assert [r["target"] for r in result.dicts()] == [f"<{name}>"]
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\\0")
    assert s.lql(f'DESCRIBE "{quoted}"').rows() == s.lql("DESCRIBE $e", {"e": name}).rows()
    assert rows(s, "SELECT count(*) FROM TRIPLES") == [(47,)]


def test_parameters_are_values(s: Session) -> None:
    assert rows(
        s,
        "SELECT target FROM EDGES WHERE entity = $e AND layer = $n AND relation = $r",
        e="Japan",
        n=8,
        r="capital",
    ) == [("Tokyo",)]
    assert len(rows(s, "WALK $e TOP $n", e="France", n=2)) == 2
