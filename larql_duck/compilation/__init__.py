"""Edits written out: a vindex, a Hugging Face directory or a GGUF file that has them inside."""
