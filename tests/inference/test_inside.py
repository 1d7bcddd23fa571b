"""Capture, interventions, attribution and effects, each against an independent computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from larql_duck.aliases import Slot
from larql_duck.errors import LarqlError
from larql_duck.inference.attribution import attribute
from larql_duck.inference.capture import FOR_ATTRIBUTION, PARTS
from larql_duck.inference.effects import Effects, effects_after
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import FeatureEdit, ResidualEdit, Sparse, feature_edits
from larql_duck.inference.prefix import prefill
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS
from tests.tiny import make_tiny


def log_p(engine: Engine, prompt: str, token: int) -> float:
    return float(engine.logits(prompt)[0].log_softmax(-1)[token])


# -- capture -------------------------------------------------------------------------------------------------


def test_deltas_add_up_to_the_final_residual(tiny: Tiny) -> None:
    for positions in ("last", "all"):
        capture = tiny.engine.capture(PROMPTS, positions=positions)
        residual = capture.need("residual")
        total = residual[0] + capture.need("attn_delta").sum(0) + capture.need("ffn_delta").sum(0)
        gap = (total - residual[-1]).norm(dim=-1) / residual[-1].norm(dim=-1)
        assert float(gap.max()) <= 1e-4


def test_residuals_equal_transformers_hidden_states(tiny: Tiny) -> None:
    ids = torch.tensor([tiny.ids[0]])
    with torch.no_grad():
        out = tiny.reference(ids, output_hidden_states=True)
    residual = tiny.engine.capture(PROMPTS[0], positions="all").need("residual")[:, 0]
    # transformers' last entry is after the final norm
    for ours, theirs in zip(residual[:-1], out.hidden_states[:-1], strict=True):
        assert torch.allclose(ours, theirs[0], atol=1e-4)


def test_captured_parts_are_what_the_ffn_computes(tiny: Tiny) -> None:
    """gate -> activation -> down, recomputed from the captured FFN input and the stored matrices."""
    from transformers.activations import ACT2FN

    from larql_duck.models.source import ffn_matrix

    engine, source = tiny.engine, tiny.source
    capture = engine.capture(PROMPTS, PARTS - {"attention"})
    name = source.family.get(source.config, source.family.act_key)
    for layer in range(engine.n_layers):
        x = capture.need("ffn_input")[layer]
        bias = source.tensors.get(source.family.gate_name(layer).replace("weight", "bias"), torch.zeros(1))
        gate = x @ ffn_matrix(source, layer, "gate").t() + bias
        up = ffn_matrix(source, layer, "up")
        activation = ACT2FN[name](gate) if up is None else ACT2FN[name](gate) * (x @ up.t())
        assert torch.allclose(capture.need("gate")[layer], gate, atol=1e-4)
        assert torch.allclose(capture.need("activation")[layer], activation, atol=1e-4)


def test_last_position_is_the_last_of_all_positions(tiny: Tiny) -> None:
    parts = PARTS - {"attention"}
    last = tiny.engine.capture(PROMPTS, parts)
    every = tiny.engine.capture(PROMPTS, parts, positions="all")
    for name in ("residual", "ffn_input", "gate", "activation", "attn_delta", "ffn_delta", "heads"):
        assert torch.equal(last.need(name), every.need(name)[:, :, -1]), name


def test_the_final_residual_reads_as_the_logits(tiny: Tiny) -> None:
    capture = tiny.engine.capture(PROMPTS)
    assert torch.allclose(
        tiny.engine.unembed(capture.need("residual")[-1]), capture.need("logits"), atol=1e-4
    )


def test_what_was_not_captured_is_named(llama: Tiny) -> None:
    capture = llama.engine.capture(PROMPTS, ["residual"])
    with pytest.raises(LarqlError, match="activation"):
        attribute(llama.engine, capture, [1, 2, 3, 4])
    with pytest.raises(LarqlError, match="residuals"):
        llama.engine.capture(PROMPTS, ["residuals"])


def test_hooks_do_not_outlive_a_failed_pass(llama: Tiny) -> None:
    expected = llama.engine.logits(PROMPTS)
    with pytest.raises(RuntimeError), llama.engine.recording(PARTS), llama.engine.zeroed([(0, 1)]):
        raise RuntimeError
    assert torch.equal(llama.engine.logits(PROMPTS), expected)
    assert llama.engine.model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.engine.model.modules())


# -- attribution ---------------------------------------------------------------------------------------------


def test_contributions_add_up_to_the_centred_logit(tiny: Tiny) -> None:
    engine = tiny.engine
    capture = engine.capture(PROMPTS, FOR_ATTRIBUTION | {"heads"})
    tokens = torch.tensor([5, 17, 40, 71])
    parts = attribute(engine, capture, tokens, heads=True)
    # The centred logit before any soft-cap, from the model's own logits.
    logits = capture.need("logits")
    cap = getattr(engine.model.config, "final_logit_softcapping", None)
    raw = logits if cap is None else torch.atanh(logits / cap) * cap
    expected = raw.gather(1, tokens[:, None])[:, 0] - raw.mean(-1)
    assert torch.allclose(parts.total, expected, atol=1e-3)
    assert torch.allclose(parts.summed(), parts.total, atol=1e-4)
    assert float(parts.total.abs().min()) > 0.01


def test_heads_add_up_to_their_layers_attention(tiny: Tiny) -> None:
    engine = tiny.engine
    capture = engine.capture(PROMPTS, FOR_ATTRIBUTION | {"heads"})
    parts = attribute(engine, capture, [5, 17, 40, 71], heads=True)
    assert parts.heads is not None
    missing = parts.attention - parts.heads.sum(-1)
    if tiny.source.family.name == "gpt2":  # the output projection's bias belongs to no head
        assert float(missing.abs().max()) > 0.01
    else:
        assert torch.allclose(missing, torch.zeros_like(missing), atol=1e-4)


def test_a_contribution_is_the_gradient_times_the_activation(tiny: Tiny) -> None:
    """Autograd through final norm and post-norms with their factors held fixed, on the last layer's features."""
    engine = tiny.engine
    capture = engine.capture(PROMPTS[:1])
    token, last = 17, engine.n_layers - 1
    parts = engine.modules.layers[last]
    weight = parts.down_rows().double()
    y = capture.need("ffn_branch")[last][0].double()
    x = capture.need("residual")[-1][0].double()
    activation = capture.need("activation")[last][0].double().requires_grad_()
    written = activation @ weight
    if parts.ffn_post is not None:
        eps = tiny.source.family.norm_eps(tiny.source.config)
        written = written * (1 + parts.ffn_post.weight.double()) / (y.pow(2).mean() + eps).sqrt()
    if tiny.source.family.norm == "layer":
        norm = engine.modules.final_norm
        normed = (written - written.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight.double()
    else:
        norm_weight = engine.modules.final_norm.weight.double() + tiny.source.family.norm_offset
        eps = tiny.source.family.norm_eps(tiny.source.config)
        normed = written * norm_weight / (x.pow(2).mean() + eps).sqrt()
    logits = normed @ engine.head_weight.double().t()
    (logits[token] - logits.mean()).backward()
    assert activation.grad is not None
    expected = (activation.grad * activation).detach()
    got = attribute(engine, capture, [token]).features[0, last].double()
    assert torch.allclose(got, expected, atol=1e-4)


def test_several_tokens_of_one_prompt(llama: Tiny) -> None:
    capture = llama.engine.capture(PROMPTS)
    one = attribute(llama.engine, capture, [5, 6, 7, 8])
    many = attribute(llama.engine, capture, [7, 5, 9], rows=[2, 0, 2])
    assert torch.allclose(many.features[0], one.features[2], atol=1e-6)
    assert torch.allclose(many.features[1], one.features[0], atol=1e-6)
    assert torch.allclose(many.summed(), many.total, atol=1e-4)


def test_attribution_at_every_position(llama: Tiny) -> None:
    capture = llama.engine.capture(PROMPTS[:2], positions="all")
    t = capture.need("residual").shape[2]
    rows = [t - 1, 2 * t - 1, 3]
    parts = attribute(llama.engine, capture, [5, 6, 7], rows=rows)
    last = attribute(llama.engine, llama.engine.capture(PROMPTS[:2]), [5, 6])
    assert torch.allclose(parts.total[:2], last.total, atol=1e-5)
    assert torch.allclose(parts.summed(), parts.total, atol=1e-4)


# -- interventions -------------------------------------------------------------------------------------------


def without(tiny: Tiny, slots: list[tuple[int, int]]) -> Engine:
    """An engine on the same weights with the slots' down columns set to zero: nothing is ever written."""
    from tests.inference.support import StateSource

    source = StateSource(tiny.path)
    for layer, feature in slots:
        name = source.family.down_name(layer)
        matrix = source.tensors[name].clone()
        if source.family.transposed:
            matrix[feature] = 0
        else:
            matrix[:, feature] = 0
        source.tensors[name] = matrix
    return Engine.load(source)


def test_zeroed_features_equal_a_model_whose_down_columns_are_zero(tiny: Tiny) -> None:
    slots = [(0, 3), (1, 5), (1, 60), (2, 0)]
    with tiny.engine.zeroed(slots):
        got = tiny.engine.logits(PROMPTS)
    assert torch.allclose(got, without(tiny, slots).logits(PROMPTS), atol=1e-4)
    assert float((got - tiny.engine.logits(PROMPTS)).abs().max()) > 1e-2


def test_rows_of_a_batch_carry_different_edits(tiny: Tiny) -> None:
    engine = tiny.engine
    edit = FeatureEdit(1, torch.tensor([4, 9, 4]), 0.0, torch.tensor([0, 2, 2]))
    with engine.intervene(edit):
        got = engine.logits(PROMPTS)
    for row, slots in ((0, [(1, 4)]), (1, []), (2, [(1, 9), (1, 4)]), (3, [])):
        with engine.zeroed(slots):
            assert torch.allclose(got[row], engine.logits(PROMPTS[row])[0], atol=1e-4)


@pytest.mark.parametrize("mode", ["set", "add", "scale"])
@pytest.mark.parametrize("position", [None, -1, 1])
def test_activations_take_the_given_values_at_the_given_position(
    llama: Tiny, mode: str, position: int | None
) -> None:
    engine = llama.engine
    prompts = [PROMPTS[0], PROMPTS[2]]
    before = engine.capture(prompts, ["activation"], positions="all").need("activation")[0]
    values = torch.tensor([2.5, -1.0])
    edit = FeatureEdit(0, torch.tensor([3, 7]), values, None, mode, position)  # type: ignore[arg-type]
    with engine.intervene(edit):
        after = engine.capture(prompts, ["activation"], positions="all").need("activation")[0]
    expected = before.clone()
    batch = engine.encode(prompts)
    t = before.shape[1]
    for row in range(2):
        start = t - batch.lengths[row]
        columns = range(t) if position is None else [t - 1 if position < 0 else start + position]
        for column in columns:
            for feature, value in ((3, 2.5), (7, -1.0)):
                old = before[row, column, feature]
                expected[row, column, feature] = {"set": value, "add": old + value, "scale": old * value}[
                    mode
                ]
    assert torch.allclose(after, expected, atol=1e-6)


def test_mean_ablation_takes_a_table_of_values(llama: Tiny) -> None:
    engine = llama.engine
    table = torch.arange(engine.n_layers * engine.n_features[0]).view(engine.n_layers, -1) / 100
    with engine.intervene(*feature_edits([(2, 5), (0, 1)], value=table)):
        activation = engine.capture(PROMPTS, ["activation"]).need("activation")
    assert torch.allclose(activation[2, :, 5], table[2, 5].expand(4))
    assert torch.allclose(activation[0, :, 1], table[0, 1].expand(4))


def test_residuals_can_be_added_to_and_replaced(tiny: Tiny) -> None:
    engine = tiny.engine
    # Another prompt's whole last residual at the last layer gives that prompt's logits.
    source = engine.capture(PROMPTS[:1], ["residual"])
    last = engine.n_layers - 1
    with engine.intervene(ResidualEdit(last, source.need("residual")[-1][0], "replace", None, -1)):
        patched = engine.logits(PROMPTS[2])
    assert torch.allclose(patched, source.need("logits"), atol=1e-4)
    # Adding a vector after a layer shifts that residual and nothing before it; row 1 alone is touched.
    vector = torch.linspace(-1, 1, engine.hidden)
    before = engine.capture(PROMPTS, ["residual"], positions="all").need("residual")
    with engine.intervene(ResidualEdit(0, vector, "add", torch.tensor([1]), -1)):
        after = engine.capture(PROMPTS, ["residual"], positions="all").need("residual")
    expected = before[1].clone()
    expected[1, -1] += vector
    assert torch.allclose(after[1], expected, atol=1e-5)
    assert torch.equal(after[0], before[0])
    assert torch.allclose(after[:, 0], before[:, 0], atol=1e-5)
    assert not torch.allclose(after[2, 1, -1], before[2, 1, -1], atol=1e-3)


def test_the_embedding_can_be_replaced(tiny: Tiny) -> None:
    engine = tiny.engine
    clean = engine.capture(PROMPTS[:1], ["residual"], positions="all").need("residual")
    vector = torch.ones(engine.hidden)
    with engine.intervene(ResidualEdit(-1, vector, "replace", None, 0)):
        changed = engine.capture(PROMPTS[:1], ["residual"], positions="all").need("residual")
    assert torch.equal(changed[0, 0, 0], vector)
    assert torch.equal(changed[0, 0, 1:], clean[0, 0, 1:])


def test_a_sparse_pass_keeps_the_strongest_gates(tiny: Tiny) -> None:
    engine = tiny.engine
    with engine.intervene(Sparse(5)):
        capture = engine.capture(PROMPTS, ["gate", "activation"])
    for layer in range(engine.n_layers):
        gate, activation = capture.need("gate")[layer], capture.need("activation")[layer]
        bias = getattr(engine.modules.layers[layer].gate, "bias", None)
        strongest = (gate if bias is None else gate - bias).abs().topk(5).indices
        kept = torch.zeros_like(gate, dtype=torch.bool).scatter(1, strongest, True)
        assert not activation[~kept].any()
        assert activation[kept].any()
    with engine.intervene(Sparse(engine.n_features[0])):
        everything = engine.logits(PROMPTS)
    assert torch.allclose(everything, engine.logits(PROMPTS), atol=1e-4)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (FeatureEdit(3, torch.tensor([0])), "layers 0 to 2"),
        (FeatureEdit(-1, torch.tensor([0])), "layers 0 to 2"),
        (FeatureEdit(0, torch.tensor([64])), "features 0 to 63"),
        (ResidualEdit(3, torch.zeros(32)), "layers 0 to 2"),
        (Sparse(0), "at least 1"),
        (Sparse(4, (7,)), "layers 0 to 2"),
    ],
)
def test_edits_out_of_range(llama: Tiny, edit: FeatureEdit, words: str) -> None:
    with pytest.raises(LarqlError, match=words), llama.engine.intervene(edit):
        pass


