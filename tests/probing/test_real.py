"""What SmolLM2 knows: figures that were measured with transformers on the same weights."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from larql_duck.inference.attribution import attribute
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import feature_edits
from larql_duck.knowledge.relations import Relation
from larql_duck.models.opening import open_model
from larql_duck.probing.facts import probe
from tests.probing.support import probe_facts

pytestmark = pytest.mark.real

CAPITAL = Relation(
    "capital", "", ("The capital of {} is",),
    entities=("France", "Germany", "Japan", "Italy", "Spain", "Australia", "Greece", "Argentina"),
)  # fmt: skip
OPPOSITE = Relation("opposite", "", ("The opposite of {} is",), answer="word", entities=("hot", "good"))
SPEAK = Relation("language", "", ("People in {} speak",), many=True, entities=("Mexico",))
SYMBOL = Relation("symbol", "", ("The chemical symbol for {} is",), answer="symbol", entities=("gold",))


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Engine:
    return Engine.load(open_model(smollm2_gguf))


@pytest.fixture(scope="module")
def tables(engine: Engine) -> dict[str, pa.Table]:
    return probe_facts(engine, [CAPITAL, OPPOSITE, SPEAK, SYMBOL])


def test_what_the_model_states(tables: dict[str, pa.Table]) -> None:
    best = {r["subject"]: (r["object"], r["p"]) for r in tables["facts"].to_pylist() if r["rank"] == 1}
    expected = {
        "France": ("Paris", 0.773), "Germany": ("Berlin", 0.796), "Japan": ("Tokyo", 0.704),
        "Italy": ("Rome", 0.381), "Spain": ("Madrid", 0.378), "Australia": ("Sydney", 0.362),
        "hot": ("cold", 0.685), "Mexico": ("Spanish", 0.630), "gold": ("Au", 0.959),
    }  # fmt: skip
    for subject, (answer, p) in expected.items():
        assert best[subject] == (answer, pytest.approx(p, abs=0.01)), subject
    probes = {r["prompt"]: r for r in tables["probes"].to_pylist()}
    assert probes["The capital of France is"]["p"] == pytest.approx(0.773, abs=0.005)
    assert probes["The capital of France is"]["predicted"] == " Paris"


def test_answers_of_several_tokens_are_whole(tables: dict[str, pa.Table]) -> None:
    facts = [r for r in tables["facts"].to_pylist() if r["subject"] == "Argentina"]
    assert {"La Paz", "Buenos Aires"} == {r["object"] for r in facts if r["p"] > 0.1}
    assert all(r["p_string"] <= r["p"] for r in facts)


def test_the_features_of_a_fact_carry_it(tables: dict[str, pa.Table], engine: Engine) -> None:
    edges = [r for r in tables["edges"].to_pylist() if r["subject"] == "France"]
    first = edges[0]
    assert (first["layer"], first["feature"]) == (24, 1005)
    assert first["effect"] == pytest.approx(0.49, abs=0.02)
    effects = {(e["layer"], e["feature"]): e["effect"] for e in edges if e["effect"] is not None}
    assert effects[29, 511] == pytest.approx(-0.01, abs=0.01)  # lifts everything, decides nothing
    # The eight strongest of 46,080 features, taken away at the last position.
    (paris,) = engine.tokenizer.encode(" Paris", special=False)
    slots = [(e["layer"], e["feature"]) for e in edges[:8]]
    with engine.intervene(*feature_edits(slots, position=-1)):
        p = engine.logits("The capital of France is")[0].softmax(-1)[paris]
    assert float(p) == pytest.approx(0.075, abs=0.005)
    for fact in tables["facts"].to_pylist():
        if fact["rank"] == 1 and fact["relation"] == "capital" and fact["p"] >= 0.3:
            assert fact["effect"] > 0.7  # p falls by more than half


def test_parts_add_up_on_the_real_model(engine: Engine) -> None:
    prompts = [CAPITAL.prompt(s) for s in CAPITAL.entities]
    capture = engine.capture(prompts)
    tokens = capture.need("logits").argmax(-1)
    parts = attribute(engine, capture, tokens)
    assert float((parts.summed() - parts.total).abs().max()) <= 1e-2
    residual = capture.need("residual")
    total = residual[0] + capture.need("attn_delta").sum(0) + capture.need("ffn_delta").sum(0)
    assert float(((total - residual[-1]).norm(dim=-1) / residual[-1].norm(dim=-1)).max()) <= 1e-4


def test_long_text_is_predicted_as_by_transformers(engine: Engine) -> None:
    """Perplexity over text, which a wrong rotation of queries and keys would ruin while capitals survive it."""
    import torch

    text = (
        "The city of Paris lies on the river Seine in the north of France. It has been the capital of the country "
        "for many centuries and is known for its museums, its food and its architecture. Every year millions of "
        "people from all over the world come to see the Eiffel Tower, which was built for an exhibition in 1889, "
        "and the paintings of the Louvre. The river divides the city into two halves, the left bank and the right "
        "bank, and many bridges connect them. In the middle there are two islands with old churches and houses."
    )
    batch = engine.encode(text)
    logits = engine.run(batch.ids, None, batch.positions, keep=0)[0].log_softmax(-1)
    nll = -logits[:-1].gather(1, batch.ids[0, 1:, None]).mean()
    assert 4 < float(torch.exp(nll)) < 15


PLANETS = """
pack: planets
relations:
  - relation: position
    description: The position of a planet, counted from the sun.
    answer: number
    templates: ["Counted from the sun, {} is planet number"]
    examples: [[Venus, "2"]]
    entities: [Mercury, Mars, Neptune]
"""


def test_the_pack_of_the_readme_gives_numbers(tmp_path: Path, engine: Engine) -> None:
    """SmolLM2 puts a blank of its own before a digit."""
    (tmp_path / "planets.yaml").write_text(PLANETS)
    facts = probe(engine, tmp_path / "planets.yaml").tables["facts"].to_pylist()
    best = {row["subject"]: row for row in facts if row["rank"] == 1}
    assert set(best) == {"Mercury", "Mars", "Neptune"}
    assert all(row["object"].isdecimal() and row["p"] > 0.1 for row in best.values())
    assert all(row["prompt"].endswith(" ") and row["n_features"] for row in best.values())
