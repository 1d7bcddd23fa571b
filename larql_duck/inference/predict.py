"""INFER: the most probable next tokens, from the whole model or from its top features alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from larql_duck.catalog.forward_tables import as_table
from larql_duck.errors import LarqlError
from larql_duck.inference.batch import length_groups
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import Edit, Sparse
from larql_duck.inference.prefix import read_prompts
from larql_duck.inference.targets import top_tokens
from larql_duck.inference.whole_words import whole_words, words_begun
from larql_duck.models.tokenizer import Tokenizer

TOP = 5
WALK_K = 128
# One pass of many prompts holds at most this many logits.
_LOGITS = 1 << 25


@dataclass(frozen=True)
class Prediction:
    """The most probable next tokens of one prompt, best first: ids int64 [k], probabilities and logits f32 [k]."""

    ids: torch.Tensor
    probability: torch.Tensor
    logit: torch.Tensor

    def columns(self, tokenizer: Tokenizer) -> dict[str, list[Any]]:
        """The columns rank (from 1), token, token_id, probability and logit, one list of k values each."""
        ids = self.ids.tolist()
        return {
            "rank": list(range(1, len(ids) + 1)),
            "token": [tokenizer.token(i) for i in ids],
            "token_id": ids,
            "probability": self.probability.tolist(),
            "logit": self.logit.tolist(),
        }


def infer_table(
    engine: Engine,
    prompt: str,
    *,
    top: int = TOP,
    compare: bool = False,
    walk_k: int | None = None,
    verbose: bool = False,
    edits: Sequence[Edit] = (),
    more: Sequence[str] = (),
) -> pa.Table:
    """The `top` most probable next tokens, with the columns of SCHEMAS['infer'].

    walk_k thins each FFN out to the walk_k features with the largest absolute gate value at each position (source
    'walk'); compare gives the dense rows and the walk's. verbose continues every token to the end of its word, not
    the first one alone. edits are carried by every pass, those of a position by the prompt's alone. more are answers
    from elsewhere: a last row each, source 'patch', of which only the text is known. LarqlError for an empty or
    overlong prompt and for a layer or feature that the model lacks.
    """
    batch = engine.encode(prompt)
    ways: list[tuple[str, list[Edit]]] = []
    if compare or walk_k is None:
        ways.append(("dense", []))
    if compare or walk_k is not None:
        ways.append(("walk", [Sparse(WALK_K if walk_k is None else walk_k)]))
    parts = []
    for source, thinned in ways:
        cache = engine.new_cache()
        carried = [*edits, *thinned]
        with engine.intervene(*carried):
            found = prediction(engine.run(batch.ids, None, batch.positions, cache)[0], top)
        started = found.ids if verbose else found.ids[:1]
        with engine.intervene(*(e for e in carried if isinstance(e, Sparse) or e.position is None)):
            words: list[str | None] = [*whole_words(engine, batch, cache, started)]
        words += [None] * (len(found.ids) - len(words))
        sources = [source] * len(found.ids)
        parts.append({**found.columns(engine.tokenizer), "text": words, "source": sources})
    unknown: dict[str, list[Any]] = {key: [None] * len(more) for key in parts[0]}
    parts.append(unknown | {"token": [*more], "text": [*more], "source": ["patch"] * len(more)})
    return as_table("infer", {key: [v for part in parts for v in part[key]] for key in parts[0]})


def infer_tables(engine: Engine, prompts: Sequence[str], tops: Sequence[int]) -> list[pa.Table]:
    """What `infer_table` gives for each prompt and its number of tokens, without further options; prompts of like length
    share their passes.
    """
    out: dict[int, pa.Table] = {}
    for group in prompt_groups(engine, prompts):
        logits, read = read_prompts(engine, engine.encode([prompts[i] for i in group]))
        found = [prediction(row, tops[i]) for row, i in zip(logits, group, strict=True)]
        rows = torch.tensor([at for at, each in enumerate(found) if len(each.ids)], dtype=torch.int64)
        first = torch.tensor([int(found[at].ids[0]) for at in rows], dtype=torch.int64)
        words = dict(
            zip(
                rows.tolist(),
                words_begun(read, first.to(engine.device), rows.to(engine.device)),
                strict=True,
            )
        )
        for at, (i, each) in enumerate(zip(group, found, strict=True)):
            n = len(each.ids)
            texts = [words[at], *[None] * (n - 1)] if n else []
            columns = each.columns(engine.tokenizer) | {"text": texts, "source": ["dense"] * n}
            out[i] = as_table("infer", columns)
    return [out[i] for i in range(len(prompts))]


def prediction(logits: torch.Tensor, top: int) -> Prediction:
    """The Prediction of logits [vocab]; equal logits in the order of their ids."""
    if top < 0:
        raise LarqlError(f"TOP {top} is out of range; it must be at least 0")
    ids = top_tokens(logits, top)
    picked = logits[ids]
    return Prediction(ids, (picked - torch.logsumexp(logits, dim=-1)).exp(), picked)


def predictions(engine: Engine, prompts: Sequence[str], top: int = TOP) -> list[Prediction]:
    """The Prediction of every prompt, in their order; prompts of like length share a pass."""
    out: dict[int, Prediction] = {}
    for rows in prompt_groups(engine, prompts):
        for row, logits in zip(rows, engine.logits([prompts[i] for i in rows]), strict=True):
            out[row] = prediction(logits, top)
    return [out[i] for i in range(len(prompts))]


def prompt_groups(engine: Engine, prompts: Sequence[str]) -> Iterator[list[int]]:
    """Numbers of prompts that go through the model together: of like length, within a budget of tokens and logits."""
    lengths = [engine.encode(prompt).lengths[0] for prompt in prompts]
    return length_groups(lengths, rows=_LOGITS // engine.vocab)
