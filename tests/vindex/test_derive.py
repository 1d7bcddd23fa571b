"""Derived tables: what stands first where confidence is not known."""

from __future__ import annotations

import pytest

from larql_duck.catalog import as_table, empty_table
from larql_duck.vindex.derive import derive_triples, probed_relations

FACTS = [("Chad", 0.9, 0.3), ("Fiji", None, 0.2), ("Peru", None, 0.6), ("Cuba", 0.4, 0.1)]


@pytest.fixture
def facts():
    n = len(FACTS)
    subjects, confidences, ps = (list(column) for column in zip(*FACTS, strict=True))
    columns = {
        "subject": subjects,
        "confidence": confidences,
        "p": ps,
        "object": [s.upper() for s in subjects],
    }
    return as_table(
        "facts", columns | {"relation": ["capital"] * n, "rank": [1] * n, "source": ["probe"] * n}
    )


def test_examples_are_the_surest_facts_then_the_most_probable(facts) -> None:
    described = as_table(
        "relations", {"relation": ["capital"], "description": [""], "templates": [["{} is"]]}
    )
    (row,) = probed_relations(facts, empty_table("edges"), described).to_pylist()
    assert row["examples"] == ["Chad -> CHAD", "Cuba -> CUBA", "Peru -> PERU"]


def test_triples_of_a_subject_are_ordered_by_p_where_nothing_is_sure(facts) -> None:
    same = facts.set_column(0, "subject", [["Chad"] * facts.num_rows])
    assert derive_triples(same, empty_table("edges"))["object"].to_pylist() == [
        "CHAD",
        "CUBA",
        "PERU",
        "FIJI",
    ]
