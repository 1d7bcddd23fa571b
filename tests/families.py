"""Tiny seeded checkpoints of every causal model that transformers has, made from its config classes.

`python -m tests.families docs/families.md` writes the page of families anew; with names of model types behind it, what it says of
these.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larql_duck.models.family import outside
from larql_duck.patches.operations import InsertOp
from tests.edits import some
from tests.tiny import write_tokenizer

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.models.family import Family
    from larql_duck.vindex.store import Vindex

# Names that configs have for one size -> its number in a tiny model.
_SIZES: dict[tuple[str, ...], Any] = {
    ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"): 32,
    ("intermediate_size", "n_inner", "ffn_dim", "dff", "ffn_hidden_size", "decoder_ffn_dim"): 64,
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"): 3,
    (
        "num_attention_heads",
        "n_head",
        "num_heads",
        "n_heads",
        "attention_heads",
        "decoder_attention_heads",
    ): 4,
    ("num_key_value_heads", "num_kv_heads"): 2,
    ("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "query_pre_attn_scalar"): 8,
    ("hidden_size_per_layer_input",): 8,
    ("global_head_dim", "q_lora_rank", "kv_lora_rank"): 16,
    ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"): 128,
    ("rotary_dim", "sliding_window", "laurel_rank", "window_size"): 4,
    ("altup_num_inputs",): 2,
    ("num_kv_shared_layers", "first_k_dense_replace"): 1,
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"): 4,
    ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "moe_top_k"): 2,
    ("moe_intermediate_size", "expert_dim"): 16,
    (
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
    ): 24,
    ("mamba_d_ssm",): 64,
    ("mamba_n_heads", "mamba_num_heads", "mamba_head_dim", "mamba_d_state", "ssm_state_size"): 8,
    ("linear_key_head_dim", "linear_value_head_dim", "mamba_chunk_size", "chunk_size"): 8,
    ("linear_num_value_heads",): 4,
    ("linear_num_key_heads", "n_groups"): 2,
    ("lru_width",): 32,
    (
        "n_shared_experts",
        "num_shared_experts",
        "moe_num_shared_experts",
        "n_group",
        "topk_group",
        "num_expert_group",
    ): 1,
    ("num_dense_layers", "first_k_dense_replace", "moe_layer_start_index"): 1,
}
# Settings that a model of three layers needs, or that show the kind that its family is known for.
_OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "attention_layers": None},
    "gemma3n_text": {"activation_sparsity_pattern": [0.5, 0.0, 0.0], "layer_types": None},
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    **{
        key: {"num_hidden_layers": 4, "layer_types": [*["sliding_attention"] * 3, "full_attention"]}
        for key in ("cohere2", "olmo3")
    },
    "modernbert-decoder": {"pad_token_id": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": {"mlp_multipliers": [0.7, 1.3], "ssm_out_multiplier": 0.9, "attention_out_multiplier": 1.1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
    },
    "zaya": {"num_experts_per_tok": 1},
    "youtu": {"num_key_value_heads": 4},
    "minicpm3": {"num_key_value_heads": 4},
    **{
        key: {"num_key_value_heads": 4}
        for key in (
            "axk1",
            "axk2",
            "bailing_hybrid",
            "kimi_linear",
            "dots3_note_text",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
        )
    },
}


def tiny_config(model_type: str, vocab: int, **overrides: Any) -> Any:
    """transformers' config of a tiny model of that type."""
    from transformers import CONFIG_MAPPING

    stated = CONFIG_MAPPING[model_type]().to_dict()
    values = {key: size for keys, size in _SIZES.items() for key in keys if key in stated}
    for key in ("n_inner", "ffn_hidden_size", "sliding_window"):
        if key in stated and stated[key] is None:
            del values[key]
    if isinstance(stated.get("layer_types"), list):
        kinds = list(dict.fromkeys(stated["layer_types"]))
        values["layer_types"] = (kinds * 3)[:3]
    if isinstance(stated.get("intermediate_size"), list):
        values["intermediate_size"] = [64] * 3
    values |= {k: vocab for k in ("vocab_size", "vocab_size_per_layer_input") if k in stated}
    values |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    values |= dict(_OWN.get(model_type, {}).items()) | overrides
    return CONFIG_MAPPING[model_type](
        **{k: v for k, v in values.items() if k == "pad_token_id" or v is not None}
    )


