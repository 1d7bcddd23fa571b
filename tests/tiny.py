"""Tiny seeded models of every family, as Hugging Face directories and as GGUF files, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY_FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2"]

WORDS = [
    "the", "The", "of", "is", "a", "in", "and", "capital", "France", "Paris", "Germany", "Berlin", "Japan", "Tokyo",
    "Spain", "Madrid", "Italy", "Rome", "French", "language", "currency", "euro", "Europe", "hot", "cold", "city",
    "Москва", "日本",
]  # fmt: skip
BARE_WORDS = ["The", "Paris", "opposite"]

_BYTE_LEVEL = {"llama", "qwen2", "qwen3", "gpt2"}
_GEMMA = {"gemma", "gemma2", "gemma3_text", "gemma3"}
# Rows of the embedding beyond the tokenizer, as Qwen's checkpoints have.
_EXTRA_ROWS = {"qwen2": 5}


def make_tiny(
    family: str,
    directory: Path,
    *,
    seed: int = 0,
    layers: int = 3,
    hidden: int = 32,
    intermediate: int = 64,
    vocab: int | None = None,
    dtype: str = "f32",
    tied: bool | None = None,
    **overrides: Any,
) -> Path:
    """The directory, filled with config.json, model.safetensors and tokenizer files of a tiny random model.

    `family` is one of TINY_FAMILIES or 'gemma3' (the same text model inside the image-and-text layout: text_config
    and 'language_model.' names). `overrides` go into the config.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(family, directory)
    vocab = size + _EXTRA_ROWS.get(family, 0) if vocab is None else vocab
    if vocab < size:
        raise ValueError(f"vocab {vocab} is smaller than the tokenizer's {size}")
    model_type = "gemma3_text" if family == "gemma3" else family
    settings = _settings(model_type, layers, hidden, intermediate, vocab, tied) | overrides
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config)
    torch_dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    weights = _random_weights(model, seed, norm_offset=1.0 if family in _GEMMA else 0.0)
    weights = {n: w.to(torch_dtype).contiguous() for n, w in weights.items()}
    written = json.loads(config.to_json_string(use_diff=False))
    written["architectures"] = [type(model).__name__]
    written["dtype"] = str(torch_dtype).removeprefix("torch.")
    if family == "gemma3":
        weights = {"language_model." + n: w for n, w in weights.items()}
        weights["vision_tower.embeddings.patch_embedding.bias"] = torch.zeros(4, dtype=torch_dtype)
        written = {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": written,
            "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 16},
        }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(written, indent=2))
    return directory


def _settings(
    model_type: str, layers: int, hidden: int, intermediate: int, vocab: int, tied: bool | None
) -> dict[str, Any]:
    """Config values: 4 query and 2 key/value heads, a head size of its own where the family allows one."""
    ids = SPECIAL_IDS[_style(model_type)]
    if model_type == "gpt2":
        return {
            "n_layer": layers, "n_embd": hidden, "n_head": 4, "n_inner": intermediate, "vocab_size": vocab,
            "n_positions": 64, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": tied is not False, **ids,
        }  # fmt: skip
    wide = model_type in {"qwen3", *_GEMMA}
    out: dict[str, Any] = {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate, "vocab_size": vocab,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4 * (2 if wide else 1),
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5 if model_type in {"llama", "mistral"} else 1e-6, **ids,
    }  # fmt: skip
    default_tied = {"llama": False, "mistral": False, "qwen2": True, "qwen3": False}
    out["tie_word_embeddings"] = default_tied.get(model_type, True) if tied is None else tied
    if model_type == "mistral":
        out["sliding_window"] = 4
    if model_type in {"gemma2", "gemma3_text"}:
        out |= {"sliding_window": 4, "query_pre_attn_scalar": out["head_dim"]}
        out["layer_types"] = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    return out


