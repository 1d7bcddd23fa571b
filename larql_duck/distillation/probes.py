"""What a model is asked while it is made smaller or taught: facts that it states, as prompts and answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from larql_duck.inference.batch import length_groups, pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import answer_ids
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing.packs import load_pack
from larql_duck.probing.splits import order_of
from larql_duck.vindex.store import Vindex

CONFIDENT = 0.5
"""From this confidence on, a fact counts as one that its model states."""
# What a model without facts is asked.
_PACK = "core"

PromptAnswer: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt and the answer behind it, as token ids."""


@dataclass(frozen=True)
class TaughtFact:
    """A fact that a model states, and the prompt in which it does; confidence is p where nothing was learnt about it."""

    subject: str
    relation: str
    object: str
    confidence: float
    prompt: str


def stated_facts(vindex: Vindex, least: float = CONFIDENT) -> list[TaughtFact]:
    """The first answers of a vindex with at least this confidence, most confident first; none where nothing was probed."""
    columns = ["subject", "relation", "object", "rank", "p", "confidence", "prompt", "source"]
    rows = vindex.table("facts").select(columns).to_pylist()
    facts = [
        TaughtFact(
            row["subject"],
            row["relation"],
            row["object"],
            float(row["p"] if row["confidence"] is None else row["confidence"]),
            row["prompt"],
        )
        for row in rows
        if row["rank"] == 1 and row["source"] == "probe" and row["prompt"] and row["object"]
    ]
    return sorted(
        (f for f in facts if f.confidence >= least), key=lambda f: (-f.confidence, f.relation, f.subject)
    )


def asked_of(tokenizer: Tokenizer, facts: Iterable[TaughtFact]) -> list[PromptAnswer]:
    """Prompt and answer of each fact."""
    return [(tuple(tokenizer.encode(f.prompt)), answer_ids(tokenizer, f.prompt, f.object)) for f in facts]


def sampled(facts: Sequence[TaughtFact], n: int) -> list[TaughtFact]:
    """n of the facts, as a hash of their names says, so that neither an order nor a relation decides."""
    return sorted(facts, key=lambda f: order_of(f"{f.subject}\0{f.relation}"))[:n]


def probes(engine: Engine, facts: Sequence[TaughtFact], n: int, tokens: int) -> list[PromptAnswer]:
    """At most n prompts of at most `tokens` tokens in all, with the answers that the model gives.

    Of a model without facts: the shipped prompts of pack core, with its most probable next token as the answer.
    """
    rows = asked_of(engine.tokenizer, sampled(facts, n)) if facts else _own_answers(engine, n)
    out: list[PromptAnswer] = []
    for prompt, answer in rows:
        tokens -= len(prompt) + len(answer)
        if tokens >= 0 and answer and engine.unfit([*prompt, *answer]) is None:
            out.append((prompt, answer))
    return out


def _own_answers(engine: Engine, n: int) -> list[PromptAnswer]:
    relations = load_pack(_PACK).relations
    prompts = [relation.prompt(subject) for relation in relations for subject in relation.entities]
    rows = [engine.tokenizer.encode(p) for p in sorted(prompts, key=order_of)[:n]]
    rows = [row for row in rows if engine.unfit(row) is None]
    out: list[PromptAnswer] = []
    for part in length_groups(list(map(len, rows))):
        logits = engine.logits(pad([rows[i] for i in part], device=engine.device))
        out += [(tuple(rows[i]), (int(token),)) for i, token in zip(part, logits.argmax(-1), strict=True)]
    return out
