"""What the macros answer: spelling, bands, order, reverse questions, tokens; hostile names are data."""

from __future__ import annotations

import pytest

from larql_duck.models.tokenizer import token_text
from tests.duckdb_cli import run_cli
from tests.world import FACTS, NASTY, WEIGHTS


def test_the_sentence_everything_serves(database) -> None:
    (rows,) = run_cli(
        database,
        "SELECT relationship, object FROM model_graph WHERE subject = 'France' AND relationship = 'capital'",
    )
    assert rows == [{"relationship": "capital", "object": "Paris"}]


def test_the_graph_shows_facts_the_surest_first(database) -> None:
    rows, described, counted = run_cli(
        database,
        "SELECT * FROM model_graph LIMIT 5",
        "SELECT object FROM model_graph WHERE subject = 'France'",
        "SELECT (SELECT count(*) FROM model_graph) AS facts, (SELECT count(*) FROM token_associations) AS others, "
        "(SELECT count(*) FROM triples) AS triples, (SELECT count(*) FROM entities WHERE entity = 'word00') AS words",
    )
    assert [(r["subject"], r["object"]) for r in rows] == [
        ("Japan", "Asia"), ("France", "Europe"), ("Germany", "Europe"), ("Germany", "Berlin"), ("France", "Paris"),
    ]  # fmt: skip
    assert [r["object"] for r in described] == ["Europe", "Paris", "French"]
    n_facts = sum(f[3] == 1 for f in FACTS)
    assert counted == [
        {"facts": n_facts, "others": len(WEIGHTS), "triples": n_facts + len(WEIGHTS), "words": 0}
    ]


def test_facts_come_first_then_weights_of_the_knowledge_band(ask) -> None:
    rows = ask("FROM describe_entity('France')")
    assert [r["target"] for r in rows] == ["Europe", "Paris", "French", "Macron", "Paris"]
    assert [r["source"] for r in rows] == ["probe"] * 3 + ["weights"] * 2
    assert {r["band"] for r in rows} == {"knowledge"}
    paris = rows[1]
    # The sum of both contributions; the layer of the feature whose zeroing costs most; the second answer.
    assert paris["score"] == pytest.approx(8 * 0.77)
    assert (paris["layer"], paris["layers"], paris["n_features"], paris["also"]) == (5, [5, 8], 2, ["Lyon"])
    assert rows[3]["score"] == 7.5


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ("p_band := 'all'", ["French", "Macron", "Paris", "wine"]),
        ("p_band := 'syntax'", ["French"]),
        ("p_band := 'output'", ["wine"]),
        ("p_layer := 9", ["wine"]),
    ],
)
def test_bands_and_layers_choose_weight_triples(ask, options: str, weights: list[str]) -> None:
    rows = ask(f"FROM describe_entity('France', {options})")
    assert [r["target"] for r in rows if r["source"] == "weights"] == weights


def test_a_band_that_is_asked_for_filters_facts_by_their_layer(ask) -> None:
    # Their strongest feature is in layer 5.
    assert [r["source"] for r in ask("FROM describe_entity('France', p_band := 'output')")] == ["weights"]
    assert len(ask("FROM describe_entity('France', p_band := 'knowledge')")) == 5
    assert [r["source"] for r in ask("FROM describe_entity('France', p_layer := 5)")] == ["probe"] * 3 + [
        "weights"
    ]


def test_rows_are_capped_per_band(ask) -> None:
    rows = ask("FROM describe_entity('Paris')")
    weights = [r["target"] for r in rows if r["source"] == "weights"]
    assert weights == [f"word{i:02}" for i in range(19, 9, -1)]
    assert len(ask("FROM describe_entity('Paris', p_rows := 30)")) == 22


