"""Models of random weights and any size, with tokenizers as large as their vocabularies: for figures of memory and time."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

_SPECIAL = "<|endoftext|>"
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


@dataclass(frozen=True)
class RandomModel:
    """The sizes of a model of Llama's family with tied embeddings; of Mixtral's, with as many experts, where it has any."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int = 8
    kv_heads: int = 2
    experts: int = 0

    def write(self, directory: Path, dtype: str = "bf16") -> Path:
        """The directory, after the model was written into it; one that is there stays."""
        if (directory / "config.json").is_file():
            return directory
        import torch
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(directory, self.vocab)
        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        generator = torch.Generator().manual_seed(0)
        # A file a layer, and one for the rest: no more is held at once.
        files: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in self._shapes().items():
            files.setdefault(name.split(".")[2] if ".layers." in name else "", {})[name] = shape
        for number, shapes in enumerate(files.values(), 1):
            weights = {}
            for name, shape in shapes.items():
                noise = torch.randn(shape, generator=generator)
                weights[name] = (1 + 0.1 * noise if len(shape) == 1 else 0.05 * noise).to(kind)
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            save_file(weights, directory / file, metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(self._config(dtype), indent=2))
        return directory

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        wide, narrow = self.hidden, self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, wide)}
        for i in range(self.layers):
            own: dict[str, tuple[int, ...]] = {
                "self_attn.q_proj": (wide, wide),
                "self_attn.k_proj": (narrow, wide),
                "self_attn.v_proj": (narrow, wide),
                "self_attn.o_proj": (wide, wide),
                "input_layernorm": (wide,),
                "post_attention_layernorm": (wide,),
                **self._ffn(),
            }
            shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in own.items()}
        return shapes | {"model.norm.weight": (wide,)}

    def _ffn(self) -> dict[str, tuple[int, ...]]:
        read: tuple[int, ...] = (self.intermediate, self.hidden)
        written: tuple[int, ...] = (self.hidden, self.intermediate)
        if not self.experts:
            return {"mlp.gate_proj": read, "mlp.up_proj": read, "mlp.down_proj": written}
        block, each = "block_sparse_moe", {"w1": read, "w3": read, "w2": written}
        parts = {f"{block}.experts.{e}.{n}": shape for e in range(self.experts) for n, shape in each.items()}
        return parts | {f"{block}.gate": (self.experts, self.hidden)}

    def _config(self, dtype: str) -> dict[str, object]:
        experts = {"num_local_experts": self.experts, "num_experts_per_tok": 2} if self.experts else {}
        kind = "mixtral" if self.experts else "llama"
        return experts | {
            "architectures": [f"{kind.capitalize()}ForCausalLM"],
            "model_type": kind,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype],
        }


def _write_tokenizer(directory: Path, vocab: int) -> None:
    """Write a byte-level BPE tokenizer of exactly `vocab` entries, nearly all of them words, each made by one merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate([_SPECIAL, *letters])}
    merges: list[tuple[str, str]] = []
    # A queue of beginnings: each grows by every letter of the other kind.
    ends = {
        **dict.fromkeys(_CONSONANTS, _VOWELS),
        **dict.fromkeys(_VOWELS, _CONSONANTS),
        "\u0120": _CONSONANTS,
    }
    grown = ["\u0120"]
    while len(tokens) < vocab:
        longer = []
        for beginning, letter in itertools.chain.from_iterable(
            zip(itertools.repeat(one), ends[one[-1]], strict=False) for one in grown
        ):
            if len(tokens) == vocab:
                break
            tokens[beginning + letter] = len(tokens)
            merges.append((beginning, letter))
            longer.append(beginning + letter)
        grown = longer
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _SPECIAL, "bos_token": _SPECIAL}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