def test_a_position_beyond_the_prompt(llama: Tiny) -> None:
    edit = FeatureEdit(0, torch.tensor([1]), 0.0, None, "set", 50)
    with pytest.raises(LarqlError, match="position 50"), llama.engine.intervene(edit):
        llama.engine.logits(PROMPTS)


# -- effects -------------------------------------------------------------------------------------------------


def ablation_effects(
    engine: Engine, prompts: list[str], tokens: list[int], features: list[list[Slot]], **options: Any
) -> Effects:
    """The Effects of each prompt's features on its token."""
    prefix = prefill(engine, prompts)
    with engine.recording(["residual"]) as capture:
        logits = prefix.step()
    return effects_after(prefix, capture, logits, tokens, features, **options)


def test_effects_equal_full_passes_with_the_features_zeroed_at_the_last_position(tiny: Tiny) -> None:
    engine = tiny.engine
    features = [
        [(2, 3), (0, 7), (1, 11)],
        [(1, 0)],
        [(2, 63), (2, 62), (0, 1), (1, 5), (1, 6)],
        [],
    ]
    tokens = engine.logits(PROMPTS).argmax(-1).tolist()
    effects = ablation_effects(engine, PROMPTS, tokens, features, single=2)
    assert [len(s) for s in effects.single] == [2, 1, 2, 0]
    for i, prompt in enumerate(PROMPTS):
        base = log_p(engine, prompt, tokens[i])
        assert float(effects.log_p[i]) == pytest.approx(base, abs=1e-4)
        for slot, drop in zip(features[i], effects.single[i].tolist(), strict=False):
            with engine.intervene(*feature_edits([slot], position=-1)):
                assert drop == pytest.approx(base - log_p(engine, prompt, tokens[i]), abs=1e-4)
        with engine.intervene(*feature_edits(features[i], position=-1)):
            gone = log_p(engine, prompt, tokens[i])
        assert float(effects.together[i]) == pytest.approx(base - gone, abs=1e-4)
    assert float(effects.together.abs().max()) > 1e-2


