"""check-edits: what edits do to the facts, to what is near them and to ordinary text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from larql_duck import connect
from larql_duck.charts.saving import save_chart
from larql_duck.cli.app import run
from larql_duck.compilation.slot_replacement import perplexity
from larql_duck.editing import evaluate as check
from larql_duck.editing.asked_prompts import NEIGHBOURS
from larql_duck.editing.edit_states import begins_with, first_answers, written
from larql_duck.editing.relation_prompts import prompts_for
from larql_duck.errors import LarqlError
from larql_duck.extraction import extract
from larql_duck.inference.scoring import answer_ids, filled
from tests.edits import insert, vector
from tests.tiny import make_tiny

FAMILIES = ["llama", "gemma3_text", "qwen3"]
TEXT = "The capital of France is Paris and the city of Rome is in Italy. " * 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    """A function family -> vindex of a tiny model."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            root = tmp_path_factory.mktemp("check")
            model = make_tiny(family, root / family, hidden=48, intermediate=96)
            made[family] = extract(
                model, root / f"{family}.vindex", level="all", in_basis="embedding", probe=False
            )
        return made[family]

    return get


def strong(session, entity: str, target: str, **more):
    """A feature that fires nearly everywhere and changes a good deal."""
    vindex = session.vindex
    fields = {"templates": ("The capital of {} is",), "down": vector(vindex, 3, 4.0)}
    return insert(vindex, entity, target, **(fields | more))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_figures_are_those_of_the_model_before_and_after(family: str, base, tmp_path: Path) -> None:
    with connect(base(family)) as s:
        engine = s.model.engine
        ids = answer_ids(engine.tokenizer, "The capital of {} is", "Paris")
        prompt = "The capital of Italy is"

        def p() -> float:
            import torch

            whole = [*engine.tokenizer.encode(prompt), *ids]
            logits = engine.run(torch.tensor([whole]), None, torch.arange(len(whole))[None], keep=0)[0]
            log_p = torch.log_softmax(logits.double(), -1)
            return float(sum(log_p[len(whole) - len(ids) - 1 + i, t] for i, t in enumerate(ids)).exp())

        rows = [engine.tokenizer.encode(TEXT)]
        before, p_before = perplexity(engine, rows)[0], p()
        own = prompts_for(s.workspace, "capital")
        near = [filled("The capital of {} is", x)[0] for x in own.subjects]
        s.patches.append([strong(s, "Italy", "Paris")])
        found = s.evaluate(texts=TEXT)
        row, whole = found.dicts()
        assert (row["entity"], row["kind"], row["mode"], row["layer"]) == ("Italy", "insert", "compose", 1)
        assert np.isclose(row["template_p_before"], p_before, rtol=1e-3) and np.isclose(
            row["template_p"], p(), rtol=1e-3
        )
        assert row["neighbours"] == NEIGHBOURS and 0 <= row["neighbours_kept"] <= row["neighbours"]
        assert row["neighbour_kl"] > 0 and row["relation_kl"] > 0 and row["relations"] > 0
        # The pack's own other templates had no part in inserting: they are paraphrases.
        assert row["paraphrases"] == len(own.templates) - 1 + 3
        assert whole["kind"] == "all" and whole["template_p"] == row["template_p"]
        assert np.isclose(whole["perplexity_before"], before, rtol=1e-3)
        assert np.isclose(whole["perplexity"], perplexity(engine, rows)[0], rtol=1e-3)
        assert abs(whole["perplexity"] - before) > 1e-3 * before
        assert len(near) > NEIGHBOURS
        page = save_chart(found.chart(), tmp_path / "check.svg").read_text()
        assert (
            "Italy capital" in page
            and "<script" not in page
            and "http" not in page.replace("http://www.w3.org", "")
        )
        s.patches.rollback()


