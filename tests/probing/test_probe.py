"""A probing run as a whole, on tiny models: tables, features and effects, resuming, bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from larql_duck.catalog import SCHEMAS
from larql_duck.errors import LarqlError, PackError
from larql_duck.inference import prefix
from larql_duck.inference.attribution import attribute
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import feature_edits
from larql_duck.knowledge.relations import Pack, Relation
from larql_duck.models.opening import open_model
from larql_duck.probing import answers, control, measure, specific
from larql_duck.probing.facts import ask_subjects, probe
from larql_duck.probing.measure import MOST_FEATURES, SHARE, SINGLE, strongest
from larql_duck.probing.prompts import questions
from tests.probing.support import probe_facts

COUNTRIES = ("France", "Germany", "Japan", "Spain", "Italy", "Europe", "the city of Paris")
CAPITAL = Relation(
    "capital", "capital city of a country", ("The capital of {} is", "{}'s capital is"),
    examples=(("Spain", "Madrid"), ("Italy", "Rome")), entities=COUNTRIES,
    references={"France": ("Paris",), "Japan": ("Tokyo",)},
)  # fmt: skip
LANGUAGE = Relation(
    "language", "language of a country", ("The language of {} is",), many=True, entities=COUNTRIES[:4]
)
PACK = Pack("tiny", (CAPITAL, LANGUAGE))


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return Engine.load(open_model(tiny_model("qwen3")))


@pytest.fixture(scope="module")
def tables(engine: Engine) -> dict[str, pa.Table]:
    return probe_facts(engine, PACK, top_n=4)


def rows(table: pa.Table, **where: object) -> list[dict[str, object]]:
    return [r for r in table.to_pylist() if all(r[k] == v for k, v in where.items())]


def test_tables_have_the_public_schemas(tables: dict[str, pa.Table]) -> None:
    assert set(tables) == {"facts", "probes", "prompts", "priors", "edges", "relations", "feature_relations"}
    for name, table in tables.items():
        assert table.schema.equals(SCHEMAS[name]), name
        assert table.num_rows, name


def test_every_prompt_that_was_run_is_a_probe(tables: dict[str, pa.Table], engine: Engine) -> None:
    probes = tables["probes"].to_pylist()
    chosen = {
        (r["relation"], r["template"]) for r in tables["prompts"].to_pylist() if r["weight"] is not None
    }
    for relation, entities in (("capital", COUNTRIES), ("language", COUNTRIES[:4])):
        for template in (t for r, t in chosen if r == relation):
            asked = [r["subject"] for r in probes if (r["relation"], r["template"]) == (relation, template)]
            assert sorted(asked) == sorted(entities)
    assert all(
        {r["relation"] for r in probes} == {"capital", "language"} for relation in ("capital", "language")
    )
    assert len({(r["prompt"], r["relation"]) for r in probes}) == len(probes)
    for row in probes:
        p = torch.softmax(engine.logits(row["prompt"])[0], -1)
        assert row["predicted"] == engine.tokenizer.token(int(p.argmax()))
        assert row["p"] == pytest.approx(float(p.max()), abs=1e-4)
        assert row["entropy"] == pytest.approx(float(-(p * p.log()).sum()), abs=1e-3)


def test_facts_are_ranked_and_only_triples_have_features(tables: dict[str, pa.Table]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for fact in tables["facts"].to_pylist():
        key = (fact["relation"], fact["subject"])
        seen[key] = seen.get(key, 0) + 1
        assert fact["rank"] == seen[key]
        assert 0 < fact["p_string"] <= fact["p"] <= 1
        # Two references teach nothing.
        assert fact["confidence"] is None and fact["calibrated"] == "none"
        references = CAPITAL.references if fact["relation"] == "capital" else {}
        assert fact["reference"] == (list(references.get(fact["subject"], ())) or None)
        assert (fact["correct"] is None) == (fact["subject"] not in references)
        edges = rows(
            tables["edges"],
            subject=fact["subject"],
            relation=fact["relation"],
            object=fact["object"],
        )
        assert fact["n_features"] == len(edges)
        is_triple = fact["rank"] == 1 or (fact["relation"] == "language" and fact["p"] >= 0.1)
        assert bool(edges) == is_triple
        assert (fact["effect"] is not None) == is_triple
    assert any(f["rank"] > 1 for f in tables["facts"].to_pylist())


def test_a_facts_features_and_effects_against_single_passes(
    tables: dict[str, pa.Table], engine: Engine
) -> None:
    checked = 0
    for fact in rows(tables["facts"], rank=1):
        edges = rows(
            tables["edges"],
            subject=fact["subject"],
            relation=fact["relation"],
            object=fact["object"],
        )
        ids = engine.encode(fact["prompt"])
        capture = engine.capture(ids)
        log_p = engine.logits(ids)[0].log_softmax(-1)
        # The first token is the one of the vocabulary that these contributions belong to.
        text = fact["object"]
        (token,) = {
            t
            for t in engine.tokenizer.encode(f" {text}", special=False)[:1]
            + engine.tokenizer.encode(text, special=False)[:1]
            if attribute(engine, capture, [t]).features[0, edges[0]["layer"], edges[0]["feature"]]
            == pytest.approx(edges[0]["score"], abs=1e-4)
        } or {None}
        if token is None:  # written in a way that the text alone does not tell
            continue
        checked += 1
        parts = attribute(engine, capture, [token])
        assert [(e["layer"], e["feature"]) for e in edges] == [s[:2] for s in strongest(parts.features[0])]
        assert [e["score"] for e in edges] == pytest.approx(
            [float(parts.features[0, e["layer"], e["feature"]]) for e in edges], abs=1e-4
        )
        assert fact["attention_share"] == pytest.approx(float(parts.attention_share()[0]), abs=1e-3)
        for edge in edges[:3]:
            slot = [(edge["layer"], edge["feature"])]
            with engine.intervene(*feature_edits(slot, position=-1)):
                gone = engine.logits(ids)[0].log_softmax(-1)
            assert edge["effect"] == pytest.approx(float(log_p[token] - gone[token]), abs=1e-4)
        slots = [(e["layer"], e["feature"]) for e in edges]
        with engine.intervene(*feature_edits(slots, position=-1)):
            gone = engine.logits(ids)[0].log_softmax(-1)
        assert fact["effect"] == pytest.approx(float(log_p[token] - gone[token]), abs=1e-4)
        assert [e["effect"] is not None for e in edges] == [i < SINGLE for i in range(len(edges))]
    assert checked >= 5


def test_features_sum_to_the_stated_share() -> None:
    contributions = torch.tensor([[3.0, -9.0, 1.0], [2.0, 2.0, 0.0]])
    assert strongest(contributions) == [(0, 0, 3.0), (1, 0, 2.0)]  # 5 of 8 >= 0.5; the tie to the lower slot
    assert strongest(-contributions.abs()) == []
    many = torch.ones(4, 100)
    assert len(strongest(many)) == MOST_FEATURES < SHARE * 400


def test_feature_relations_follow_from_facts_and_edges(tables: dict[str, pa.Table]) -> None:
    facts = [f for f in tables["facts"].to_pylist() if f["n_features"]]
    edges = tables["edges"].to_pylist()
    related = tables["feature_relations"].to_pylist()
    assert related
    for row in related[:20]:
        own = [f for f in facts if f["relation"] == row["relation"]]
        rest = len(facts) - len(own)
        mine = [e for e in edges if (e["layer"], e["feature"]) == (row["layer"], row["feature"])]
        here = [e for e in mine if e["relation"] == row["relation"]]
        assert row["support"] == pytest.approx(len(here) / len(own))
        elsewhere = (len(mine) - len(here)) / rest
        assert row["specificity"] == pytest.approx(row["support"] / (row["support"] + elsewhere))
        assert row["mean_contribution"] == pytest.approx(sum(e["score"] for e in here) / len(here))


def test_relations_count_what_the_other_tables_hold(tables: dict[str, pa.Table]) -> None:
    relations = tables["relations"].to_pylist()
    assert {r["relation"] for r in relations} == {f["relation"] for f in tables["facts"].to_pylist()}
    for row in relations:
        own = rows(tables["facts"], relation=row["relation"], rank=1)
        edges = rows(tables["edges"], relation=row["relation"])
        assert row["n_facts"] == len(own)
        assert row["n_features"] == len({(e["layer"], e["feature"]) for e in edges})
        assert row["layers"] == sorted({e["layer"] for e in edges})
        best = max(own, key=lambda f: f["p"])
        assert row["examples"][0] == f"{best['subject']} -> {best['object']}"


def test_the_same_run_gives_the_same_tables(tables: dict[str, pa.Table], engine: Engine) -> None:
    again = probe_facts(engine, PACK, top_n=4)
    for name, table in tables.items():
        assert table.equals(again[name]), name


def test_specific_is_the_effect_beyond_that_on_other_facts(engine: Engine) -> None:
    from larql_duck.probing.specific import SAMPLE

    found = probe(engine, [CAPITAL], specific=True, few_shot=False).tables
    facts = rows(found["facts"], rank=1)
    assert 2 <= len(facts) <= SAMPLE + 1  # then every other fact is in the sample
    by_fact = {
        f["subject"]: [(e["layer"], e["feature"]) for e in rows(found["edges"], subject=f["subject"])]
        for f in facts
    }
    fact = facts[0]
    drops = []
    for other in facts[1:]:
        ids = engine.encode(other["prompt"])
        capture = engine.capture(ids)
        top = rows(found["edges"], subject=other["subject"])[0]
        every = attribute(engine, capture, range(engine.vocab), rows=[0] * engine.vocab)
        scores = every.features[:, top["layer"], top["feature"]].tolist()
        first = next((t for t, s in enumerate(scores) if s == pytest.approx(top["score"], rel=1e-5)), None)
        assert first is not None
        before = engine.logits(ids)[0].log_softmax(-1)[first]
        with engine.intervene(*feature_edits(by_fact[fact["subject"]], position=-1)):
            drops.append(float(before - engine.logits(ids)[0].log_softmax(-1)[first]))
    drops.sort()
    middle = (drops[(len(drops) - 1) // 2] + drops[len(drops) // 2]) / 2
    assert fact["specific"] == pytest.approx(fact["effect"] - middle, abs=1e-3)
    for edge in found["edges"].to_pylist():
        assert (edge["specific"] is None) == (edge["effect"] is None)


def test_mean_ablation_is_another_measurement(engine: Engine) -> None:
    zero = probe_facts(engine, [LANGUAGE])
    mean = probe_facts(engine, [LANGUAGE], ablation="mean")
    assert zero["facts"].column("p").equals(mean["facts"].column("p"))
    assert not zero["facts"].column("effect").equals(mean["facts"].column("effect"))


def test_answers_alone_are_those_of_a_probing_run(tables: dict[str, pa.Table], engine: Engine) -> None:
    asked = ask_subjects(engine, CAPITAL, ["Japan", "France"], top_n=2)
    for subject in ("Japan", "France"):
        expected = [f for f in rows(tables["facts"], relation="capital", subject=subject) if f["rank"] <= 2]
        own = [f for f in asked if f.subject == subject]
        assert [(f.object, f.rank) for f in own] == [(f["object"], f["rank"]) for f in expected]
        assert [f.p for f in own] == pytest.approx([f["p"] for f in expected], abs=1e-4)
    assert [f.subject for f in asked if f.rank == 1] == ["Japan", "France"]


# -- resuming, progress, bounds ------------------------------------------------------------------------------


class Killed(Exception):
    pass


def counting(engine: Engine, monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> list[int]:
    """Counts the batches of prompts that the engine runs; raises Killed after `limit` of them."""
    calls: list[int] = []

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(engine: Engine, prompts: Any, heads: Any = None) -> Any:
            if limit is not None and len(calls) == limit:
                raise Killed
            calls.append(len(prompts))
            return original(engine, prompts, heads)

        return run

    for name in ("prefill", "read_prompts"):
        run = counted(getattr(prefix, name))
        for module in (prefix, answers, control, measure, specific):
            monkeypatch.setattr(module, name, run, raising=False)
    return calls


def test_a_killed_run_repeats_no_finished_batch(
    tables: dict[str, pa.Table], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        whole = counting(engine, patch)
        probe_facts(engine, PACK, top_n=4, checkpoint=tmp_path / "whole")
    total = len(whole)
    for limit in (1, total // 2, total - 1):
        directory = tmp_path / str(limit)
        with monkeypatch.context() as patch:
            counting(engine, patch, limit)
            with pytest.raises(Killed):
                probe_facts(engine, PACK, top_n=4, checkpoint=directory)
        with monkeypatch.context() as patch:
            rest = counting(engine, patch)
            resumed = probe_facts(engine, PACK, top_n=4, checkpoint=directory)
        assert len(rest) == total - limit
        for name, table in tables.items():
            assert table.equals(resumed[name]), name


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_not_used(
    engine: Engine, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = probe_facts(engine, [LANGUAGE], checkpoint=tmp_path)
    other = Engine.load(open_model(tiny_model("qwen2")))
    mixed = probe_facts(other, [LANGUAGE], checkpoint=tmp_path)
    assert mixed["probes"].equals(probe_facts(other, [LANGUAGE])["probes"])
    for path in tmp_path.glob("*.msgpack"):
        path.write_bytes(path.read_bytes()[:100])
    calls = counting(engine, monkeypatch)
    again = probe_facts(engine, [LANGUAGE], checkpoint=tmp_path)
    assert calls and again["edges"].equals(expected["edges"])


def test_batches_do_not_change_answers(
    tables: dict[str, pa.Table], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.probing import answers, measure, replies

    # Texts behind articles, and answers, go on in several parts.
    monkeypatch.setattr(answers, "_rows_together", lambda engine, steps: 3)
    parts = probe_facts(engine, PACK, top_n=4)
    monkeypatch.undo()
    # No room for two prompts' keys and values.
    monkeypatch.setattr(replies, "BATCH_CACHE", 1)
    monkeypatch.setattr(measure, "BATCH_CACHE", 1)
    calls = counting(engine, monkeypatch)
    single = probe_facts(engine, PACK, top_n=4)
    assert set(calls) == {1}
    for run in (single, parts):
        for name, columns in (("probes", ("p", "entropy")), ("facts", ("p", "p_string", "effect"))):
            for column in columns:
                got, expected = (t[name].column(column).to_pylist() for t in (run, tables))
                pairs = [(a, b) for a, b in zip(got, expected, strict=True) if b is not None]
                assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], abs=1e-4), column
        assert run["facts"].column("object").equals(tables["facts"].column("object"))


def test_progress_rises_to_its_total(engine: Engine) -> None:
    steps: list[tuple[int, int]] = []
    probe_facts(engine, PACK, progress=lambda done, total: steps.append((done, total)))
    # How many prompts there will be is known when the pilot has chosen.
    assert len({total for _, total in steps}) <= 2
    assert all(done <= total for done, total in steps)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1][0] == steps[-1][1]


def test_limits_and_choices() -> None:
    def sizes(**options: object) -> list[tuple[str, int, int]]:
        return [
            (q.relation.name, len(q.variants), len(q.relation.entities))
            for q in questions(PACK, **options)  # type: ignore[arg-type]
        ]

    assert sizes() == [("capital", 4, 7), ("language", 1, 4)]
    assert sizes(relations=["Language"]) == [("language", 1, 4)]
    assert sizes(limit=2) == [("capital", 4, 2), ("language", 1, 2)]
    assert sizes(few_shot=False) == [("capital", 2, 7), ("language", 1, 4)]
    # Subjects go where one prompt each is too much.
    assert sizes(max_prompts=9) == [("capital", 4, 5), ("language", 1, 4)]


@pytest.mark.parametrize("most", [9, 11, 18, 30])
def test_max_prompts_bounds_all_that_is_run(engine: Engine, most: int) -> None:
    found = probe_facts(engine, PACK, max_prompts=most)
    assert found["probes"].num_rows <= most
    asked = {(r["relation"], r["subject"]) for r in found["probes"].to_pylist()}
    assert len(asked) == min(11, most)


def test_mistakes_are_one_clear_line(engine: Engine) -> None:
    with pytest.raises(PackError, match="langage"):
        probe_facts(engine, PACK, relations=["langage"])
    with pytest.raises(LarqlError, match="nothing to ask"):
        probe_facts(engine, [Relation("r", "", ("{} is",))])
    with pytest.raises(LarqlError, match="twice"):
        probe_facts(engine, [CAPITAL, CAPITAL])
    with pytest.raises(LarqlError, match="ablation"):
        probe_facts(engine, PACK, ablation="none")
    with pytest.raises(LarqlError, match="top_n"):
        probe_facts(engine, PACK, top_n=0)
    with pytest.raises(LarqlError, match="max_prompts is 0; it must be at least 1"):
        probe_facts(engine, PACK, max_prompts=0)


def test_awkward_subjects_are_data(engine: Engine) -> None:
    awkward = (
        "'; DROP TABLE facts; --",
        'a "b"',
        "back\\slash",
        "😀",
        "{}",
        "{0}",
        "x" * 10_000,
        "two\nlines",
    )
    found = probe(engine, [Relation("r", "", ("The language of {} is",), entities=awkward)])
    probed = found.tables["probes"].to_pylist()
    assert [r["subject"] for r in probed] == [s for s in awkward if len(s) < 1000]
    assert [r["prompt"] for r in probed] == [f"The language of {r['subject']} is" for r in probed]
    assert sum("was not asked about" in notice for notice in found.notices) == 1


@pytest.mark.parametrize(
    "module", ["clustering", "confidence", "merge", "packs", "page", "publish", "quality"]
)
def test_what_needs_no_model_loads_no_torch(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys; import larql_duck.probing.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
