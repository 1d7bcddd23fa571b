"""What is odd about a model's tokenizer, said before hours of work."""

from __future__ import annotations

from larql_duck.errors import reason
from larql_duck.models.architecture import quiet
from larql_duck.models.hf import HfSource
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import Tokenizer

# Blanks, digits, capitals, accents in both forms, scripts without blanks, a character of several code points.
_SAMPLE = "The capital of France  is Paris, founded in 1234.\n\tDon't: na\xefve cafe\u0301 Київ 東京は \U0001f469\u200d\U0001f680"


def tokenizer_notices(source: WeightSource, tokenizer: Tokenizer) -> list[str]:
    """What people should know of the tokenizer: ids other than transformers', a BOS twice, an EOS behind every prompt."""
    odd = tokenizer.habits()
    # A GGUF file or a vindex holds nothing else that its ids could be compared with.
    return [*odd, *_unlike_transformers(source, tokenizer)] if isinstance(source, HfSource) else odd


def _unlike_transformers(source: HfSource, tokenizer: Tokenizer) -> list[str]:
    from transformers import AutoTokenizer

    try:
        with quiet():
            theirs = AutoTokenizer.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
            expected = list(theirs(_SAMPLE).input_ids)
    except Exception as error:
        return [f"AutoTokenizer cannot read this tokenizer, so its ids were not compared: {reason(error)}"]
    ids = tokenizer.encode(_SAMPLE)
    if ids == expected:
        return []
    at = next(
        (i for i, pair in enumerate(zip(ids, expected, strict=False)) if len({*pair}) > 1),
        min(len(ids), len(expected)),
    )
    there, here = (tokenizer.decode(row[at : at + 3]) for row in (expected, ids))
    return [
        f"transformers' {type(theirs).__name__} reads a test text otherwise than tokenizer.json: {there!r} where it has "
        f"{here!r} (token {at}); if the model was trained so, write the file anew: "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    ]
