"""Hypothesis strategies: statements (as dataclasses), and the many ways to write one down."""

from __future__ import annotations

from typing import Any

import duckdb
from hypothesis import strategies as st

from larql_duck.lql import parse_one
from larql_duck.lql import statements as s
from larql_duck.lql.clauses import METRICS
from larql_duck.lql.literals import Sql, quote
from larql_duck.lql.statements import (
    AblateClause,
    Assignment,
    InsertRow,
    PatchFromClause,
    RequireClause,
    Statement,
    SteerClause,
)

# DuckDB 1 takes no empty list behind IN.
_FEWEST = 1 if duckdb.__version__.startswith("1.") else 0

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        [
            "France",
            "it's",
            'say "hi"',
            "a\\",
            "\\n",
            "''",
            '""',
            "x; y",
            "-- no",
            "/* no",
            "a\0b",
            "Köln",
            "🇫🇷",
            "|>",
            "$x",
            "{}",
        ]
    ),
)
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
slots = st.tuples(integers, integers)
layers = st.lists(st.tuples(integers, integers).map(lambda p: (min(p), max(p))), min_size=1, max_size=3).map(
    tuple
)
BANDS = (None, "all", "syntax", "knowledge", "output")
MODES = (None, "verbose", "brief", "raw")


def some(strategy: st.SearchStrategy[Any], smallest: int = 0, largest: int = 3) -> st.SearchStrategy[Any]:
    """A tuple of values."""
    return st.lists(strategy, min_size=smallest, max_size=largest).map(tuple)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


# ---- SQL parts

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
columns = st.sampled_from(
    ["entity", "relation", "target", "layer", "confidence", "`limit`", "`order`", "status"]
) | names.map(lambda n: "`" + n.replace("`", "``") + "`")
literals = st.one_of(
    texts.map(quote),
    texts.map(lambda t: "'" + t.replace("\\", "\\\\").replace("'", "''") + "'"),
    integers.map(str),
    floats.map(lambda f: format(f, ".3f")),
)
comparisons = st.one_of(
    st.builds(
        "{} {} {}".format, columns, st.sampled_from(["=", "!=", "<", ">", "<=", ">=", "LIKE"]), literals
    ),
    st.builds("{} IN ({})".format, columns, st.lists(literals, min_size=_FEWEST, max_size=3).map(", ".join)),
)
plain_conditions = st.lists(comparisons, min_size=1, max_size=3).map(" AND ".join)

sql_conditions = st.recursive(
    st.one_of(
        st.builds("{} = {}".format, columns, literals),
        st.builds("{} BETWEEN {} AND {}".format, columns, literals, literals),
        st.builds("{} IS NOT NULL".format, columns),
        st.builds("lower({}) NOT ILIKE {}".format, columns, literals),
        st.builds("{} IN ({}, {})".format, columns, literals, literals),
        st.builds('{} IN (SELECT "x".{} FROM "x")'.format, columns, columns),
    ),
    lambda c: st.one_of(
        st.builds("({} OR {})".format, c, c),
        st.builds("NOT ({})".format, c),
        st.builds("{} AND {}".format, c, c),
    ),
    max_leaves=4,
)
conditions = plain_conditions | sql_conditions
nearest = st.builds(
    " NEAREST TO {} AT LAYER {}{}".format,
    texts.map(quote),
    integers,
    st.sampled_from(["", " BASIS CONTEXT", " BASIS EMBEDDING"]),
)
plain_queries = st.builds(
    "SELECT {} FROM {}{}{}{}{}".format,
    st.just("*") | st.lists(columns, min_size=1, max_size=3).map(", ".join),
    st.sampled_from(["EDGES", "features", "Entities"]),
    st.just("") | nearest,
    st.just("") | plain_conditions.map(" WHERE {}".format),
    st.just("") | st.builds(" ORDER BY {}{}".format, columns, st.sampled_from(["", " ASC", " DESC"])),
    st.just("") | st.integers(0, 2**31).map(" LIMIT {}".format),
)
sql_queries = st.builds(
    '{}SELECT {}, count(*) AS "n" FROM model_graph AS g JOIN "t"{} ON g.subject = t."a" WHERE {} GROUP BY ALL'.format,
    st.sampled_from(["", 'WITH a AS (SELECT 1), "b" AS (SELECT 2) ']),
    columns,
    st.just("") | nearest,
    sql_conditions,
)
queries = plain_queries | sql_queries


