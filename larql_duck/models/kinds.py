"""What a model is that is not read here, in words: encoders, encoder-decoders, mixtures of experts, hybrids."""

from __future__ import annotations

import re
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
_ATTENTION = re.compile(r"Attention|Attn")
# The attention of a decoder that reads an encoder's output.
_CROSSING = re.compile(r"encoder_attn|cross_?attention")
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


def other_layers(model_type: str, blocks: Iterable[nn.Module]) -> str | None:
    """That layers are no attention beside an FFN, in words; None where, as far as classes say, they are."""
    mixing, attending, crossing = [], [], []
    for block in blocks:
        inside = [m for m in block.modules() if m is not block]
        names = (type(m).__name__ for m in inside)
        mixing.append(next((n for n in names if _MIXING.search(n) and not n.endswith("Norm")), None))
        attending.append(attention_of(block) is not None)
        crossing.append(any(_CROSSING.search(name) for name, _ in block.named_children()))
    if all(crossing):
        return _line(model_type, "the decoder of an encoder-decoder")
    what = next((name for name in mixing if name), None)
    if what is not None and any(attending):
        return _line(model_type, f"a hybrid: layers have {what} instead of attention, or beside it")
    if what is not None or not any(attending):
        return _line(model_type, f"without attention{f': its layers have {what}' if what else ''}")
    return None if all(attending) else _line(model_type, "a hybrid: not every layer has attention")


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
