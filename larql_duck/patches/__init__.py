"""Edits of a model: operations, patches that hold them, the overlay they make over an immutable vindex."""
