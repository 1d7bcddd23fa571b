"""The reference parser's verdicts on 705 statements, and where ours differ on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql import parse, parse_one
from larql_duck.lql import statements as s
from larql_duck.lql.statements import AblateClause, InsertRow, PatchFromClause, Statement, SteerClause
from tests.lql.legalised import LEGALISED

CORPUS = json.loads((Path(__file__).parents[1] / "data" / "lql-statements.json").read_text(encoding="utf-8"))
ACCEPTED = [(row["sql"], row["kind"]) for row in CORPUS if row["valid"]]
REJECTED = [row["sql"] for row in CORPUS if not row["valid"]]
LEGAL = {text: rule for rule, texts in LEGALISED.items() for text in texts}


def test_the_corpus_is_whole() -> None:
    assert (len(ACCEPTED), len(REJECTED)) == (450, 255)
    assert LEGAL.keys() <= set(REJECTED)
    assert {kind for _, kind in ACCEPTED} == {
        c.kind for c in vars(s).values() if isinstance(c, type) and issubclass(c, Statement)
    } - {
        "Statement",
        "Audit",
        "CheckEdits",
        "ShowExperts",
        "ExplainSql",
        "Export",
        "Probe",
        "Neighbors",
        "Paths",
        "SimilarFeatures",
        "RollbackPatch",
    }


def test_accepted_statements_parse_to_their_kind() -> None:
    for text, kind in ACCEPTED:
        found = parse(text)
        assert [statement.kind for statement in found] == [kind], text
        assert parse(str(found[0])) == found, text


def test_rejected_statements_are_rejected_unless_a_rule_makes_them_legal() -> None:
    for text in REJECTED:
        if text in LEGAL:
            assert parse(text), text
            continue
        with pytest.raises(LqlSyntaxError) as caught:
            parse(text)
        error = caught.value
        assert error.line >= 1 and error.column >= 1
        assert "\n" not in str(error)
        assert len(error.highlight().split("\n")) == 3, text


def test_queries_are_valid_for_duckdb() -> None:
    connection = duckdb.connect()
    for text, kind in ACCEPTED:
        if kind == "Select":
            (statement,) = parse(text)
            assert isinstance(statement, s.Select)
            assert len(connection.extract_statements(statement.query.text)) == 1, text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('WALK "x" LAYERS 0-3 LAYERS ALL;', s.Walk("x", layers=((0, 3),))),
        ('WALK "x" LAYERS 24-33 LAYERS 0-3;', s.Walk("x", layers=((0, 3),))),
        ('WALK "x" LAYERS 3, 5,8-10', s.Walk("x", layers=((3, 3), (5, 5), (8, 10)))),
        ('DESCRIBE "France" BRIEF VERBOSE RAW;', s.Describe("France", mode="raw")),
        ('DESCRIBE "France" AT LAYER 26 ALL LAYERS', s.Describe("France", layer=26, band="all")),
        ('EXTRACT MODEL "m" INTO "o" WITH WEIGHTS', s.Extract("m", "o")),
        (
            'EXTRACT MODEL "m" INTO "o" COMPONENTS ffn_gate,attn_qk;',
            s.Extract("m", "o", components=("ffn_gate", "attn_qk")),
        ),
        (
            'COMPILE "a" INTO MODEL "b" FORMAT GGUF Q8_0 INTO SLOTS',
            s.Compile("a", "model", "b", "gguf", "Q8_0", slots=True),
        ),
        ('DIFF CURRENT "b" RELATIONS "capital" LAYER 3', s.Diff(None, "b", 3, "capital")),
        (
            'audit CURRENT against "s" PACK "core" RELATIONS "capital" LIMIT 3 WITH FEATURES INTO REPORT "r.html"',
            s.Audit(
                None, "s", relations=("capital",), pack="core", limit=3, features=True, into_report="r.html"
            ),
        ),
        ('AUDIT "t" AGAINST "s" ENTITIES "a", "b"', s.Audit("t", "s", ("a", "b"))),
        (
            'DIFF "a" "b" TEXTS "c.parquet" SAMPLES 5 TOKENS 64 COLUMN "text"',
            s.Diff("a", "b", texts="c.parquet", column="text", samples=5, tokens=64),
        ),
        ('USE MODEL "m" AUTO_EXTRACT', s.Use("m", "model", True)),
        ("SHOW LAYERS RANGE 3 - 3", s.ShowLayers(((3, 3),))),
        ("SHOW ENTITIES 3 LIMIT 5", s.ShowEntities(3, 5)),
        ("SHOW EXPERTS 3 LIMIT 5", s.ShowExperts(3, None, 5)),
        ("SHOW ENTITIES AT LAYER 3 LIMIT 5", s.ShowEntities(3, 5)),
        ('TRACE "x" POSITIONS SAVE "f"', s.Trace("x", save="f")),
        ('TRACE "x" DIFF "y" TOP 3 FOR "z"', s.Trace("x", "z", other="y", top=3)),
        ('trace "x" layers 3 diff edits', s.Trace("x", layers=((3, 3),), edits=True)),
        ('COMPILE CURRENT INTO MODEL "b" FORMAT GGUF Q4_0', s.Compile(None, "model", "b", "gguf", "Q4_0")),
        ("COMPACT MAJOR ALL WITH LAMBDA = 1", s.CompactMajor(True, 1.0)),
        ("REBALANCE FLOOR = .25 CEILING 1e0", s.Rebalance(floor=0.25, ceiling=1.0)),
        (
            'INSERT INTO EDGES (target, entity, relation) VALUES ("c", "a", "b"), ("f", "d", "e") MODE = compose',
            s.Insert((InsertRow("a", "b", "c"), InsertRow("d", "e", "f")), mode="compose"),
        ),
        (
            'INFER "x" ABLATE (1, 2) STEER RELATION "capital" BY -0.5 AT LAYER 3 ABLATE (3, 4) BY MEAN WALK K 9',
            s.Infer(
                "x",
                walk_k=9,
                ablate=(AblateClause(((1, 2),)), AblateClause(((3, 4),), "mean")),
                steer=(SteerClause("capital", -0.5, 3),),
            ),
        ),
        ('INFER "x" PATCH FROM "y" AT LAYER 3 POSITION 1', s.Infer("x", patch=(PatchFromClause("y", 3, 1),))),
        (
            'INFER "x" PATCH FROM "y" SOURCE POSITION 2 AT LAYER 3',
            s.Infer("x", patch=(PatchFromClause("y", 3, source=2),)),
        ),
        (
            'PROBE ENTITIES "a", "b" RELATIONS "r" TEMPLATE "{} is" PACK "p" LIMIT 5 DRY RUN',
            s.Probe(("a", "b"), None, ("r",), ("{} is",), "p", 5, True),
        ),
        ("PROBE", s.Probe()),
        ('NEIGHBORS OF "a" LIMIT 3 HOPS 2', s.Neighbors("a", 2, limit=3)),
        ('PATHS FROM "a" TO "b" MAX 3 RELATIONS "r", "q"', s.Paths("a", "b", 3, ("r", "q"))),
        ("SIMILAR FEATURES TO (3, 4) TOP 5 BY down", s.SimilarFeatures((3, 4), "down", top=5)),
        ('APPLY PATCH "p" FORCE', s.ApplyPatch("p", True)),
        (
            "INSERT INTO EDGES (entity, relation, target) SELECT a, b, c FROM t WITH REVERSE AT LAYER 2",
            s.Insert(query=parse_one("SELECT a, b, c FROM t").query, layer=2, reverse=True),
        ),
        ('APPLY PATCH "p" RESOLVE', s.ApplyPatch("p", resolve=True)),
        ("ROLLBACK PATCH", s.RollbackPatch()),
        ("EXPLAIN SQL STATS |> SHOW MODELS", s.ExplainSql(s.Pipe((s.Stats(), s.ShowModels())))),
        ("STATS; |> STATS;", s.Pipe((s.Stats(), s.Stats()))),
    ],
)
def test_fields(text: str, wanted: Statement) -> None:
    assert parse(text) == [wanted]
