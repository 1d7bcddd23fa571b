"""What a model is that is not read here, in words: encoders, encoder-decoders, mixtures of experts, hybrids."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from larql_duck.models.family import Config

# Modules that are parts of an FFN among which a layer chooses, or that choose, by the last part of their names.
_PARTS = re.compile(r"(?:.*_)?experts?")
_CHOOSING = re.compile(r"(?:.*_)?router")
_COUNT = re.compile(r"(?:moe_)?(?:num|n)_(?:\w+_)?experts?|moe_num_experts")
# Modules that mix positions without attention, by their classes.
_MIXING = re.compile(
    r"Mamba|Mixer|SSM|Rwkv|xLSTM|RecurrentBlock|RgLru|GatedDelta|ShortConv|DeltaAttention|LightningAttention"
)
_ATTENTION = re.compile(r"Attention(?!Residual)|Attn")
# The attention of a decoder that reads an encoder's output.
_CROSSING = re.compile(r"encoder_attn|cross_?attention")
# Caches of one family that `inference.kv_cache` makes, too.
_KNOWN_CACHES = ("MiniMaxCache",)
_READ = "read are decoder models of one feed-forward network a layer"


def other_kind(config: Any) -> str | None:
    """What transformers' config object is of, where no causal decoder comes of it; None where one does."""
    from transformers.models.auto import modeling_auto as auto

    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return _line(name, "an encoder-decoder")
    if name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hides = name in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if hides and not getattr(config, "is_decoder", False):
            return encoder(name)
        return None
    if name in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return encoder(name)
    if name in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return _line(name, "an encoder-decoder")
    return _line(name, "no language model that predicts the next token")


def experts_in(config: Config) -> int | None:
    """How many experts a config speaks of; None for none."""
    counts = [
        value
        for key, value in _flat(config)
        if _COUNT.fullmatch(str(key)) and isinstance(value, int) and not isinstance(value, bool)
    ]
    return max(counts) if counts and max(counts) > 1 else None


def mixture(config: Config, model_type: str) -> str:
    """That a model is a mixture of experts of a kind that is not read."""
    count = experts_in(config)
    experts = f"a mixture of experts{f' ({count} experts)' if count else ''}"
    return f"model_type {model_type!r} is {experts} of a kind that is not read: transformers keeps them in another way"


def is_mixture(modules: Iterable[tuple[str, nn.Module]], config: Config) -> bool:
    """Whether there are experts among named modules, or what chooses among those that the config speaks of."""
    names = {name.rpartition(".")[2] for name, _ in modules}
    if any(_PARTS.fullmatch(name) for name in names):
        return True
    return experts_in(config) is not None and any(_CHOOSING.fullmatch(name) for name in names)


def attention_of(block: nn.Module) -> str | None:
    """The name of the child of a layer that is its attention; None where it has none."""
    return next((name for name, m in block.named_children() if _attends(m)), None)


def _attends(module: nn.Module) -> bool:
    name = type(module).__name__
    return _ATTENTION.search(name) is not None and _MIXING.search(name) is None


def mixers_of(block: nn.Module) -> list[str]:
    """The names of the children of a layer that mix positions: attention first, then what stands in its place or beside it."""
    found = {n: m for n, m in block.named_children() if _ATTENTION.search(_class(m)) or _mixes(m)}
    return sorted(found, key=lambda name: not _attends(found[name]))


def _mixes(module: nn.Module) -> bool:
    return _MIXING.search(_class(module)) is not None and not _class(module).endswith("Norm")


def _class(module: nn.Module) -> str:
    return type(module).__name__


def kind_of_mixer(module: nn.Module) -> str:
    """What mixes positions, in a word: 'attention', or the class that transformers has for it."""
    return "attention" if _attends(module) else _class(module)


def other_layers(model_type: str, blocks: Iterable[nn.Module]) -> str | None:
    """That layers are no attention beside an FFN, in words; None where, as far as classes say, some are."""
    mixing, attending, crossing = [], [], []
    for block in blocks:
        inside = [m for m in block.modules() if m is not block]
        mixing.append(next((_class(m) for m in inside if _mixes(m)), None))
        attending.append(attention_of(block) is not None)
        crossing.append(any(_CROSSING.search(name) for name, _ in block.named_children()))
    if all(crossing):
        return _line(model_type, "the decoder of an encoder-decoder")
    if any(attending):
        return None
    what = next((name for name in mixing if name), None)
    return _line(model_type, f"without attention{f': its layers have {what}' if what else ''}")


def keeps_states_elsewhere(model: nn.Module, model_type: str) -> str | None:
    """That the model keeps what it has read where nobody can fork it, in words; None where it is in transformers' cache."""
    if any(hasattr(module, "_setup_cache") for module in model.modules() if module is not model):
        return (
            f"model_type {model_type!r} keeps its states in its modules instead of a cache, which is not read"
        )
    own = vars(sys.modules[type(model).__module__])
    for name, value in own.items():
        if name in _KNOWN_CACHES:
            continue
        if isinstance(value, type) and name.endswith("Cache") and value.__module__ == type(model).__module__:
            return f"model_type {model_type!r} keeps its states in a cache of its own ({name}), which is not read"
    return None


def without_ffn(model_type: str) -> str:
    """That no layer adds what a feed-forward network gives to the residual."""
    return _line(model_type, "without a feed-forward network that adds to the residual by itself")


def unlike(model_type: str, what: str) -> str:
    """That the layers of a model are not all alike; `what` says in which."""
    return _line(model_type, f"a hybrid of unlike layers: {what}")


def encoder(model_type: str) -> str:
    """That a model's layers are an encoder's."""
    return _line(model_type, "an encoder, which predicts hidden tokens and not the next one")


def _line(model_type: str, what: str) -> str:
    return f"model_type {model_type!r} is {what}; {_READ}"


def _flat(config: Config) -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value
