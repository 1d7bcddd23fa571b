"""A second run over some subjects replaces their rows and nothing else."""

from __future__ import annotations

import pyarrow as pa
import pytest

from larql_duck.catalog import SCHEMAS, as_table
from larql_duck.inference.engine import Engine
from larql_duck.knowledge.relations import Relation
from larql_duck.models.opening import open_model
from larql_duck.probing.merge import merge
from tests.probing.support import probe_facts
from tests.probing.test_probe import CAPITAL, LANGUAGE, rows


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return Engine.load(open_model(tiny_model("llama")))


@pytest.fixture(scope="module")
def first(engine: Engine) -> dict[str, pa.Table]:
    return probe_facts(engine, [CAPITAL, LANGUAGE], few_shot=False)


def test_asking_the_same_again_changes_nothing_but_order(first: dict[str, pa.Table]) -> None:
    again = merge(first, first)
    for name, table in first.items():
        assert again[name].schema.equals(SCHEMAS[name])
        assert sorted(map(str, again[name].to_pylist())) == sorted(map(str, table.to_pylist())), name


def test_only_the_asked_subjects_and_relations_are_replaced(
    engine: Engine, first: dict[str, pa.Table]
) -> None:
    other = Relation("capital", "another text", ("The city of {} is",), entities=("France", "Berlin"))
    second = probe_facts(engine, [other])
    merged = merge(first, second)
    for name in ("facts", "edges", "probes"):
        assert rows(merged[name], subject="France", relation="capital") == rows(
            second[name], subject="France", relation="capital"
        )
        assert rows(merged[name], subject="Berlin") == rows(second[name], subject="Berlin")
        assert rows(merged[name], subject="Japan") == rows(first[name], subject="Japan")
        assert rows(merged[name], subject="France", relation="language") == rows(
            first[name], subject="France", relation="language"
        )
    (capital,) = rows(merged["relations"], relation="capital")
    assert capital["templates"] == ["The capital of {} is", "{}'s capital is", "The city of {} is"]
    assert capital["description"] == "another text"
    assert capital["n_facts"] == len(rows(merged["facts"], relation="capital", rank=1))


def test_rows_of_other_sources_stay(first: dict[str, pa.Table]) -> None:
    patch = {"subject": ["France"], "relation": ["capital"], "object": ["Lyon"], "source": ["patch"]}
    cluster = as_table("relations", {"relation": ["morphology"], "source": ["cluster"]})
    known = {
        **first,
        "facts": pa.concat_tables([first["facts"], as_table("facts", {**patch, "rank": [1]})]),
        "edges": pa.concat_tables(
            [first["edges"], as_table("edges", {**patch, "layer": [0], "feature": [1]})]
        ),
        "relations": pa.concat_tables([first["relations"], cluster]),
    }
    merged = merge(known, first)
    assert len(rows(merged["facts"], source="patch")) == 1
    assert len(rows(merged["edges"], source="patch")) == 1
    assert [r["relation"] for r in merged["relations"].to_pylist()] == ["capital", "language", "morphology"]
    # A patch is no probe: it neither counts as a fact of the relation nor as a feature of it.
    assert merged["feature_relations"].equals(first["feature_relations"])


def test_the_first_run_meets_nothing(first: dict[str, pa.Table]) -> None:
    merged = merge({}, first)
    assert all(merged[name].equals(first[name]) for name in first)