def make_family(
    model_type: str, directory: Path, *, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> Path:
    """The directory, filled with what transformers saves of a tiny random model of that type, and a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    vocab = write_tokenizer("gpt2", directory := _made(directory))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, vocab, **overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.25 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:  # norms and scales, around what they begin with
                parameter.add_(0.2 * noise)
        for name in set(model.state_dict()) - {n for n, _ in model.named_parameters(remove_duplicate=False)}:
            if "scal" in name:
                model.get_buffer(name).mul_(0.8)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


# -- what works ----------------------------------------------------------------------------------------------

PROMPTS = (
    "The capital of France is",
    " of",
    "The language of Japan is French and the currency of Germany is the euro in",
    "Paris is the capital",
    "Москва is hot and cold",
)


@dataclass(frozen=True)
class Checked:
    """What a family's tiny model showed. Numbers are the largest differences; a text says why something is refused.

    infer: probabilities from transformers'; batch: those of padded prompts from those alone; cached: those of a prompt that is
    read in two parts, the first into a cache; activations: from what
    hooks on transformers' modules see; parts: the parts of logits from the logits; basis: of top activating tokens.
    compiled: the same bits in transformers, unedited; edited: logits of the compiled edited model from the session's; gguf:
    logits of the model that was written as GGUF in f32 and read back from transformers' own, as a share of the largest.
    """

    family: Family
    infer: float
    batch: float
    cached: float
    activations: float
    parts: float | str
    basis: str
    compiled: bool
    edited: float | str
    gguf: float | str


def check_family(model_type: str, root: Path, **overrides: Any) -> Checked:
    """What the tiny model of that type shows; LarqlError where it is refused."""
    import torch
    from transformers import AutoModelForCausalLM

    import larql_duck as lq
    from larql_duck.extraction import extract
    from larql_duck.models.families import FAMILIES
    from larql_duck.models.finding import find_family
    from larql_duck.vindex.store import Vindex

    if model_type not in FAMILIES:
        # What is refused is refused before there are weights: a mixture of experts has many.
        find_family(_some_config(model_type, **overrides).to_dict())
    model = make_family(model_type, root / "model", **overrides)
    vindex = extract(model, root / "model.vindex", probe=False, in_basis="context", context_tokens=30)
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    source = Vindex.open(vindex)
    with lq.connect(vindex) as session:
        engine = session.model.engine
        ids = [engine.encode(prompt).row(0) for prompt in PROMPTS]
        alone = torch.cat([engine.logits(prompt) for prompt in PROMPTS])
        batch = engine.logits(list(PROMPTS))
        with torch.inference_mode():
            wanted = torch.stack([theirs(torch.tensor([row])).logits[0, -1].float() for row in ids])
        basis = session.sql("SELECT DISTINCT basis FROM lq.token_features").rows()[0][0]
        infer, batched = (_apart(x, y) for x, y in ((alone, wanted), (batch, alone)))
        cached = _apart(torch.cat([_in_two(engine, row) for row in ids]), alone)
        activations, parts = _activations(engine, theirs, ids[2]), _parts(engine)
        session.lql(f'COMPILE CURRENT INTO MODEL "{root / "plain"}" FORMAT SAFETENSORS')
        edited = _edited(session, source, root / "edited")
    gguf = _gguf(vindex, root / "model.gguf", wanted)
    plain = AutoModelForCausalLM.from_pretrained(root / "plain", dtype=torch.float32).state_dict()
    mine = theirs.state_dict()
    compiled = plain.keys() == mine.keys() and all(torch.equal(plain[name], mine[name]) for name in mine)
    return Checked(
        source.family, infer, batched, cached, activations, parts, str(basis), compiled, edited, gguf
    )


def _some_config(model_type: str, **overrides: Any) -> Any:
    """The tiny config, or the family's own where sizes have to fit each other in ways that are not known here."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    try:
        return tiny_config(model_type, 300, **overrides)
    except (ValueError, StrictDataclassError):
        return CONFIG_MAPPING[model_type]()


def _in_two(engine: Engine, ids: list[int]) -> Any:
    """The logits of a prompt whose tokens but the last are read into a cache first."""
    import torch

    row, places = torch.tensor([ids]), torch.arange(len(ids))[None]
    cache = engine.new_cache()
    if len(ids) > 1:
        engine.run_body(row[:, :-1], None, places[:, :-1], cache)
    return engine.run(row[:, -1:], None, places[:, -1:], cache)


def _apart(a: Any, b: Any) -> float:
    return float((a.softmax(-1) - b.softmax(-1)).abs().max())


def _activations(engine: Engine, theirs: Any, ids: list[int]) -> float:
    """The largest difference between captured activations and what transformers' own down projections read."""
    import torch

    seen: list[torch.Tensor] = []
    mixed = () if engine.family.experts is None else engine.family.experts.layers
    layers = [i for i in range(engine.n_layers) if i not in engine.family.absent]
    hooks = [
        _watch_experts(theirs, engine.family, i, seen)
        if i in mixed
        else theirs.get_submodule(
            outside(engine.family.down_name(i)).removesuffix(".weight")
        ).register_forward_pre_hook(
            lambda _, args: seen.append(args[0].reshape(1, -1, args[0].shape[-1]).float())
        )
        for i in layers
    ]
    with torch.inference_mode():
        theirs(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    captured = engine.capture(engine.pad(ids), {"activation"}, positions="all").need("activation")
    # What an FFN multiplies by behind its down matrix is part of the activation here.
    behind = 1.0 if engine.family.called is None else engine.family.called[2]
    seen = [x * behind for x in seen]
    size = max(1.0, max(float(x.abs().max()) for x in seen))
    return (
        max(
            float((captured[i][..., : x.shape[-1]] - x).abs().max())
            for i, x in zip(layers, seen, strict=True)
        )
        / size
    )


def _watch_experts(theirs: Any, family: Family, layer: int, seen: list[Any]) -> Any:
    """A hook on a mixture of transformers that appends what its experts' down matrices read, times the router's weights.

    The experts run once more, one by one, on what they got; the shared ones' activations are what their down matrix reads,
    times what the block makes of it.
    """
    import torch

    experts = family.experts
    assert experts is not None
    block = theirs.get_submodule(family.layer_prefix(layer) + experts.block)
    inner = block.get_submodule(experts.inner)
    given: list[Any] = []
    always: list[torch.Tensor] = []
    inner.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((*args, *kwargs.values())), with_kwargs=True
    )
    if experts.always:
        shared = block.get_submodule(experts.always)
        down = shared.get_submodule(family.down.removesuffix(".weight").rpartition(".")[2])
        down.register_forward_pre_hook(lambda _, args: always.append(args[0].reshape(-1, args[0].shape[-1])))

    def hook(_: Any, args: Any, out: Any) -> None:
        if experts.scaled:
            [routed] = given.pop()
            rows = routed.view(experts.count, -1, routed.shape[-1])
            gate, up = torch.bmm(rows, inner.gate_up_proj).chunk(2, -1)
            own = (inner.act_fn(gate) * up).transpose(0, 1).flatten(1)
            seen.append(torch.cat([own, always.pop()], 1)[None])
            return
        hidden, index, weights = given.pop()
        read = torch.zeros(len(hidden), experts.routed + experts.shared)
        for token, chosen in enumerate(index):
            for expert, weight in zip(chosen.tolist(), weights[token], strict=True):
                stored = inner.gate_up_proj[expert]
                both = hidden[token] @ (stored if experts.turned else stored.t())
                if experts.biased:
                    both = both + inner.gate_up_proj_bias[expert]
                begin = expert * experts.width
                read[token, begin : begin + experts.width] = inner._apply_gate(both) * weight
        if experts.always:
            factor = torch.ones(len(hidden), 1)
            if hasattr(block, "shared_expert_gate"):
                factor = block.shared_expert_gate(hidden).sigmoid()
            read[:, experts.routed :] = always.pop() * factor
        # One family takes the mean of both kinds instead of their sum.
        average = getattr(block, "shared_expert_combination_strategy", "sum") == "average"
        seen.append(read[None] / (2 if average else 1))

    return block.register_forward_hook(hook)


def _parts(engine: Engine) -> float | str:
    """How far the parts of three tokens' logits are from them, as a share of the largest; why where they are refused."""
    from larql_duck.inference.attribution import attribute, parts_problem

    if problem := parts_problem(engine):
        return problem
    parts = attribute(engine, engine.capture(PROMPTS[0]), [5, 17, 40], rows=[0, 0, 0])
    return float((parts.summed() - parts.total).abs().max() / max(1.0, float(parts.total.abs().max())))


def _edited(session: Any, source: Vindex, out: Path) -> float | str:
    """How far the compiled edited model's probabilities are from the session's; why where no edit is compiled."""
    import torch
    from transformers import AutoModelForCausalLM

    from larql_duck.errors import LarqlError

    grows = (
        bool(source.family.keys.get("intermediate_size", "intermediate_size")) and not source.family.between
    )
    try:
        session.patches.append([op for op in some(source) if grows or not isinstance(op, InsertOp)])
        engine = session.model.engine
        mine = torch.cat([engine.logits(prompt) for prompt in PROMPTS])
        session.lql(f'COMPILE CURRENT INTO MODEL "{out}" FORMAT SAFETENSORS')
    except LarqlError as error:
        return str(error)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [engine.encode(prompt).row(0) for prompt in PROMPTS]
        wanted = torch.stack([theirs(torch.tensor([row])).logits[0, -1].float() for row in rows])
    return _apart(mine, wanted)


def _gguf(vindex: Path, out: Path, wanted: Any) -> float | str:
    """How far the logits of the model as GGUF are from those that are wanted, as a share; why where it is not written."""
    import torch

    import larql_duck as lq
    from larql_duck.errors import LarqlError
    from larql_duck.inference.engine import Engine
    from larql_duck.models.opening import open_model

    try:
        with lq.connect(vindex) as session:
            session.lql(f'COMPILE CURRENT INTO MODEL "{out}" FORMAT GGUF F32')
    except LarqlError as error:
        return str(error)
    engine = Engine.load(open_model(out))
    mine = torch.cat([engine.logits(prompt) for prompt in PROMPTS])
    return float((mine - wanted).abs().max() / max(1.0, float(wanted.abs().max())))


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def listed_types() -> list[str]:
    """Every model type for which transformers has a causal model that is no other one's text model, by name."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    return sorted(name for name in KNOWN if "text_config" not in CONFIG_MAPPING[name].sub_configs)


# -- docs/families.md -----------------------------------------------------------------------------------------

_HEAD = """# Families

Which models are read, and what works with them. A family is found among the modules that transformers builds for a
config: in each layer the FFN (gate and up apart or in one matrix; plain: its first matrix is the gate), its activation and its
norm, what attention and FFN add to the residual, then the final norm and the output head. Nothing is taken from names alone:
`extract` runs random tokens and refuses a model whose FFN gives something else than features times down columns. [Mixtures of experts](experts.md) are read as one wide FFN a layer; of [hybrids](hybrids.md) the layers that have an FFN.

The families of `models/families.toml` (the first table's in **bold**) are read without asking transformers. Families with a number
under GGUF are read from GGUF files and written as such, too; [what else of files is read](files.md).

This page is made by `python -m tests.families docs/families.md`, which makes a tiny random model of every causal model type of
transformers {version}, extracts it and compares. INFER: the largest difference of a probability from transformers' own
over five prompts. Activations: that of what the down projections read, as hooks on transformers' modules see it, as a share
of the largest. EXPLAIN INFER and TRACE: how far a logit's parts are from it, as a share of it, or refused where parts do not add
up. Beside attention: what transformers calls the modules that mix positions in its place or beside it, in layers that have them
(`layers.mixer`). Parallel: the FFN reads what attention reads. Top activating tokens: `context`, or `embedding` where layers cannot be run one by one. Edited: the largest difference of a
probability between the session under edits (a changed, a deleted and, where INSERT works, an added feature) and the model that
COMPILE wrote for transformers. Without edits every weight that COMPILE wrote has the bits of the original. GGUF: how far logits
of the model that COMPILE wrote as GGUF (F32), read back, are from transformers' own, as a share of the largest. INSERT, if steady:
into a plain FFN where what it reads has a part that is the same everywhere ([Edits](edits.md)).

Read are {read} of {all} model types.

"""
_COLUMNS = (
    "family", "FFN", "beside attention", "parallel", "INFER", "activations", "EXPLAIN, TRACE", "tokens", "INSERT", "safetensors", "GGUF",
)  # fmt: skip
_REFUSED = """
## Refused

In one line, which is what `larql-duck extract` prints. Model types that are a text model inside another one (`text_config`) are
read as that text model.

"""


def page(results: Mapping[str, Checked | str], version: str, before: str = "") -> str:
    """docs/families.md of what each model type showed: Checked, or the line that refuses it; of others what stood `before`."""
    from larql_duck.models.families import FAMILIES

    def share(value: float | str) -> str:
        return f"{value:.0e}" if isinstance(value, float) else "refused"

    listed, refusing = _said(before)
    for name in results:
        listed.pop(name, None)
        refusing.pop(name, None)
    for name, c in results.items():
        if isinstance(c, str):
            continue
        family = c.family
        ffn = "plain" if not family.up else "gate and up in one matrix" if family.fused else "gate, up"
        if family.absent:
            ffn += ", not in every layer"
        if family.between:
            ffn += ", norm or cut between"
        mixed = family.experts
        if mixed is not None:
            ffn = f"experts{' and shared ones' if mixed.shared else ''}{', a gate of their own' if family.between else ''}"
        edit = "no" if family.between else "yes" if family.up else "if steady"
        if mixed is not None and not mixed.shared:
            edit = "no: none always runs"
        compiled = f"yes, edited {share(c.edited)}" if c.compiled else "no"
        listed[name] = _line(
            (
                f"**{name}**" if name in FAMILIES else name, ffn, _beside(family), "yes" if family.parallel else "", share(c.infer),
                share(c.activations), share(c.parts), c.basis, edit, compiled, share(c.gguf) if isinstance(c.gguf, float) else "no",
            )
        )  # fmt: skip
    refusing |= {name: f"* {c}" for name, c in results.items() if isinstance(c, str)}
    lines = [_line(_COLUMNS), _line(("---",) * len(_COLUMNS)), *(listed[name] for name in sorted(listed))]
    refused = [refusing[name] for name in sorted(refusing)]
    counts = {"read": len(listed), "all": len(listed) + len(refused)}
    return (
        _HEAD.format(version=version, **counts)
        + "\n".join(lines)
        + "\n"
        + _REFUSED
        + "\n".join(refused)
        + "\n"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _said(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The lines of a page by model type: those of its table, and those that refuse."""
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    refusing = (line for line in text.splitlines() if line.startswith("* "))
    return (
        {line.split("|")[1].strip().strip("*"): line for line in rows},
        {found[1]: line for line in refusing if (found := re.search(r"model_type '(.+?)'", line))},
    )


def _beside(family: Family) -> str:
    """What mixes positions in layers that have more or something else than attention."""
    own = [
        m for kind in [family, *map(family.at, range(len(family.by_layer)))] for m in kind.mixer.split(", ")
    ]
    return ", ".join(m for m in dict.fromkeys(own) if m not in ("attention", ""))


def main(path: Path, names: Sequence[str] = ()) -> None:
    """Write the page of families to `path`, or what it says of these names alone."""
    import transformers

    from larql_duck.errors import LarqlError

    results: dict[str, Checked | str] = {}
    for name in names or listed_types():
        with tempfile.TemporaryDirectory() as root:
            print(name, file=sys.stderr)
            try:
                results[name] = check_family(name, Path(root))
            except LarqlError as refusal:
                results[name] = str(refusal).replace(f"{root}/model: ", "")
            except Exception as error:
                # Where transformers' own defaults cannot be shrunk, nothing is known of the family.
                print(f"{name}: not tried: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    before = path.read_text() if names else ""
    path.write_text(page(results, transformers.__version__, before))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
