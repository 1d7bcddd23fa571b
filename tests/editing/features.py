"""Tiny vindexes in which facts can be inserted, and what is asked of them."""

from __future__ import annotations

from larql_duck.inference.scoring import answer_ids
from larql_duck.session import Session

FAMILIES = ["llama", "gemma3_text", "qwen3"]
# Its FFNs have no up matrix, and what they read has a part that is the same everywhere.
PLAIN = "arcee"
# Random attention hardly reads a subject from afar, so the prompt ends with it.
TEMPLATE = "The capital {}"


def insert(session: Session, facts, tail: str = f'AT LAYER 1 TEMPLATE "{TEMPLATE}"'):
    """The result of an INSERT of these facts."""
    values = ", ".join(f'("{e}", "{r}", "{t}")' for e, r, t in facts)
    return session.lql(f"INSERT INTO EDGES (entity, relation, target) VALUES {values} {tail};")


def says(session: Session, prompt: str, target: str) -> bool:
    """Whether greedy decoding gives the whole target."""
    engine = session.model.engine
    ids = engine.tokenizer.encode(prompt)
    for token in answer_ids(engine.tokenizer, prompt, target):
        if int(engine.logits(engine.pad(ids))[0].argmax()) != token:
            return False
        ids.append(token)
    return True