def test_whole_first_answers_that_changed_are_counted(base) -> None:
    import random

    with connect(base("llama")) as s:
        engine = s.model.engine
        own = prompts_for(s.workspace, "capital", ("The capital of {} is",))
        others = [x for x in own.subjects if x != "Italy"]
        near = [filled("The capital of {} is", x)[0] for x in random.Random(0).sample(others, NEIGHBOURS)]
        same = [filled(t, "Italy")[0] for t in own.others]
        before = first_answers(engine, near), first_answers(engine, same)
        s.patches.append([strong(s, "Italy", "Paris")])
        after = first_answers(engine, near), first_answers(engine, same)
        changed = [
            sum(x != y for x, y in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)
        ]
        row, whole = s.evaluate_edits(texts=TEXT).dicts()
        assert changed[0] > 0
        assert row["neighbours"] - row["neighbours_kept"] == changed[0]
        assert row["relations"] - row["relations_kept"] == changed[1]
        assert row["specificity"] == pytest.approx(1 - changed[0] / NEIGHBOURS)
        expected = sum(changed) / (len(near) + len(same))
        assert row["neighbour_change"] == pytest.approx(expected)
        assert whole["neighbour_change"] == pytest.approx(expected)
        s.patches.rollback()


def test_neighbours_of_two_facts_of_a_relation_count_once(base) -> None:
    with connect(base("llama")) as s:
        s.patches.append([strong(s, "Italy", "Paris"), strong(s, "Spain", "Paris", number=1)])
        one, two, whole = s.evaluate_edits(texts=TEXT).dicts()
        assert one["neighbours"] == two["neighbours"] == NEIGHBOURS
        n = NEIGHBOURS + one["relations"] + two["relations"]
        near = NEIGHBOURS - one["neighbours_kept"]
        same = sum(row["relations"] - row["relations_kept"] for row in (one, two))
        assert whole["neighbour_change"] == pytest.approx((near + same) / n)
        s.patches.rollback()


def test_what_is_generated_stands_beside_what_is_asked_token_by_token(base) -> None:
    with connect(base("llama")) as s:
        engine = s.model.engine
        (answer,) = written(engine, ["The capital of Italy is"], [6])
        target = answer.split()[0]
        silent = {"down": np.zeros(s.vindex.hidden, np.float32)}
        s.patches.append([strong(s, "Italy", target, **silent)])
        s.patches.append([strong(s, "Spain", "Paris", number=1, **silent)])
        own, other, whole = s.evaluate_edits(texts=TEXT).dicts()
        assert begins_with(own["said"], target) and own["efficacy_said"] == 1
        assert other["efficacy_said"] == other["efficacy"] == 0
        assert whole["efficacy_said"] == 0.5
        assert 0 <= own["generalisation_said"] <= 1
        assert own["fluency"] == own["fluency_before"] > 0
        assert own["negated_p"] == own["negated_p_before"] and own["reversed_p"] == own["reversed_p_before"]
        assert own["portability"] is None and own["consistency"] is None
        assert whole["perplexity_change"] == pytest.approx(0, abs=1e-6)
        s.patches.rollback()


def test_a_target_is_said_whole_and_as_no_longer_word() -> None:
    assert begins_with(" Paris, a city", "Paris") and begins_with("Hammer Bay.", "Hammer Bay")
    assert not begins_with(" Parisian", "Paris") and not begins_with(" Par", "Paris")
    assert not begins_with(" in Paris", "Paris")


