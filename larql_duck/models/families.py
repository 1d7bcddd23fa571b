"""The model families, read from families.toml, and how a config finds its own."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from larql_duck.errors import ModelError
from larql_duck.models.family import Config, Family


def _read_families() -> dict[str, Family]:
    """Name -> family, in the order of families.toml, which says how it is written."""
    families: dict[str, Family] = {}
    sections = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))
    for name, fields in sections.items():
        like = families[fields.pop("like")] if "like" in fields else Family(name)
        families[name] = replace(like, name=name, **fields)
    return families


FAMILIES = _read_families()
# Keys that gemma3 may keep outside of its text_config.
_OUTSIDE = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")


def family_for(config: Config, names: Collection[str] | None = None) -> tuple[Family, list[str]]:
    """The family of a config and notices for the user; ModelError when neither the table nor Llama's names fit.

    `names` are the checkpoint's tensor names; without them (a stored config) an unlisted model_type is taken as
    having Llama's names, which whoever stored it has checked.
    """
    model_type = config.get("model_type")
    known = ", ".join(FAMILIES)
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"config.json: model_type is missing; known: {known}")
    if model_type in FAMILIES:
        return FAMILIES[model_type], []
    family = replace(
        FAMILIES["llama"], name=model_type, gguf_arch="", gguf_permuted=False, defaults={}, listed=False
    )
    if names is not None:
        have = {family.canonical(n) for n in names}
        in_layer = (family.layer_prefix(0) + n for n in (*family.matrices(), *family.norms()))
        needed = [family.embed, family.final_norm, *in_layer]
        missing = [n for n in needed if n not in have]
        if missing:
            raise ModelError(
                f"model_type {model_type!r} is not known and lacks Llama's tensor {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; known: {known}, "
                "and any model with Llama's tensor names",
                tensor=missing[0],
            )
    return family, [f"model_type {model_type!r} is not in the family table; taken by its Llama tensor names"]


def text_config(config: Config) -> dict[str, Any]:
    """The text model's config as a new dict: a `text_config` unwrapped, with model_type and head tying."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping) or not (
        inner.get("model_type") or config.get("model_type") == "gemma3"
    ):
        return dict(config)
    own = "gemma3_text" if config.get("model_type") == "gemma3" else inner["model_type"]
    text = {**inner, "model_type": own}
    # What is around the text model says whether its head is tied, whatever the text model's own config has.
    if config.get("tie_word_embeddings") is True:
        text["tie_word_embeddings"] = True
    outside = {key: config[key] for key in _OUTSIDE if config.get(key) is not None}
    return text | {key: value for key, value in outside.items() if text.get(key) is None}


def complete(config: Config, family: Family) -> dict[str, Any]:
    """The config with the family's defaults written out for keys that it leaves to the architecture."""
    spelled = ((family.keys.get(key, key), key, value) for key, value in family.defaults.items())
    return dict(config) | {
        own: value for own, key, value in spelled if own not in config and key not in config
    }
