"""The input side: model files as weight sources, the family table and the tokenizer."""

from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.families import FAMILIES, Family, ModelSizes, family_for
from larql_duck.models.opening import open_model
from larql_duck.models.source import WeightSource, ffn_matrix, final_norm_multiplier, head_matrix
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "FAMILIES",
    "Family",
    "ModelSizes",
    "ModelSource",
    "Tokenizer",
    "WeightSource",
    "family_for",
    "ffn_matrix",
    "final_norm_multiplier",
    "head_matrix",
    "load_tokenizer",
    "open_model",
]
