"""What is said of each round of a student's training."""

from __future__ import annotations

import pyarrow as pa

ROUNDS = pa.schema(
    [
        ("round", pa.int32()), ("step", pa.int32()), ("tokens", pa.int64()), ("loss", pa.float64()),
        ("kept_trained", pa.int32()), ("trained", pa.int32()), ("kept_held_out", pa.int32()),
        ("held_out", pa.int32()), ("perplexity", pa.float64()), ("seconds", pa.float64()),
    ]
)  # fmt: skip
"""A row for the student before training (round 0) and after each round: facts kept of those about trained and held-out
subjects, the perplexity of texts that were kept back, tokens read and the round's mean loss."""
