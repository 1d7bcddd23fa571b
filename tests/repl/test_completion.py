"""Completion: what the parser would take, and the names that the session has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from larql_duck import connect
from larql_duck.lql import parse
from larql_duck.lql.table import STATEMENTS
from larql_duck.repl.commands import COMMANDS
from larql_duck.repl.completion import NameLookup, complete, complete_command
from larql_duck.repl.prompt import LqlCompleter


@pytest.fixture(scope="module")
def names(tiny_vindex: Callable[[str], Path]) -> Iterator[NameLookup]:
    with connect(tiny_vindex("llama")) as session:
        session.con.execute("CREATE OR REPLACE TABLE countries AS SELECT 'France' AS my_country")
        found = NameLookup(session)
        found.entities = lambda start: [e for e in ("France", 'Fr"an', "Germany") if e.startswith(start)]  # type: ignore[method-assign]
        found.relations = lambda: ["capital", "currency"]  # type: ignore[method-assign]
        yield found


def words(text: str, names: NameLookup) -> list[str]:
    return [proposal.text for proposal in complete(text, names)]


@pytest.mark.parametrize(
    ("text", "some", "none"),
    [
        ("", {"DESCRIBE", "SELECT", "WALK", "SHOW"}, {"TOP"}),
        ("des", {"describe"}, {"DESCRIBE"}),
        ("DES", {"DESCRIBE"}, set()),
        ("SHOW ", {"RELATIONS", "LAYERS", "COMPACT"}, {"TOP"}),
        ("SHOW COMPACT ", {"STATUS"}, set()),
        ("EXPLAIN ", {"WALK", "INFER", "SQL"}, set()),
        ("EXPLAIN SQL ", {"DESCRIBE", "SELECT"}, set()),
        ('DESCRIBE "x" ', {"AT LAYER", "ALL LAYERS", "VERBOSE"}, {"TOP"}),
        ('DESCRIBE "x" AT ', {"LAYER"}, {"VERBOSE"}),
        ('WALK "x" MODE ', {"HYBRID", "PURE", "DENSE"}, {"TOP"}),
        ('WALK "x" MODE = ', {"HYBRID", "PURE", "DENSE"}, set()),
        ('STATS; WALK "x" T', {"TOP"}, {"LAYERS"}),
        ("STATS |> ", {"SELECT"}, set()),
        ("NONSENSE here; SHOW ", {"RELATIONS"}, set()),
        ("COMPILE CURRENT INTO MODEL 'x' FORMAT GGUF ", {"Q8_0", "Q4_0", "INTO SLOTS"}, set()),
        ('TRACE "x" ', {"DIFF", "DIFF EDITS", "TOP"}, set()),
        ("APPLY PATCH 'p.vlp' ", {"FORCE", "RESOLVE"}, set()),
        ('INSERT INTO EDGES (entity, relation, target) VALUES ("a", "b", "c") W', {"WITH REVERSE"}, set()),
        ("SELECT * FROM ", {"EDGES", "model_graph", "countries", "_"}, {"TOP", "lql_edges"}),
        ("SELECT * FROM EDGES, c", {"countries"}, {"EDGES"}),
        ("SELECT * FROM EDGES JOIN mod", {"model_graph"}, set()),
        ("SELECT my_", {"my_country"}, set()),
        ("SELECT * FROM EDGES WH", {"WHERE"}, set()),
        ("DELETE FROM EDGES WHERE rel", {"relation"}, set()),
        ("-- WALK\nSTA", {"STATS"}, set()),
    ],
)
def test_words(text: str, some: set[str], none: set[str], names: NameLookup) -> None:
    found = set(words(text, names))
    assert some <= found
    assert not none & found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('DESCRIBE "Fr', ['France"', 'Fr\\"an"']),
        ("DESCRIBE 'Fr", ["France'", "Fr\"an'"]),
        ('NEIGHBORS OF "Ger', ['Germany"']),
        ('SELECT * FROM EDGES NEAREST TO "Ger', ['Germany"']),
        ("SELECT * FROM EDGES WHERE entity = 'Ger", ["Germany'"]),
        ('PROBE ENTITIES "France", "Ger', ['Germany"']),
        ('DIFF "a" "b" RELATION "cap', ['capital"']),
        ('PATHS FROM "a" TO "b" RELATIONS "currency", "', ['capital"', 'currency"']),
        ("SELECT * FROM model_graph WHERE relationship IN ('c", ["capital'", "currency'"]),
        ('TRACE "Fr', []),
    ],
)
def test_strings(text: str, wanted: list[str], names: NameLookup) -> None:
    assert words(text, names) == wanted


def test_paths(names: NameLookup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.vindex").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    assert words('USE "', names) == ['a.vindex"', "b/"]
    assert words(f'USE "{tmp_path}/a', names) == [f'{tmp_path}/a.vindex"']
    assert words('USE "nowhere/', names) == []


def test_what_is_proposed_fits(names: NameLookup) -> None:
    """Every first clause that is proposed behind a statement's example is one that the parser knows."""
    for row in STATEMENTS:
        if row.whole or "WHERE" in row.example or row.name == "EXPLAIN SQL":
            continue
        for proposal in words(row.example.rstrip(";") + " ", names):
            assert proposal in row.leads or any(proposal in lead.split() for lead in row.leads), (
                row.name,
                proposal,
            )


def test_names_never_fail(names: NameLookup) -> None:
    class Broken:
        schema = "no such"
        vindex = None
        con = None

    broken = NameLookup(Broken())  # type: ignore[arg-type]
    assert broken.columns() == [] and broken.entities("x") == [] and "EDGES" in broken.tables()


def test_completion_ends_no_result_of_the_user(tiny_vindex: Callable[[str], Path]) -> None:
    with connect(tiny_vindex("llama")) as session:
        reading = session.con.execute("FROM range(10000)")
        assert reading.fetchone() == (0,)
        assert "features" in words("SELECT * FROM fea", NameLookup(session))
        assert reading.fetchone() == (1,)


def test_names_are_looked_up_again_for_another_vindex(names: NameLookup) -> None:
    assert "countries" in names.tables()
    names.session.con.execute("CREATE TABLE later AS SELECT 1 AS x")
    assert "later" not in names.tables()
    names.forget()
    assert "later" in names.tables()


def test_commands() -> None:
    def found(text: str) -> list[str]:
        return [p.text for p in complete_command(text, COMMANDS)]

    assert found(".mo") == [".mode"]
    assert found(".mode j") == ["json", "jsonl"]
    assert found(".help walk") == ["WALK"]
    assert "SHOW LAYERS" in found(".help ")


def test_prompt_toolkit_gets_replacements(names: NameLookup) -> None:
    completer = LqlCompleter(names)
    (shown,) = completer.get_completions(Document("STATS; descr"), CompleteEvent())
    assert (shown.text, shown.start_position) == ("describe", -5)
    (shown,) = completer.get_completions(Document(".rea"), CompleteEvent())
    assert (shown.text, shown.start_position) == (".read", -4)
    assert parse("STATS; " + "describe 'x'")