def test_effects_of_mean_ablation(llama: Tiny) -> None:
    engine = llama.engine
    table = torch.full((engine.n_layers, engine.n_features[0]), 0.7)
    slots = [(0, 3), (2, 9)]
    effects = ablation_effects(engine, PROMPTS[:1], [12], [slots], replacement=table)
    base = log_p(engine, PROMPTS[0], 12)
    with engine.intervene(*feature_edits(slots, value=0.7, position=-1)):
        expected = base - log_p(engine, PROMPTS[0], 12)
    assert float(effects.together[0]) == pytest.approx(expected, abs=1e-4)


def test_removals_start_at_their_first_layer(llama: Tiny) -> None:
    """A feature of the last layer costs one layer and the head, not the whole model."""
    engine = llama.engine
    prefix = prefill(engine, PROMPTS[:1])
    with engine.recording(["residual"]) as capture:
        logits = prefix.step()
    ran: list[int] = []
    handles = [
        parts.attn.register_forward_hook(lambda m, a, o, i=i: ran.append(i))
        for i, parts in enumerate(engine.modules.layers)
    ]
    try:
        effects_after(prefix, capture, logits, [12], [[(2, 1), (2, 2)]])
    finally:
        for handle in handles:
            handle.remove()
    assert set(ran) == {2}