def _query(text: str) -> Sql:
    statement = parse_one(text)
    assert isinstance(statement, s.Select)
    return statement.query


def _where(text: str) -> Sql:
    statement = parse_one(f"DELETE FROM EDGES WHERE {text}")
    assert isinstance(statement, s.Delete)
    return statement.where


def _assigned(text: str) -> Sql:
    statement = parse_one(f"UPDATE EDGES SET a = {text} WHERE b = 1")
    assert isinstance(statement, s.Update)
    return statement.assignments[0].value


query_parts = queries.map(_query)
where_parts = conditions.map(_where)
assignments = st.builds(
    Assignment, st.sampled_from(["target", "confidence", "layer", "where"]) | names, literals.map(_assigned)
)

requirements = some(
    st.builds(
        lambda bound, limit: RequireClause(*bound, limit), st.sampled_from(sorted(METRICS.items())), floats
    )
)

# ---- statements

STATEMENTS: dict[type[Statement], st.SearchStrategy[Statement]] = {
    s.Extract: st.builds(
        s.Extract,
        texts,
        texts,
        st.sampled_from(["browse", "inference", "all"]),
        maybe(layers),
        some(st.sampled_from(["ffn_gate", "attn_qk", "embeddings"])),
    ),
    s.Use: st.builds(s.Use, texts, st.sampled_from(["vindex", "remote"]))
    | st.builds(s.Use, texts, st.just("model"), st.booleans()),
    s.Compile: st.builds(
        s.Compile,
        maybe(texts),
        st.just("vindex"),
        texts,
        st.sampled_from([None, "safetensors", "gguf"]),
        conflict=st.sampled_from([None, "last_wins", "highest_confidence", "fail"]),
    )
    | st.builds(
        s.Compile,
        maybe(texts),
        st.just("model"),
        texts,
        st.just("gguf"),
        st.sampled_from([None, "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K"]),
        slots=st.booleans(),
    ),
    s.Diff: st.builds(
        s.Diff,
        maybe(texts),
        maybe(texts),
        maybe(integers),
        maybe(texts),
        maybe(texts),
        maybe(integers),
        maybe(texts),
        maybe(texts),
    )
    | st.builds(
        s.Diff,
        maybe(texts),
        maybe(texts),
        limit=maybe(integers),
        texts=texts,
        column=maybe(texts),
        samples=maybe(integers),
        tokens=maybe(integers),
    ),
    s.Audit: st.builds(
        s.Audit,
        maybe(texts),
        maybe(texts),
        some(texts),
        relations=some(texts),
        pack=maybe(texts),
        limit=maybe(integers),
        features=st.booleans(),
        into_report=maybe(texts),
    )
    | st.builds(s.Audit, maybe(texts), maybe(texts), st.just(()), query_parts, pack=maybe(texts)),
    s.Export: st.builds(
        s.Export,
        texts,
        st.sampled_from(["turtle", "nquads", "jsonld", "graphml", "neo4j", "parquet", "csv"]),
        maybe(query_parts),
        st.booleans(),
        maybe(texts),
    ),
    s.Walk: st.builds(
        s.Walk,
        texts,
        maybe(integers),
        maybe(layers),
        st.sampled_from([None, "hybrid", "pure", "dense"]),
        st.booleans(),
        st.sampled_from([None, "index", "embedding", "context"]),
    ),
    s.Infer: st.builds(
        s.Infer,
        texts,
        maybe(integers),
        st.booleans(),
        maybe(integers),
        st.booleans(),
        some(st.builds(AblateClause, some(slots, 1), st.sampled_from(["zero", "mean"]))),
        some(st.builds(SteerClause, texts, floats, integers)),
        some(st.builds(PatchFromClause, texts, integers, maybe(integers), maybe(integers))),
    ),
    s.Select: st.builds(s.Select, query_parts),
    s.Describe: st.builds(
        s.Describe, texts, maybe(integers), st.sampled_from(BANDS), st.booleans(), st.sampled_from(MODES)
    ),
    s.Explain: st.builds(
        s.Explain,
        st.just("walk"),
        texts,
        maybe(integers),
        maybe(layers),
        st.sampled_from(BANDS),
        maybe(texts),
        st.sampled_from([None, "index", "embedding", "context"]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )
    | st.builds(s.Explain, st.just("infer"), texts, attention=st.booleans(), target=maybe(texts)),
    s.Trace: st.builds(
        s.Trace,
        texts,
        maybe(texts),
        st.booleans(),
        maybe(layers),
        st.sampled_from([None, "last", "all"]),
        maybe(texts),
    )
    | st.builds(s.Trace, texts, maybe(texts), layers=maybe(layers), other=texts, top=maybe(integers))
    | st.builds(s.Trace, texts, maybe(texts), layers=maybe(layers), edits=st.just(True), top=maybe(integers)),
    s.Probe: st.builds(
        s.Probe,
        some(texts),
        st.none(),
        some(texts),
        st.just(()),
        maybe(texts),
        maybe(integers),
        st.booleans(),
    )
    | st.builds(s.Probe, st.just(()), query_parts, some(texts, 1, 1), some(texts), maybe(texts)),
    s.Neighbors: st.builds(s.Neighbors, texts, maybe(integers), some(texts), maybe(integers)),
    s.Paths: st.builds(s.Paths, texts, texts, maybe(integers), some(texts), maybe(integers)),
    s.SimilarFeatures: st.builds(
        s.SimilarFeatures,
        slots,
        st.sampled_from([None, "gate", "up", "down", "all"]),
        maybe(layers),
        maybe(integers),
    ),
    s.ShowRelations: st.builds(s.ShowRelations, maybe(integers), st.booleans(), st.sampled_from(MODES)),
    s.ShowLayers: st.builds(s.ShowLayers, maybe(layers)),
    s.ShowFeatures: st.builds(s.ShowFeatures, integers, maybe(where_parts), maybe(integers)),
    s.ShowExperts: st.builds(s.ShowExperts, maybe(integers), maybe(where_parts), maybe(integers)),
    s.ShowEntities: st.builds(s.ShowEntities, maybe(integers), maybe(integers)),
    s.ShowModels: st.builds(s.ShowModels),
    s.ShowPatches: st.builds(s.ShowPatches),
    s.ShowCompactStatus: st.builds(s.ShowCompactStatus),
    s.Stats: st.builds(s.Stats, maybe(texts)),
    s.Insert: st.builds(
        s.Insert,
        some(st.builds(InsertRow, texts, texts, texts), 1),
        layer=maybe(integers),
        confidence=maybe(floats),
        alpha=maybe(floats),
        mode=st.sampled_from([None, "knn", "compose"]),
        template=maybe(texts),
        reverse=st.booleans(),
        require=requirements,
    )
    | st.builds(s.Insert, cases=texts, limit=maybe(integers), layer=maybe(integers), require=requirements)
    | st.builds(
        s.Insert,
        query=query_parts,
        columns=st.permutations(["entity", "relation", "target"]).map(tuple),
        layer=maybe(integers),
        confidence=maybe(floats),
        mode=st.sampled_from([None, "knn", "compose"]),
        reverse=st.booleans(),
        require=requirements,
    ),
    s.CheckEdits: st.builds(s.CheckEdits, maybe(texts), maybe(texts), maybe(texts)),
    s.Delete: st.builds(s.Delete, where_parts, maybe(integers), st.booleans()),
    s.Update: st.builds(
        s.Update,
        st.lists(assignments, min_size=1, max_size=3, unique_by=lambda a: a.column.lower()).map(tuple),
        where_parts,
        maybe(integers),
        st.booleans(),
    ),
    s.Merge: st.builds(
        s.Merge,
        texts,
        maybe(texts),
        st.sampled_from([None, "keep_source", "keep_target", "highest_confidence"]),
        st.booleans(),
    ),
    s.Rebalance: st.builds(s.Rebalance, st.booleans(), maybe(integers), maybe(floats), maybe(floats)),
    s.CompactMinor: st.builds(s.CompactMinor),
    s.CompactMajor: st.builds(s.CompactMajor, st.booleans(), maybe(floats)),
    s.BeginPatch: st.builds(s.BeginPatch, texts),
    s.SavePatch: st.builds(s.SavePatch, maybe(texts)),
    s.RollbackPatch: st.builds(s.RollbackPatch),
    s.ApplyPatch: st.builds(s.ApplyPatch, texts, st.booleans())
    | st.builds(s.ApplyPatch, texts, resolve=st.booleans()),
    s.RemovePatch: st.builds(s.RemovePatch, texts),
}
single = st.one_of(*STATEMENTS.values())
pipes = st.lists(single, min_size=2, max_size=4).map(lambda stages: s.Pipe(tuple(stages)))
explained = (single | pipes).map(s.ExplainSql)
statements = st.one_of(single, single, pipes, explained)