def test_facts_that_point_to_it_come_behind_its_own(ask) -> None:
    rows = ask("FROM describe_entity('paris')")
    assert [
        (r["direction"], r["relation"], r["target"], r["score"], r["layer"], r["also"]) for r in rows[:2]
    ] == [
        ("in", "capital", "France", pytest.approx(8 * 0.77), 5, None),
        ("in", "city", "Eiffel Tower", pytest.approx(8 * 0.71), 5, None),
    ]
    assert {r["direction"] for r in rows[2:]} == {"out"}
    assert [r["target"] for r in ask("FROM describe_entity('Paris', p_rows := 1)")] == ["France", "word19"]
    # Layers and bands rule facts out by their strongest feature, before rows are counted.
    assert [r["target"] for r in ask("FROM describe_entity('Europe', p_layer := 5, p_rows := 1)")] == [
        "France"
    ]
    assert ask("FROM describe_entity('Europe', p_band := 'output')") == []


def test_relations_only_leaves_token_associations_out(ask) -> None:
    assert {
        r["source"] for r in ask("FROM describe_entity('France', p_band := 'all', p_relations_only := true)")
    } == {"probe"}
    assert ask("FROM describe_entity('turkey', p_relations_only := true)") == []


def test_the_exact_spelling_wins_over_others(ask) -> None:
    assert [r["target"] for r in ask("FROM describe_entity('Turkey')")] == ["Ankara"]
    assert [r["target"] for r in ask("FROM describe_entity('turkey')")] == ["bird"]
    assert [r["target"] for r in ask("FROM describe_entity(' TURKEY ')")] == ["Ankara", "bird"]


@pytest.mark.parametrize("name", NASTY)
def test_hostile_names_are_data(ask, name: str) -> None:
    (row,) = ask("FROM describe_entity($1)", [name])
    assert row["target"] == f"<{name}>"
    assert [r["subject"] for r in ask("FROM who('capital', $1)", [f"<{name}>"])] == [name]
    assert [r["object"] for r in ask("FROM explain_fact($1, 'capital')", [name])] == [f"<{name}>"] * 2
    assert [r["object"] for r in ask("FROM neighbors($1)", [name])] == [f"<{name}>"]
    assert ask("SELECT count(*) AS n FROM triples")[0]["n"] > 40


def test_hostile_names_in_the_cli(database) -> None:
    names = [n for n in NASTY if len(n) < 1000]
    queries = ["FROM describe_entity('" + n.replace("'", "''") + "')" for n in names]
    assert [[r["target"] for r in rows] for rows in run_cli(database, *queries)] == [
        [f"<{n}>"] for n in names
    ]


def test_who_reverses(ask) -> None:
    rows = ask("FROM who('continent', 'europe')")
    assert [(r["subject"], r["confidence"]) for r in rows] == [("France", 0.90), ("Germany", 0.88)]
    anything = ask("FROM who(NULL, 'Paris')")
    assert [(r["subject"], r["relation"]) for r in anything] == [
        ("France", "capital"),
        ("Eiffel Tower", "city"),
        ("France", "associated with"),
    ]


def test_relation_facts_lists_what_the_graph_took_over(ask) -> None:
    rows = ask("FROM relation_facts('capital')")
    expected = [f for f in FACTS if f[1] == "capital" and f[3] == 1]
    assert [r["object"] for r in rows][:4] == ["Berlin", "Paris", "Tokyo", "Ankara"]
    assert len(rows) == len(expected)
    assert "Lyon" not in {r["object"] for r in rows}


def test_explain_fact_orders_by_effect(ask) -> None:
    rows = ask("FROM explain_fact('FRANCE', 'Capital')")
    assert [(r["layer"], r["feature"]) for r in rows] == [(5, 9), (8, 6)]
    assert rows[0]["effect"] > rows[1]["effect"]
    assert rows[0]["band"] == "knowledge" and len(rows[0]["down_tokens"]) == 3


def test_entities_like_matches_in_any_case(ask) -> None:
    assert [r["entity"] for r in ask("FROM entities_like('fr%')")] == ["France", "French"]
    assert ask("FROM entities_like('nothing%')") == []


