"""A model's own chat format: its template around a message, and the tokens at which it stops talking."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from larql_duck.errors import ModelError
from larql_duck.models.tokenizer import Tokenizer, json_object

_TEMPLATE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"
_GENERATION = "generation_config.json"


def chat_prompt(files: Mapping[str, bytes], message: str, system: str | None = None) -> str:
    """The message in the model's chat format, up to where the model's answer begins; see `conversation`."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return conversation(files, [*messages, {"role": "user", "content": message}])


def conversation(files: Mapping[str, bytes], messages: Sequence[Mapping[str, str]]) -> str:
    """Messages (role and content) in the model's chat format, up to where the model's answer begins.

    files are a source's tokenizer files. The text holds the special tokens itself: encode it without adding any.
    ModelError where the model has no chat template or its template does not work.
    """
    settings = json_object(files, _SETTINGS)
    template = files[_TEMPLATE].decode() if _TEMPLATE in files else _named(settings.get("chat_template"))
    if not template:
        raise ModelError("this model has no chat template; run it without --chat")
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {k: _content(settings.get(k)) for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    try:
        rendered = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=template,
            add_generation_prompt=True,
            # Templates that print today's date would make runs differ from day to day.
            strftime_now=lambda form: datetime.date(2025, 1, 1).strftime(form),
            **{k: v for k, v in tokens.items() if v is not None},
        )
    except Exception as error:
        raise ModelError(
            f"the model's chat template fails: {str(error)[:200]}; run it without --chat"
        ) from None
    text = rendered[0] if isinstance(rendered, tuple) else rendered
    return str(text[0] if isinstance(text, list) else text)


def stop_ids(files: Mapping[str, bytes], config: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer: what generation_config.json and config.json call end of sequence, and EOS."""
    stops: set[int] = set()
    for values in (json_object(files, _GENERATION), config):
        ids = values.get("eos_token_id")
        stops |= {i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)}
    if tokenizer.eos_id is not None:
        stops.add(tokenizer.eos_id)
    return tuple(sorted(stops))


def _named(template: Any) -> str | None:
    """The template's text; of several named ones the default."""
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _content(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