def _random_weights(model: Any, seed: int, norm_offset: float) -> dict[str, Any]:
    """Seeded weights under state-dict names: matrices with deviation 0.25, biases and norms away from 0 and 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or ".ln_" in name:
            centre = 0.0 if name.endswith("bias") else 1.0 - norm_offset
            out[name] = centre + 0.2 * noise
        else:
            out[name] = (0.1 if name.endswith("bias") else 0.25) * noise
    return out


# -- tokenizers ----------------------------------------------------------------------------------------------

SPECIAL_IDS: dict[str, dict[str, int | None]] = {
    "bytes": {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None},
    "llama2": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
    "gemma": {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
}
_SPECIALS = {
    "bytes": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>"],
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _style(family: str) -> str:
    if family in _BYTE_LEVEL:
        return "bytes"
    return "gemma" if family in _GEMMA else "llama2"


def byte_alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE, index = byte."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(spare)) for b in range(256)]


def _merges(words: list[list[str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges that build every word by growing prefixes, so that a word always becomes one token."""
    pieces: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for symbols in words:
        prefix = symbols[0]
        for symbol in symbols[1:]:
            merges[prefix, symbol] = None
            prefix += symbol
            pieces[prefix] = None
    return list(pieces), list(merges)


def write_tokenizer(family: str, directory: Path) -> int:
    """The number of tokens of the family's tiny tokenizer, whose files are written into the directory."""
    style = _style(family)
    build = {"bytes": _byte_level, "llama2": _llama2, "gemma": _gemma}[style]
    tokenizer = build(family)
    tokenizer.add_special_tokens(_SPECIALS[style])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128}
    if style == "bytes":
        settings |= {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        settings |= {"add_bos_token": False, "chat_template": CHAT_TEMPLATE}
    else:
        names = ("<s>", "</s>") if style == "llama2" else ("<bos>", "<eos>")
        settings |= {"bos_token": names[0], "eos_token": names[1], "unk_token": "<unk>"}
        settings |= {"add_bos_token": True, "add_eos_token": False}
        if style == "gemma":
            settings["pad_token"] = "<pad>"
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    specials = {k: v for k, v in settings.items() if k.endswith("_token") and isinstance(v, str)}
    (directory / "special_tokens_map.json").write_text(json.dumps(specials, indent=2))
    return int(tokenizer.get_vocab_size())


def _byte_level(family: str) -> Any:
    """Byte-level BPE: single digits in the Llama one, NFC and another split in Qwen's, plain in GPT-2's."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    alphabet = byte_alphabet()
    spell = [[alphabet[b] for b in f" {w}".encode()] for w in WORDS]
    spell += [[alphabet[b] for b in w.encode()] for w in BARE_WORDS]
    pieces, merges = _merges(spell)
    vocab = {t: i for i, t in enumerate([*_SPECIALS["bytes"], *alphabet, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if family == "llama":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), plain]
        )
    elif family in {"qwen2", "qwen3"}:
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        tokenizer.pre_tokenizer = plain
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _metaspace_model(style: str) -> Any:
    from tokenizers import models

    chars = sorted(
        {c for w in WORDS for c in w} | set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.'")
    )
    spell = [["▁", *w] for w in WORDS] + [list(w) for w in BARE_WORDS]
    pieces, merges = _merges(spell)
    tokens = [*_SPECIALS[style], *(f"<0x{b:02X}>" for b in range(256)), *pieces, "▁", *chars]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    return models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _bos_processor(bos: str, bos_id: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )


def _llama2(family: str) -> Any:
    """SentencePiece style with a space put in front of the text and a BOS."""
    from tokenizers import Tokenizer, decoders, normalizers

    tokenizer = Tokenizer(_metaspace_model("llama2"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = _bos_processor("<s>", 1)
    return tokenizer


def _gemma(family: str) -> Any:
    """SentencePiece style without the space in front, with a BOS."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(_metaspace_model("gemma"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = _bos_processor("<bos>", 2)
    return tokenizer


# -- GGUF ----------------------------------------------------------------------------------------------------

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str, family: str) -> str:
    """llama.cpp's name for a state-dict name."""
    stem, kind = name.rsplit(".", 1)
    for prefix in ("model.layers.", "transformer.h."):
        if stem.startswith(prefix):
            index, rest = stem.removeprefix(prefix).split(".", 1)
            if rest == "post_attention_layernorm":
                own = "post_attention_norm" if family in {"gemma2", "gemma3_text"} else "ffn_norm"
            else:
                own = _GGUF_NAMES[rest]
            return f"blk.{index}.{own}.{kind}"
    return f"{_GGUF_NAMES[stem]}.{kind}"


