"""Models and replies made to order: a bigram language model in transformers' clothing, and replies without a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from larql_duck.inference.engine import Engine
from larql_duck.knowledge.relations import Relation
from larql_duck.models.opening import open_model
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.probing.facts import probe
from larql_duck.probing.outcomes import NO_ARTICLE, Candidate, Outcome, Reply
from tests.tiny import make_tiny


def bigram_engine(directory: Path, table: Mapping[str, Mapping[str, float]]) -> Engine:
    """An engine whose next token depends on the last token alone: table[last][next] is a probability.

    What a row leaves over is spread over the whole vocabulary; tokens without a row are followed by a newline.
    """
    make_tiny("llama", directory, layers=1, hidden=576, intermediate=8, tied=False, rms_norm_eps=1e-12)
    config = json.loads((directory / "config.json").read_text())
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    assert vocab <= hidden
    tokenizer = load_tokenizer(
        {n: (directory / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")}
    )
    weights = load_file(directory / "model.safetensors")
    for name, weight in weights.items():
        if "norm" in name:
            weight.fill_(1.0)
        elif "layers" in name:
            weight.zero_()
    weights["model.embed_tokens.weight"] = torch.eye(vocab, hidden)
    head = torch.zeros(vocab, hidden)
    for last in range(vocab):
        row = table.get(tokenizer.token(last), {"\n": 0.99})
        rest = max(1e-9, 1 - sum(row.values())) / vocab
        for token in range(vocab):
            head[token, last] = math.log(rest)
        for token, p in row.items():
            (index,) = tokenizer.encode(token, special=False)
            head[index, last] = math.log(p + rest)
    # A one-hot residual leaves the final norm with length sqrt(hidden).
    weights["lm_head.weight"] = head / math.sqrt(hidden)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return Engine.load(open_model(directory))


def probe_facts(engine: Engine, asked: Sequence[Relation], **options: Any) -> dict[str, pa.Table]:
    """The tables of a probing run."""
    return probe(engine, asked, **options).tables


def reply(subject: str, variant: int = 0, /, **answers: float) -> Reply:
    """A Reply with these answers and their probabilities; p_string is p, every word is a token of its own."""
    ordered = sorted(answers.items(), key=lambda item: -item[1])
    ids = {word: sum(word.encode()) for word, _ in ordered}
    return Reply(
        subject=subject,
        variant=variant,
        prompt=f"template {variant} about {subject}",
        outcome=Outcome(
            predicted_id=ids[ordered[0][0]] if ordered else 0,
            predicted=f" {ordered[0][0]}" if ordered else " of",
            p=ordered[0][1] if ordered else 0.5,
            entropy=1.0,
            top={ids[word]: p for word, p in ordered},
            candidates=tuple(Candidate(word, ids[word], NO_ARTICLE, p, p) for word, p in ordered if p >= 0.1),
        ),
    )