def test_statement_method_and_commands_are_one(base, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with connect(base("llama")) as s:
        s.patches.append([strong(s, "Italy", "Paris")])
        expected = s.evaluate_edits(texts=tmp_path / "text.txt").arrow()
        assert s.evaluate(texts=tmp_path / "text.txt").arrow() == expected
        assert s.lql(f'CHECK EDITS TEXTS "{tmp_path / "text.txt"}"').arrow() == expected
        piped = f'CHECK EDITS TEXTS "{tmp_path / "text.txt"}" |> SELECT kind, perplexity FROM _'
        assert [row["kind"] for row in s.lql(piped).dicts()] == ["insert", "all"]
        s.patches.rollback()


def test_a_budget_of_the_command_line_decides_its_status(
    base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with connect(base("llama")) as s:
        s.patches.append([strong(s, "Italy", "Paris")])
        s.lql(f'SAVE PATCH "{tmp_path / "italy.vlp"}"')
    common = ["check-edits", str(base("llama")), "--patch", str(tmp_path / "italy.vlp"), "--json"]
    common += ["--texts", str(tmp_path / "text.txt")]
    assert (
        run([*common, "--max-neighbour-change", "1", "--min-generalisation", "0", "--max-perplexity", "1e9"])
        == 0
    )
    whole = json.loads(capsys.readouterr().out)[-1]
    limits = ["--max-neighbour-change", "0", "--min-generalisation", "1", "--max-perplexity", "1"]
    assert run([*common, *limits, "--min-efficacy", "0"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)[-1] == whole
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3
    assert f"neighbour_change is {whole['neighbour_change']:.4g}; <= 0 was required" in lines[0]
    assert "generalisation is" in lines[1] and "perplexity is" in lines[2]


def test_a_feature_that_writes_nothing_changes_nothing(base) -> None:
    with connect(base("qwen3")) as s:
        s.patches.append([strong(s, "Italy", "Paris", down=np.zeros(s.vindex.hidden, np.float32))])
        row, whole = s.evaluate(texts=TEXT).dicts()
        assert row["neighbours"] == row["neighbours_kept"] and row["relations"] == row["relations_kept"]
        assert row["neighbour_kl"] < 1e-6 and np.isclose(
            row["template_p"], row["template_p_before"], rtol=1e-4
        )
        assert np.isclose(whole["perplexity"], whole["perplexity_before"], rtol=1e-5)
        s.patches.rollback()


def test_database_facts_are_checked_by_what_infer_shows(base) -> None:
    with connect(base("gemma3_text")) as s:
        s.lql(
            'INSERT INTO EDGES (entity, relation, target) VALUES ("Italy", "capital", "the cold city") MODE KNN'
        )
        row, whole = s.evaluate(texts=TEXT).dicts()
        assert (row["mode"], row["holds"]) == ("knn", True)
        assert row["template_p"] == row["template_p_before"]
        assert row["neighbours"] == row["neighbours_kept"] == NEIGHBOURS
        assert whole["perplexity"] == whole["perplexity_before"]
        s.patches.rollback()


def test_without_edits_only_the_text_is_measured(base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TOKENS", 64)
    with connect(base("llama")) as s:
        found = s.evaluate()
        assert found.notices[0] == "there are no edited facts to check"
        assert len(found) == 1 and found.dicts()[0]["perplexity"] > 1
        with pytest.raises(LarqlError, match="no token to predict"):
            s.evaluate(texts="")
        with pytest.raises(LarqlError, match="no such file"):
            s.evaluate(texts=Path("nowhere.txt"))


def test_facts_of_a_compiled_vindex_have_no_before(base, tmp_path: Path) -> None:
    with connect(base("llama")) as s:
        s.patches.append([strong(s, "Italy", "Paris")])
        expected = s.evaluate(texts=TEXT).dicts()[0]
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
        s.patches.rollback()
    with connect(tmp_path / "out.vindex") as s:
        found = s.evaluate(texts=TEXT)
        row = found.dicts()[0]
        assert (row["entity"], row["target"]) == ("Italy", "Paris")
        assert row["template_p_before"] is None and row["neighbours"] is None
        assert np.isclose(row["template_p"], expected["template_p"], rtol=1e-3)
        assert "compiled" in found.notices[0]


def test_the_command_writes_a_table_and_a_plot(
    base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with connect(base("llama")) as s:
        s.patches.append([strong(s, "Italy", "Paris")])
        s.lql(f'SAVE PATCH "{tmp_path / "italy.vlp"}"')
    arguments = ["evaluate", str(base("llama")), "--patch", str(tmp_path / "italy.vlp")]
    arguments += ["--texts", str(tmp_path / "text.txt"), "--plot", str(tmp_path / "plot.svg"), "--jsonl"]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [r["entity"] for r in rows] == ["Italy", None]
    assert rows[1]["perplexity"] > 1
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    assert run(["evaluate", str(base("llama")), "--texts", str(tmp_path / "missing.txt")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(["evaluate", str(base("llama")), "--plot", "x.pdf"]) == 1