def test_walk_prefers_the_token_of_running_text(ask) -> None:
    def first(token: str) -> list[tuple[int, int]]:
        return [(r["layer"], r["feature"]) for r in ask("FROM walk($1, p_top := 32)", [token])]

    stored = ask("SELECT token, layer, feature FROM token_features ORDER BY token_id, rank")

    def rows_of(token: str) -> list[tuple[int, int]]:
        return [(r["layer"], r["feature"]) for r in stored if r["token"] == token]

    assert first("France") == first(" France") == first("FRANCE") == rows_of(" France")
    assert rows_of("France") != rows_of(" France")
    assert first("no such token") == first("") == []


def test_walk_orders_by_mode(ask) -> None:
    def values(column: str, mode: str) -> list[float]:
        return [r[column] for r in ask(f"FROM walk('France', p_top := 32, p_mode := '{mode}')")]

    assert values("gate", "pure") == sorted(values("gate", "pure"), reverse=True)
    assert values("gate", "hybrid") == sorted(values("gate", "hybrid"), key=abs, reverse=True)
    assert values("activation", "dense") == sorted(values("activation", "dense"), key=abs, reverse=True)
    assert len({tuple(values("gate", m)) for m in ("pure", "hybrid")}) == 2
    both = ask("FROM walk('France', p_top := 2, p_compare := true)")
    assert [r["mode"] for r in both] == ["hybrid"] * 2 + ["dense"] * 2


def test_walk_explains_token_and_band(ask) -> None:
    rows = ask("FROM walk('Paris', p_band := 'knowledge', p_explain := true, p_tokens := 5)")
    assert rows and {r["band"] for r in rows} == {"knowledge"} and {r["token"] for r in rows} == {" Paris"}
    assert {len(r["down_tokens"]) for r in rows} == {5}
    assert all(4 <= r["layer"] <= 7 for r in rows)


def test_tokens_and_one_feature(ask) -> None:
    rows = ask("FROM tokens_of(5, 9)")
    assert [(r["side"], r["rank"]) for r in rows] == [
        (s, i) for s in ("in", "out", "out_neg") for i in range(1, 11)
    ]
    (feature,) = ask("FROM feature(5, 9)")
    assert feature["out_tokens"] == [r["token"].strip() for r in rows if r["side"] == "out"]
    assert (feature["relation"], feature["relations"], feature["band"]) == (
        "capital",
        ["capital", "city"],
        "knowledge",
    )
    assert ask("FROM feature(99, 0)") == []


def test_show_relations_and_entities(ask) -> None:
    rows = ask("FROM show_relations()")
    assert [r["relation"] for r in rows] == ["capital", "continent", "language", "city"]
    assert all(r["examples"] is None and r["token"] is None for r in rows)
    assert ask("FROM show_relations(p_examples := true)")[0]["examples"][0] == "France -> Paris"
    raw = ask("FROM show_relations(p_mode := 'raw')")
    assert raw and all(r["relation"] is None and r["token"] == r["token"].lower() for r in raw)
    assert {r["relation"] for r in ask("FROM show_relations(p_layer := 0)")} == set()
    entities = ask("FROM show_entities(p_limit := 3)")
    assert [r["entity"] for r in entities] == ["France", "Germany", "Europe"]
    assert entities[0]["layers"] == [2, 5, 6, 8, 9]


def test_macros_take_columns(ask) -> None:
    rows = ask(
        "SELECT c.name, d.target FROM (VALUES ('France'), ('Japan')) AS c(name), describe_entity(c.name) AS d"
        " WHERE d.relation = 'capital' ORDER BY ALL"
    )
    assert [tuple(r.values()) for r in rows] == [("France", "Paris"), ("Japan", "Tokyo")]


def test_tokens_of_blanks_are_shown_as_extraction_shows_them(con) -> None:
    tokens = [" the ", " ", " \n", "\u00a0", "\u3000", "\t", "", None]
    shown = con.execute("SELECT [lq.token_text(t) FOR t IN $1::VARCHAR[]]", [tokens]).fetchone()[0]
    assert shown == [None if token is None else token_text(token) for token in tokens]
