"""Where each tensor of a model lives in a vindex: file, key and order, as LARQL lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from larql_duck.models.families import Family

GATE, UP, DOWN, EMBED = "gate_vectors.bin", "up_weights.bin", "down_weights.bin", "embeddings.bin"
ATTENTION, NORMS, HEAD, EXTRA = "attn_weights.bin", "norms.bin", "lm_head.bin", "extra_weights.bin"
WEIGHT_MANIFEST = "weight_manifest.json"
DOWN_META = "down_meta.bin"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Place:
    """One stored tensor: its Hugging Face name, LARQL's key, its file, and whether the file holds its transpose."""

    name: str
    key: str
    file: str
    transposed: bool = False


def places(family: Family, names: Sequence[str], n_layers: int) -> list[Place]:
    """Every tensor in `names` but gates and embedding, in the order in which LARQL's manifest lists them.

    Attention matrices of all layers first, then up and down matrices, then vectors (norms, biases), then the rest.
    """
    left = dict.fromkeys(names)
    left.pop(family.embed, None)
    for layer in range(n_layers):
        left.pop(family.gate_name(layer), None)
    ffn = {family.up_name(i): UP for i in range(n_layers)} | {
        family.down_name(i): DOWN for i in range(n_layers)
    }
    attention = {
        family.layer_prefix(i) + n
        for i in range(n_layers)
        for n in (family.qkv, family.q, family.k, family.v, family.o)
        if n
    }
    return list(_ordered(family, left, n_layers, ffn, attention))


def _ordered(
    family: Family, left: dict[str, None], n_layers: int, ffn: dict[str | None, str], attention: set[str]
) -> Iterator[Place]:
    layers = [family.layer_prefix(i) for i in range(n_layers)]
    in_layer = [prefix + n for prefix in layers for n in family.matrices()]
    for name in in_layer:
        if name in attention and name in left:
            del left[name]
            yield Place(name, family.key_of(name), ATTENTION)
    for name in in_layer:
        if name in ffn and name in left:
            del left[name]
            yield Place(name, family.key_of(name), ffn[name], family.transposed)
    norms = [prefix + n for prefix in layers for n in family.norms()]
    vectors = [n for n in norms if n in left]
    vectors += [n for n in left if n not in set(vectors) and n != family.final_norm and _is_vector(n)]
    if family.final_norm in left:
        vectors.append(family.final_norm)
    for name in vectors:
        del left[name]
        yield Place(name, family.key_of(name), NORMS)
    for name in left:
        yield Place(name, family.key_of(name), HEAD if name == family.head else EXTRA)


def _is_vector(name: str) -> bool:
    return name.endswith(".bias") or name.rsplit(".", 2)[-2].endswith("norm")
