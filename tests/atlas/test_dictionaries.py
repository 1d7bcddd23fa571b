"""Dictionaries from outside: encoders against numpy, tables and effects against a plain loop over transformers' own model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import larql_duck as lq
from larql_duck.atlas.dictionary import CONFIG, WEIGHTS, read_dictionary
from larql_duck.atlas.dictionary_tables import excerpt
from larql_duck.cli import app as cli
from larql_duck.commands import dictionaries
from larql_duck.commands.dictionaries import add_dictionary
from larql_duck.errors import LarqlError
from larql_duck.inference.hook_points import KINDS, HookPoint, adding, hook_point, watch_points
from larql_duck.vindex import publish
from larql_duck.vindex.verify import verify
from tests.inference.conftest import Tiny

TEXTS = ["The capital of France is Paris", "Tokyo in Japan and Rome of Italy", "hot and cold 日本 of", "of"]
PROMPT = "The capital of France is"
N = 24
POST = "blocks.1.hook_resid_post"


def write(directory: Path, hidden: int, hook: str = POST, *, seed: int = 0, **config: Any) -> Path:
    """A random dictionary in SAELens' layout; `drop` and tensors among the config change its files."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "W_enc": torch.randn(hidden, N, generator=generator) / hidden**0.5,
        "b_enc": 0.1 * torch.randn(N, generator=generator),
        "W_dec": torch.randn(N, hidden, generator=generator) / N**0.5,
        "b_dec": 0.1 * torch.randn(hidden, generator=generator),
    }
    if str(config.get("architecture", "")).startswith("jumprelu"):
        tensors["threshold"] = torch.rand(N, generator=generator) - 0.2
    for name in [n for n in config if n.startswith(("W_", "b_", "log_", "scaling"))] + ["threshold"] * (
        "threshold" in config
    ):
        tensors[name] = config.pop(name)
    for name in config.pop("drop", []):
        del tensors[name]
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS)
    settings = {
        "architecture": "standard", "d_in": hidden, "d_sae": N, "dtype": "float32", "device": "cpu",
        "metadata": {"hook_name": hook, "hook_head_index": None, "sae_lens_version": "6.5.0"},
    }  # fmt: skip
    (directory / CONFIG).write_text(json.dumps(settings | config))
    return directory


def opened(directory: Path, hidden: int):
    return read_dictionary(directory / WEIGHTS, directory / CONFIG, hidden=hidden, n_layers=3)


