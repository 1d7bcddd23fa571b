"""Model files as weight sources: the readers, the family table and the tokenizer."""
