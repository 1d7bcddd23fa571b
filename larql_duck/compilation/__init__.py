"""Edits written out: a vindex, a Hugging Face directory or a GGUF file that has them inside."""

from larql_duck.compilation.conflicts import Conflict, resolve
from larql_duck.compilation.model import CompiledModel, compile_model
from larql_duck.compilation.source import EditedWeights
from larql_duck.compilation.vindex import CompiledVindex, compile_vindex

__all__ = [
    "CompiledModel",
    "CompiledVindex",
    "Conflict",
    "EditedWeights",
    "compile_model",
    "compile_vindex",
    "resolve",
]