def plain(directory: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations, reconstruction, and what each feature writes [n, features, hidden], as SAELens' papers define them."""
    from safetensors.numpy import load_file

    t, cfg = load_file(directory / WEIGHTS), json.loads((directory / CONFIG).read_text())
    kind = cfg["architecture"]
    mean, size = np.zeros((len(x), 1)), np.ones((len(x), 1))
    given = x.astype(np.float64)
    if cfg.get("normalize_activations") == "layer_norm":
        mean, size = given.mean(1, keepdims=True), given.std(1, ddof=1, keepdims=True)
        given = (given - mean) / (size + 1e-5)
    if cfg.get("normalize_activations") == "constant_norm_rescale":
        size = np.linalg.norm(given, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        given = given / size
    if cfg.get("apply_b_dec_to_input", True) and "transcoder" not in kind:
        given = given - t["b_dec"]
    pre = given @ t["W_enc"] + t["b_enc"]
    rows = t["W_dec"].astype(np.float64)
    if kind == "topk":
        if cfg.get("rescale_acts_by_decoder_norm"):
            norm = np.linalg.norm(rows, axis=1)
            pre, rows = pre * norm, rows / norm[:, None]
        kept = np.zeros_like(pre)
        for i, row in enumerate(pre):
            best = np.argsort(-row)[: cfg["k"]]
            kept[i, best] = np.maximum(row[best], 0)
        out = kept
    elif "jumprelu" in kind:
        threshold = t["threshold"] if "threshold" in t else np.exp(t["log_threshold"])
        out = np.where(
            pre > (np.maximum(threshold, 0) if kind == "jumprelu" else threshold), np.maximum(pre, 0), 0
        )
    else:
        out = np.maximum(pre, 0)
    if "transcoder" in kind:
        mean, size = 0 * mean, np.ones_like(size)
    return out, (out @ rows + t["b_dec"]) * size + mean, out[:, :, None] * size[:, :, None] * rows


KINDS_OF_DICTIONARY: list[dict[str, Any]] = [
    {},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale"},
    {"architecture": "topk", "k": 5},
    {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True},
    {"architecture": "jumprelu"},
    {"architecture": "jumprelu", "drop": ["threshold"], "log_threshold": torch.linspace(-3, 0, N)},
    {"architecture": "transcoder"},
    {"architecture": "transcoder", "normalize_activations": "layer_norm"},
    {"architecture": "jumprelu_transcoder"},
]


@pytest.mark.parametrize("config", KINDS_OF_DICTIONARY, ids=lambda c: "-".join(map(str, c.values()))[:40])
def test_encoders_are_those_of_the_papers(tmp_path: Path, config: dict[str, Any]) -> None:
    directory = write(tmp_path, 16, **config)
    x = np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32) * 2
    dictionary = opened(directory, 16)
    codes = dictionary.encode(torch.from_numpy(x))
    activation, decoded, written = plain(directory, x)
    assert (activation > 0).any() and (activation == 0).any()
    np.testing.assert_allclose(codes.activation, activation, atol=1e-5)
    np.testing.assert_allclose(dictionary.decode(codes), decoded, atol=1e-4)
    mine = codes.activation[:, :, None] * codes.scale[:, :, None] * dictionary.decoder
    np.testing.assert_allclose(mine, written, atol=1e-4)
    assert dictionary.out.name == (
        "blocks.1.hook_mlp_out" if "transcoder" in dictionary.architecture else POST
    )


def test_configs_before_version_6_are_read(tmp_path: Path) -> None:
    directory = write(tmp_path, 16)
    older = {
        "d_in": 16, "d_sae": N, "hook_point": "blocks.2.hook_resid_pre", "hook_point_layer": 2, "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3}, "normalize_activations": False, "hook_point_head_index": None,
    }  # fmt: skip
    (directory / CONFIG).write_text(json.dumps(older))
    dictionary = opened(directory, 16)
    assert (dictionary.architecture, dictionary.k, dictionary.point.name) == (
        "topk",
        3,
        "blocks.2.hook_resid_pre",
    )


def seen_at(tiny: Tiny, points: list[HookPoint], text: str) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    with watch_points(tiny.engine.modules, points, lambda i, value: found.update({i: value.clone()})):
        tiny.engine.logits(text)
    return [found[i][0] for i in range(len(points))]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_places_are_where_the_model_has_them(family: str, tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of(family)
    ids = torch.tensor([tiny.engine.tokenizer.encode(TEXTS[1])])
    with torch.no_grad():
        states = tiny.reference(ids, output_hidden_states=True).hidden_states
    for layer in range(2):
        values = dict(
            zip(KINDS, seen_at(tiny, [HookPoint(layer, kind) for kind in KINDS], TEXTS[1]), strict=True)
        )
        torch.testing.assert_close(values["hook_resid_pre"], states[layer][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values["hook_resid_post"], states[layer + 1][0], atol=1e-4, rtol=1e-4)
        middle = values["hook_resid_pre"] + values["hook_attn_out"]
        torch.testing.assert_close(values["hook_resid_mid"], middle, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values["hook_mlp_in"], middle, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            middle + values["hook_mlp_out"], values["hook_resid_post"], atol=1e-4, rtol=1e-4
        )
        centred = middle - middle.mean(-1, keepdim=True) if family == "gpt2" else middle
        normed = centred / centred.pow(2).mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(values["ln2.hook_normalized"], normed, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_is_there(family: str, kind: str, tiny_of: Callable[[str], Tiny]) -> None:
    """Behind the layer it is the same as adding to the residual there what the place makes of it."""
    tiny = tiny_of(family)
    engine = tiny.engine
    change = 0.3 * torch.randn(1, engine.hidden, generator=torch.Generator().manual_seed(3))
    after = HookPoint(1, "hook_resid_post")
    place, middle = HookPoint(1, kind), HookPoint(1, "hook_resid_mid")
    [before, mid] = seen_at(tiny, [after, middle], PROMPT)
    with adding(engine.modules, place, change):
        [changed, mid_changed] = seen_at(tiny, [after, middle], PROMPT)
    torch.testing.assert_close(changed[:-1], before[:-1])
    moved = changed[-1] - before[-1]
    if kind in ("hook_resid_post", "hook_mlp_out"):
        torch.testing.assert_close(moved, change[0], atol=1e-4, rtol=1e-4)
        return
    parts = engine.modules.layers[1]

    def ffn(x: torch.Tensor) -> torch.Tensor:
        act = parts.act(parts.gate(x))
        out = parts.down(act if parts.up is None else act * parts.up(x))
        return parts.ffn_post(out) if parts.ffn_post is not None else out

    with torch.no_grad():
        own = mid[-1] + change[0] if kind in ("hook_resid_mid", "hook_attn_out") else mid[-1]
        if kind == "hook_resid_pre":
            own = mid_changed[-1]
            assert not torch.allclose(own, mid[-1] + change[0])
        read = mid[-1] + change[0] if kind == "hook_mlp_in" else own
        normed = parts.ffn_norm(read[None, None])
        if kind == "ln2.hook_normalized":
            weight = parts.ffn_norm(torch.full((1, 1, engine.hidden), 1e4))[0, 0]
            if family == "gpt2":
                weight = parts.ffn_norm.weight
            normed = normed + change[0] * weight
        expected = own + ffn(normed)[0, 0]
    torch.testing.assert_close(changed[-1], expected, atol=2e-4, rtol=2e-4)


def passed(tiny: Tiny, text: str, layer: int = 1) -> torch.Tensor:
    """The residual behind a layer at every position, from transformers' own model."""
    found: list[torch.Tensor] = []
    hook = tiny.reference.model.layers[layer].register_forward_hook(
        lambda _, __, out: found.append((out[0] if isinstance(out, tuple) else out)[0].clone())
    )
    with hook, torch.no_grad():
        tiny.reference(torch.tensor([tiny.engine.tokenizer.encode(text)]))
    return found[0]


@pytest.fixture(scope="module")
def added(
    tiny_vindex, tiny_of, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Path], Path]:
    """A tiny vindex with a standard dictionary and a transcoder, their directories, and the texts. Only to be read."""
    place = tmp_path_factory.mktemp("added")
    hidden = tiny_of("llama").engine.hidden
    vindex = Path(shutil.copytree(tiny_vindex("llama"), place / "x.vindex"))
    texts = place / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    made = {
        "res": write(place / "res", hidden, seed=4),
        "trans": write(
            place / "trans",
            hidden,
            "blocks.1.ln2.hook_normalized",
            seed=5,
            architecture="transcoder",
            d_out=hidden,
        ),
    }
    with lq.connect(vindex) as s:
        add_dictionary(s, made["res"], texts=texts, top=3)
        add_dictionary(s, made["trans"], "trans", texts=texts, top=3)
    return vindex, made, texts


def test_tables_are_those_of_a_plain_loop(added, tiny_of) -> None:
    vindex, made, _ = added
    tiny = tiny_of("llama")
    tokenizer = tiny.engine.tokenizer
    rows: list[dict[str, Any]] = []
    for doc, text in enumerate(TEXTS):
        states = passed(tiny, text)
        for at, token in enumerate(tokenizer.encode(text)):
            if at > 0 and not tokenizer.is_special(token):
                rows.append(
                    {"doc": doc, "position": at, "token": tokenizer.token(token), "x": states[at].numpy()}
                )
    x = np.stack([row["x"] for row in rows])
    activation, decoded, _ = plain(made["res"], x)
    with lq.connect(vindex) as s:
        [one, other] = s.sql("FROM dictionaries ORDER BY dictionary").dicts()
        features = s.sql("FROM dictionary_features WHERE dictionary = 'res' ORDER BY feature").dicts()
        firings = s.sql("FROM dictionary_firings WHERE dictionary = 'res' ORDER BY feature, rank").dicts()
        head = tiny.engine.head_weight.float()
    assert one["error"] == pytest.approx(((x - decoded) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)
    assert one["n_tokens"] == len(rows) and one["firing"] == pytest.approx((activation > 0).sum(1).mean())
    assert one["silent"] == (activation.max(0) == 0).sum()
    assert (one["hook"], one["hook_out"], one["layer"]) == (POST, POST, 1)
    assert (other["hook"], other["hook_out"]) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    norm = tiny.engine.modules.final_norm.weight.float()
    for f, row in enumerate(features):
        own = activation[:, f]
        assert row["density"] == pytest.approx((own > 0).mean()) and row["max"] == pytest.approx(
            own.max(), abs=1e-4
        )
        decoder = opened(made["res"], len(norm)).decoder[f]
        assert row["norm"] == pytest.approx(float(decoder.norm()), rel=1e-5)
        mine = [r for r in firings if r["feature"] == f]
        assert [r["activation"] for r in mine] == pytest.approx(np.sort(own[own > 0])[::-1][:3], abs=1e-4)
        for r in mine:
            [place] = [q for q in rows if (q["doc"], q["position"]) == (r["doc"], r["position"])]
            assert r["token"] == place["token"] and f"[{place['token']}]" in r["context"].replace(
                "[�]", f"[{place['token']}]"
            )
        scores = torch.nn.functional.normalize((head - head.mean(0)) * norm, dim=1) @ decoder
        best = [
            i
            for i in scores.argsort(descending=True).tolist()
            if not tokenizer.is_special(i) and tokenizer.token(i)
        ]
        assert row["promoted"][:3] == [tokenizer.token(i) for i in best[:3]]
        assert row["suppressed"][0] == tokenizer.token(best[-1])
    assert verify(vindex) == []


def without(tiny: Tiny, change: torch.Tensor, module: torch.nn.Module) -> float:
    """log p of the prediction with `change` added to what the module gives at the last position."""
    ids = torch.tensor([tiny.engine.tokenizer.encode(PROMPT)])

    def hook(_: Any, __: Any, out: Any) -> Any:
        value = (out[0] if isinstance(out, tuple) else out).clone()
        value[:, -1] += change
        return (value, *out[1:]) if isinstance(out, tuple) else value

    with torch.no_grad():
        token = tiny.reference(ids).logits[0, -1].argmax()
        with module.register_forward_hook(hook):
            return float(tiny.reference(ids).logits[0, -1].log_softmax(-1)[token])


@pytest.mark.parametrize("name", ["res", "trans"])
def test_features_of_a_prompt_add_and_matter_as_measured_alone(added, tiny_of, name: str) -> None:
    vindex, made, _ = added
    tiny = tiny_of("llama")
    layer = tiny.reference.model.layers[1]
    module = layer if name == "res" else layer.mlp
    ids = torch.tensor([tiny.engine.tokenizer.encode(PROMPT)])
    found: list[torch.Tensor] = []
    place = layer if name == "res" else layer.post_attention_layernorm
    hook = place.register_forward_hook(
        lambda m, args, out: found.append(
            (out if name == "trans" else out[0] if isinstance(out, tuple) else out)[0, -1]
        )
    )
    with hook, torch.no_grad():
        out = tiny.reference(ids, output_hidden_states=True)
    x = found[0].numpy()
    if name == "trans":
        x = x / place.weight.detach().numpy()
    activation, _, written = plain(made[name], x[None])
    token = int(out.logits[0, -1].argmax())
    head = tiny.reference.lm_head.weight.detach()
    # The residual before the final norm: the last layer's output, which hidden_states has behind that norm.
    final = passed(tiny, PROMPT, layer=2)[-1]
    scale = torch.rsqrt(final.pow(2).mean() + tiny.reference.config.rms_norm_eps)
    direction = (head[token] - head.mean(0)) * tiny.reference.model.norm.weight.detach() * scale
    with lq.connect(vindex) as s:
        rows = s.sql(f"FROM lq_dictionary_features($1, '{name}', p_k := 6)", [PROMPT]).dicts()
        expected = {
            f: float(torch.from_numpy(written[0, f]).float() @ direction)
            for f in np.flatnonzero(activation[0])
        }
        order = sorted(expected, key=lambda f: -abs(expected[f]))
        assert [r["feature"] for r in rows] == order[:6]
        log_p = float(out.logits[0, -1].log_softmax(-1)[token])
        for rank, r in enumerate(rows, 1):
            f = r["feature"]
            assert (r["rank"], r["dictionary"], r["predicted"]) == (
                rank,
                name,
                tiny.engine.tokenizer.token(token),
            )
            assert r["activation"] == pytest.approx(activation[0, f], abs=1e-4)
            assert r["contribution"] == pytest.approx(expected[f], abs=1e-3)
            change = -torch.from_numpy(written[0, f]).float()
            assert r["effect"] == pytest.approx(log_p - without(tiny, change, module), abs=1e-3)
        assert max(abs(r["effect"]) for r in rows) > 0.01
        assert rows[0]["promoted"] and rows[0]["density"] is not None


def test_walk_shows_what_fires_at_each_token(added, tiny_of) -> None:
    vindex, made, _ = added
    tiny = tiny_of("llama")
    activation, _, _ = plain(made["res"], passed(tiny, TEXTS[1]).numpy())
    tokens = [tiny.engine.tokenizer.token(i) for i in tiny.engine.tokenizer.encode(TEXTS[1])]
    with lq.connect(vindex) as s:
        rows = s.sql("FROM lq_dictionary_walk($1, 'res', 2)", [TEXTS[1]]).dicts()
        expected = [
            (at, tokens[at], rank, int(f))
            for at, row in enumerate(activation)
            for rank, f in enumerate(np.argsort(-row)[:2], 1)
            if row[f] > 0
        ]
        assert [(r["position"], r["token"], r["rank"], r["feature"]) for r in rows] == expected
        lateral = "SELECT t, count(*) FROM (VALUES ('of'), (NULL)) AS p(t), LATERAL (FROM lq_dictionary_walk(t, 'res')) GROUP BY t"
        assert [r[0] for r in s.sql(lateral).rows()] == ["of"]
        for name, words in (
            ("NULL", "several dictionaries; name one of: res, trans"),
            ("'x'", "no dictionary 'x'"),
        ):
            with pytest.raises(LarqlError, match=words):
                s.sql(f"FROM lq_dictionary_walk('of', {name})")


def test_one_is_replaced_by_its_name_and_needs_none(
    tiny_vindex, added, tiny_of, tmp_path: Path, capsys
) -> None:
    _, made, texts = added
    vindex = Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "x.vindex"))
    with lq.connect(vindex) as s, pytest.raises(LarqlError, match="add-dictionary"):
        s.sql("FROM lq_dictionary_walk('of')")
    call = ["add-dictionary", str(vindex), str(made["res"]), str(texts), "--json"]
    assert cli.run(call) == 0
    printed = capsys.readouterr()
    assert "MB are copied" in printed.err and "not reconstructed" in printed.err
    assert json.loads(printed.out)[0]["dictionary"] == "res"
    with lq.connect(vindex) as s:
        first = s.sql("FROM lq_dictionary_walk('of')").dicts()
        other = write(tmp_path / "other", tiny_of("llama").engine.hidden, seed=9)
        add_dictionary(s, other, "res", texts=texts, top=2)
        assert first and s.sql("FROM lq_dictionary_walk('of')").dicts() != first
        assert s.sql("SELECT dictionary, source FROM dictionaries").rows() == [("res", "other")]
        assert len(s.sql("FROM dictionary_features")) == N
        s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome")')
        with pytest.raises(LarqlError, match="COMPILE CURRENT"):
            add_dictionary(s, other, texts=texts)
    assert verify(vindex) == []


@pytest.mark.parametrize("stage", ["dictionary", "tokens", "storing"])
def test_what_is_interrupted_leaves_nothing(
    stage: str, tiny_vindex, added, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made, texts = added
    vindex = Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "x.vindex"))
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}

    def report(at: str, done: float, total: float) -> None:
        if at == stage:
            raise KeyboardInterrupt

    def copied(path: Path, data: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(dictionaries, "report", report)
    if stage == "storing":
        monkeypatch.setattr(publish, "_write_or_copy", copied)
    with lq.connect(vindex) as s:
        with pytest.raises(KeyboardInterrupt):
            add_dictionary(s, made["res"], texts=texts)
        assert s.sql("FROM dictionaries").rows() == []
    monkeypatch.undo()
    with lq.connect(vindex) as s:
        assert s.sql("FROM dictionaries").rows() == []
    assert {p: p.stat().st_size for p in tmp_path.rglob("*") if p.name != ".lock"} == before
    assert verify(vindex) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "gated"}, "architecture 'gated' is not read"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit' is not read"),
        ({"activation_fn": "tanh-relu"}, "'tanh-relu' is not read"),
        ({"normalize_activations": "expected_average_only_in"}, "fold its factor"),
        ({"normalize_activations": True}, "fold its factor"),
        ({"reshape_activations": "hook_z"}, "single attention heads"),
        ({"hook_head_index": 3}, "single attention heads"),
        ({"d_in": 15}, "d_in is 15, but this model is 16 wide"),
        ({"architecture": "transcoder", "d_out": 8}, "d_out is 8, but this model is 16 wide"),
        ({"d_sae": N + 1}, r"W_enc has shape \[16, 24\], it must be \[16, 25\]"),
        ({"d_sae": "many"}, "d_sae must be an integer, found 'many'"),
        ({"d_sae": None}, "d_sae must be there"),
        ({"architecture": "topk"}, "k must be a number from 1 on, found None"),
        ({"architecture": "topk", "k": 0}, "k must be"),
        ({"hook_name": "blocks.7.hook_resid_post"}, "is at layer 7; this model has layers 0 to 2"),
        ({"hook_name": "blocks.1.attn.hook_z"}, "hook 'blocks.1.attn.hook_z' is not known"),
        ({"hook_name": 5}, "hook_name must be"),
        ({"architecture": "transcoder", "hook_name_out": "blocks.0.hook_mlp_out"}, "comes before hook_name"),
        ({"drop": ["b_dec"]}, "has no tensor b_dec"),
        ({"architecture": "jumprelu", "drop": ["threshold"]}, "has no tensor threshold"),
        ({"b_enc": torch.full((N,), torch.nan)}, "b_enc has values that are not finite"),
        ({"W_dec": torch.zeros(16, N)}, r"W_dec has shape \[16, 24\]"),
        ({"W_enc": torch.zeros(16, N, dtype=torch.int8)}, "dtype I8"),
        ({"scaling_factor": torch.full((N,), 2.0)}, "scaling_factor that is not folded in"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)  # fmt: skip