def permute(weight: Any, heads: int) -> Any:
    """A q or k matrix (numpy) with each head's rows interleaved, as llama.cpp stores them for Llama's rotation."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(
    directory: Path, path: Path, quant: str = "F32", edit: Callable[[Any], None] | None = None
) -> Path:
    """The path of a GGUF file with the directory's weights in llama.cpp's layout, matrices quantised as named.

    `edit` gets the gguf.GGUFWriter before anything is written, to add or overwrite fields and tensors.
    """
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    directory, path = Path(directory), Path(path)
    config = json.loads((directory / "config.json").read_text())
    family = config["model_type"]
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(family, family)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny {family}")
    _gguf_config(writer, family, config)
    _gguf_tokenizer(writer, family, directory, config)
    kind = gguf.GGMLQuantizationType[quant]
    for name, tensor in load_file(directory / "model.safetensors").items():
        array = tensor.float().numpy()
        if family in {"llama", "mistral"} and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            array = permute(array, heads)
        if family in _GEMMA and name.endswith("norm.weight"):
            array = array + 1
        if family == "gpt2" and array.ndim == 2 and ".h." in name:
            array = array.T
        own = kind if array.ndim > 1 and "wpe" not in name else gguf.GGMLQuantizationType.F32
        array = np.ascontiguousarray(array, dtype=np.float32)
        writer.add_tensor(gguf_name(name, family), gguf.quants.quantize(array, own), raw_dtype=own)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_config(writer: Any, family: str, config: dict[str, Any]) -> None:
    if family == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if family == "gemma3_text":
        sliding = [t == "sliding_attention" for t in config["layer_types"]]
        writer.add_sliding_window_pattern(sliding)


def _gguf_tokenizer(writer: Any, family: str, directory: Path, config: dict[str, Any]) -> None:
    import gguf

    data = json.loads((directory / "tokenizer.json").read_text())
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    vocab = sorted(data["model"]["vocab"].items(), key=lambda item: item[1])
    special = {t["content"] for t in data["added_tokens"]}
    tokens = [t for t, _ in vocab]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config["vocab_size"])]
    style = _style(family)
    types = []
    for i, token in enumerate(tokens):
        if i >= len(vocab):
            kind = gguf.TokenType.UNUSED
        elif token == "<unk>":
            kind = gguf.TokenType.UNKNOWN
        elif token in special:
            kind = gguf.TokenType.CONTROL
        elif style != "bytes" and token.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        types.append(int(kind))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if style == "bytes":
        writer.add_tokenizer_model("gpt2")
        pre = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2", "gpt2": "gpt-2"}
        writer.add_tokenizer_pre(pre[family])
        merges = data["model"]["merges"]
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # SentencePiece BPE: the earlier a piece was merged, the higher its score; plain characters come last.
        order = {a + b: -float(i) for i, (a, b) in enumerate(data["model"]["merges"])}
        writer.add_token_scores(
            [order.get(t, -1e4 if k == 1 else 0.0) for t, k in zip(tokens, types, strict=True)]
        )
        writer.add_add_space_prefix(style == "llama2")
    writer.add_add_bos_token(bool(settings["add_bos_token"]))
    for key, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if config.get(f"{key}_token_id") is not None:
            add(config[f"{key}_token_id"])
    if "chat_template" in settings:
        writer.add_chat_template(settings["chat_template"])
