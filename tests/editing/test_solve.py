"""Detectors in closed form, keys and what is said: the parts of a solve."""

from __future__ import annotations

import math

import pytest
import torch

from larql_duck.editing.detector import detectors, frames_of, read_inputs
from larql_duck.editing.relation_prompts import prompts_for
from larql_duck.editing.solve import RewriteRequest, _own_rows, _rewrite_prompts
from larql_duck.editing.value import RewritePrompt, values
from larql_duck.inference.scoring import (
    answer_ids,
    filled,
    next_token_probabilities,
    subject_position,
    target_probabilities,
)
from larql_duck.session import Session
from tests.editing.features import FAMILIES, TEMPLATE


def _keys(seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Keys of three subjects in eight contexts, keys of others, and the second moment of noise."""
    chance = torch.Generator().manual_seed(seed)
    subjects = torch.randn(3, 1, 48, generator=chance)
    keys = subjects + 0.3 * torch.randn(3, 8, 48, generator=chance)
    return list(keys), torch.randn(40, 48, generator=chance), torch.eye(48, dtype=torch.float64)


def test_a_detector_answers_at_its_own_keys_alone() -> None:
    keys, zeros, second = _keys()
    found = detectors(keys, [[0], [1], [2]], zeros, second)
    answers = torch.stack([k.double() @ found.w.t() for k in keys])
    for f in range(3):
        assert answers[f, :, f].mean() == pytest.approx(1, abs=1e-6)
        assert (answers[f, :, f] - 1).abs().max() < 0.25
        assert answers[f, :, [g for g in range(3) if g != f]].abs().max() < 0.25
    assert (zeros.double() @ found.w.t()).abs().max() < 0.35


def test_facts_of_one_subject_answer_at_each_others_keys() -> None:
    keys, zeros, second = _keys()
    found = detectors([*keys, keys[0]], [[0, 3], [1], [2], [0, 3]], zeros, second)
    assert (keys[0].double() @ found.w[3] - 1).abs().max() < 0.25
    assert torch.allclose(found.w[0], found.w[3])


def test_unseen_is_what_a_fit_without_the_key_gives() -> None:
    keys, zeros, second = _keys()
    whole = detectors(keys, [[0], [1], [2]], zeros, second, ridge=0.05)
    assert bool((whole.unseen < whole.seen).all())
    # Refitted by hand without one key, everything else of the fit as it was.
    x = torch.cat([k.double() for k in keys])
    metric = second + 0.01 * torch.eye(48, dtype=torch.float64)
    slack = 0.05 * (x @ torch.linalg.inv(metric) * x).sum(1).mean()
    weight = min(1.0, 2 * len(x) / len(zeros)) ** 0.5
    left = []
    for i in range(8):
        keep = [j for j in range(len(x)) if j != i]
        rows = torch.cat([x[keep], weight * zeros.double()])
        y = torch.tensor([1.0 if j < 8 else 0.0 for j in keep] + [0.0] * len(zeros), dtype=torch.float64)
        w = torch.linalg.solve(metric + rows.t() @ rows / slack, rows.t() @ y / slack)
        left.append(float(x[i] @ w))
    assert float(whole.unseen[0]) == pytest.approx(sum(left) / 8, abs=1e-6)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_no_key_stands_at_position_0(session: Session) -> None:
    engine = session.model.engine
    own = prompts_for(session.workspace, "capital", ("{} has the capital",))
    rows, owner, weights = _own_rows(engine, [RewriteRequest("Paris", "capital", "Rome", own.templates, own)])
    assert len(rows) == len(owner) == len(weights) > 20
    # This tokenizer puts nothing before a text, so Paris alone would be position 0.
    assert len(engine.tokenizer.encode("Paris")) == 1
    assert all(len(row) > 1 for row in rows)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_where_a_text_begins_with_its_subject_a_fact_is_written_behind_it(session: Session) -> None:
    engine = session.model.engine
    own = prompts_for(session.workspace, "capital", ("{} has the capital", "The capital of {} is"))
    fact = RewriteRequest("Paris", "capital", "Rome", own.templates, own)
    [paris] = engine.tokenizer.encode("Paris")
    rows, _, _ = _own_rows(engine, [fact])
    behind = {row[1] for row in rows if row[0] == paris}
    assert {engine.tokenizer.encode("Paris" + word)[1] for word in (" is", " has", "'s")} <= behind
    assert len(behind) > 5
    prompts = _rewrite_prompts(engine, [fact])
    first = [p for p in prompts if p.ids[0] == paris]
    assert first and all(p.at == 1 for p in first)
    assert any(p.says for p in first) and any(not p.goal for p in first)
    # Where something stands before it, at the subject itself.
    assert all(p.ids[p.at] == engine.tokenizer.entity_ids("Paris")[-1] for p in prompts if p not in first)


def test_frames_come_once_by_what_stands_before_the_subject() -> None:
    frames = frames_of(("The capital of {} is", "The capital of {} was"), ("The currency of {} is the",))
    starts = [f.partition("{}")[0] for f in frames]
    assert len(set(starts)) == len(starts)
    assert {"The capital of ", "The currency of ", "Note: "} <= set(starts)


def test_articles_and_answers_behind_marks() -> None:
    assert filled("{} is a country", "the Netherlands") == ("The Netherlands is a country", 15)
    assert filled("In {} they", "the Netherlands")[0] == "In the Netherlands they"


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_keys_and_probabilities_are_those_of_a_whole_pass(session: Session) -> None:
    engine = session.model.engine
    prompts = ["The capital of France is", "Europe"]
    rows = [engine.tokenizer.encode(p) for p in prompts]
    keys = read_inputs(engine, rows, 1)
    for row, key in zip(rows, keys, strict=True):
        with engine.recording({"ffn_input"}) as capture:
            engine.logits(engine.pad(row))
        assert torch.allclose(capture.need("ffn_input")[1][0].float(), key, atol=1e-4)
    place = subject_position(engine.tokenizer, "The capital of {} is", "France")
    assert engine.tokenizer.decode([place.ids[place.at]]).strip() == "France"
    target = "euro cold"
    ids = answer_ids(engine.tokenizer, prompts[0], target)
    log_p, now = 0.0, list(rows[0])
    for token in ids:
        log_p += float(torch.log_softmax(engine.logits(engine.pad(now))[0], -1)[token])
        now.append(token)
    [found] = target_probabilities(engine, [("The capital of {} is", "France", target)])
    assert found.p == pytest.approx(math.exp(log_p), rel=1e-3)
    assert torch.allclose(
        next_token_probabilities(engine, prompts)[0], engine.logits(prompts[:1])[0].softmax(-1), atol=1e-5
    )


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_a_value_is_judged_as_the_model_will_say_it(session: Session) -> None:
    """The loss of the cached passes above the layer is that of whole passes with the value added."""
    engine = session.model.engine
    ids = answer_ids(engine.tokenizer, TEMPLATE, "Tokyo")
    rewrite_prompts = []
    for opening in ("", "Note: ", "and "):
        place = subject_position(engine.tokenizer, opening + TEMPLATE, "France", ids)
        rewrite_prompts.append(RewritePrompt(place.ids, place.at, (0,), len(ids)))
    start = 0.1 * torch.randn(1, engine.hidden, generator=torch.Generator().manual_seed(1))
    seen: list[float] = []
    values(
        engine,
        1,
        rewrite_prompts,
        1,
        start=start,
        steps=3,
        trace=lambda step, loss, *_: seen.append(float(loss[0])),
    )
    [first, *_] = rewrite_prompts

    def add(module, args, out):
        out = out.clone()
        out[:, first.at] += start[0]
        return out

    handle = engine.modules.layers[1].down.register_forward_hook(add)
    try:
        row = engine.pad(first.ids[: -len(ids)])
        log_p = torch.log_softmax(engine.logits(row)[0], -1)
    finally:
        handle.remove()
    assert seen[0] == pytest.approx(-float(log_p[ids[0]]), rel=1e-3)


def test_a_gate_stays_shut_below_the_threshold_where_inputs_have_a_steady_part() -> None:
    from larql_duck.editing.detector import GATE, THRESHOLD, feature_rows, steady_direction

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=draw, dtype=torch.float64)
    x[:, 0] = 5 + 0.05 * x[:, 0]
    second = x.t() @ x / len(x)
    u = steady_direction(x.mean(0), second)
    assert u is not None
    assert (x @ u - 1).abs().max() < 0.2
    w = torch.zeros(1, 16, dtype=torch.float64)
    w[0, 1] = 1.0
    act = torch.nn.functional.silu
    gate, up = feature_rows(w, u)

    def fires(answer: float) -> float:
        at = x[:1].clone()
        at[0, 1] = answer
        return float((act(at @ gate.t()) * (at @ up.t()))[0, 0])

    assert fires(1.0) == pytest.approx(GATE, rel=0.2)
    # Wide open around a full answer, shut at half of one.
    assert all(0.6 < fires(a) / fires(1.0) < 1.3 for a in (0.9, 1.1))
    assert all(abs(fires(a)) < 0.05 * GATE for a in (0.5 * THRESHOLD, 0.0, -1.0))
    # Inputs without such a part: the gate opens in proportion.
    free = torch.randn(400, 16, generator=draw, dtype=torch.float64)
    assert steady_direction(free.mean(0), free.t() @ free / 400) is None
    assert torch.equal(feature_rows(w, None)[0], GATE * w) and torch.equal(feature_rows(w, None)[1], w)