def test_what_is_no_dictionary_of_this_model_is_one_line(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    directory = write(tmp_path, 16, **config)
    with pytest.raises(LarqlError, match=words) as raised:
        opened(directory, 16)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_files_that_are_none_are_one_line(tmp_path: Path) -> None:
    directory = write(tmp_path, 16)
    for name, data, words in (
        (CONFIG, b"[1]", "is no JSON object"),
        (CONFIG, b"{" * 5000, "is no JSON object"),
        (WEIGHTS, b"no tensors here", "header"),
        (WEIGHTS, None, "no such file"),
        (CONFIG, None, "cannot be read"),
    ):
        kept = (directory / name).read_bytes()
        (directory / name).unlink()
        if data is not None:
            (directory / name).write_bytes(data)
        with pytest.raises(LarqlError, match=words) as raised:
            opened(directory, 16)
        assert "\n" not in str(raised.value)
        (directory / name).write_bytes(kept)


def test_names_of_places_and_excerpts() -> None:
    assert hook_point(POST, 3) == HookPoint(1, "hook_resid_post") and hook_point(POST, 3).name == POST
    ends = list(range(1, 101))
    assert excerpt("x" * 100, ends, 50) == "x" * 24 + "[x]" + "x" * 8
    assert excerpt("ab", [1, 2], 0) == "[a]b" and excerpt("ab", [1, 2], 1) == "a[b]"