# -- architectures beyond the table --------------------------------------------------------------------------


def test_a_configs_multipliers_are_accounted_for(tmp_path: Path) -> None:
    """Granite has Llama's tensor names, and factors on embedding, branches and logits."""
    factors = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.5}
    tiny = Tiny(make_tiny("granite", tmp_path, tied=False, attention_multiplier=0.2, **factors))
    engine = tiny.engine
    with torch.no_grad():
        expected = tiny.reference(torch.tensor([tiny.ids[0]])).logits[0, -1]
    capture = engine.capture(PROMPTS)
    logits = capture.need("logits")
    assert torch.allclose(logits[0], expected, atol=1e-4)
    residual = capture.need("residual")
    total = residual[0] + capture.need("attn_delta").sum(0) + capture.need("ffn_delta").sum(0)
    assert torch.allclose(total, residual[-1], atol=1e-4)
    tokens = torch.tensor([5, 17, 40, 71])
    parts = attribute(engine, capture, tokens)
    assert torch.allclose(parts.total, logits.gather(1, tokens[:, None])[:, 0] - logits.mean(-1), atol=1e-4)
    assert torch.allclose(parts.summed(), parts.total, atol=1e-4)
    assert torch.allclose(engine.unembed(residual[-1]), logits, atol=1e-4)
