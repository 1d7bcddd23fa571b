"""Tiny seeded checkpoints of every causal model that transformers has, made from its config classes.

`python -m tests.families docs/families.md` writes the page of families anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import write_tokenizer

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
    ("num_kv_shared_layers",): 1,
}
# Settings that a model of three layers needs, or that show the kind that its family is known for.
_OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "attention_layers": None},
    "gemma3n_text": {"activation_sparsity_pattern": [0.5, 0.0, 0.0], "layer_types": None},
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    "modernbert-decoder": {"pad_token_id": 0},
    "youtu": {"num_key_value_heads": 4},
    "minicpm3": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
}


def tiny_config(model_type: str, vocab: int, **overrides: Any) -> Any:
    """transformers' config of a tiny model of that type."""
    from transformers import CONFIG_MAPPING

    stated = CONFIG_MAPPING[model_type]().to_dict()
    values = {key: size for keys, size in _SIZES.items() for key in keys if key in stated}
    for key in ("n_inner", "ffn_hidden_size", "sliding_window", "num_key_value_heads"):
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


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
