"""Prompts that ask for a fact: a template filled with its subject, the subject's position, the answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from larql_duck.knowledge.relations import SLOT

if TYPE_CHECKING:
    from larql_duck.models.tokenizer import Tokenizer

_ARTICLES = ("the ", "a ", "an ")
# Answers follow these without a blank.
_OPENERS = '"`<([“«.+#$'


@dataclass(frozen=True)
class SubjectPosition:
    """A prompt as token ids, and the index of its subject's last token (0-based)."""

    ids: tuple[int, ...]
    at: int

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens up to the subject's last one: all that its key depends on."""
        return self.ids[: self.at + 1]


def filled(template: str, text: str) -> tuple[str, int]:
    """The prompt with `text` in the template's slot, and the index behind it; an article that comes first is capitalised."""
    before, _, after = template.partition(SLOT)
    if not before.strip() and text.startswith(_ARTICLES):
        text = text[0].upper() + text[1:]
    return f"{before}{text}{after}", len(before) + len(text)


def subject_position(
    tokenizer: Tokenizer, template: str, text: str, more: Sequence[int] = ()
) -> SubjectPosition:
    """The Spot of a template filled with a subject's text, with the token ids `more` behind it."""
    prompt, end = filled(template, text)
    ids = tokenizer.encode(prompt)
    start = tokenizer.encode(prompt[:end])
    shared = 0
    while shared < min(len(ids), len(start)) and ids[shared] == start[shared]:
        shared += 1
    return SubjectPosition((*ids, *more), max(shared - 1, 0))


def answer_ids(tokenizer: Tokenizer, template: str, target: str) -> tuple[int, ...]:
    """The token ids of a target as it follows a template: behind a blank, or at once where the template opens a quotation."""
    if template[-1:].isspace() or template[-1:] in _OPENERS:
        return tuple(tokenizer.encode(target.strip(), special=False))
    return tuple(tokenizer.entity_ids(target))
