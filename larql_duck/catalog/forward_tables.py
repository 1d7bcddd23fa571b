"""The columns of every table that a forward pass gives: names, Arrow types and what they mean. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_I32, _I64, _F32, _F64, _S = pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string()
_VECTOR = pa.list_(pa.float32())

_LAYER = ("layer", _I32, "Layer, from 0.")
_FEATURE = ("feature", _I32, "Feature within the layer, from 0.")
_POSITION = ("position", _I32, "Position in the prompt, from 0; a BOS token that the tokenizer adds counts.")

# table -> [(column, type, comment)]
_COLUMNS: dict[str, list[tuple[str, pa.DataType, str]]] = {
    "infer": [
        ("rank", _I32, "Rank within its source, from 1; NULL for a database fact."),
        (
            "token",
            _S,
            "The predicted token, decoded, leading space kept; of a database fact the whole answer.",
        ),
        ("token_id", _I32, "Its token id."),
        ("probability", _F64, "The model's probability."),
        ("logit", _F64, "The model's logit, after soft-caps."),
        (
            "source",
            _S,
            "dense: the whole model; walk: each FFN thinned out to its top features; patch: a database fact.",
        ),
    ],
    "explain": [
        ("kind", _S, "feature, head or attention."),
        _LAYER,
        ("feature", _I32, "Feature within the layer, from 0; kind feature only."),
        ("head", _I32, "Attention head, from 0; kinds head and attention."),
        ("relation", _S, "The feature's relation label; NULL where it has none."),
        ("gate", _F32, "The feature's gate value at the last position."),
        ("activation", _F32, "The feature's activation there: what the down projection reads."),
        (
            "contribution",
            _F32,
            "What the feature or head adds directly to the explained token's centred logit, before soft-caps.",
        ),
        ("token", _S, "feature: the token it writes most; attention: the attended token."),
        ("position", _I32, "Kind attention: the attended position, from 0."),
        ("weight", _F32, "Kind attention: the attention weight of the last position on it."),
    ],
    "trace": [
        _POSITION,
        ("layer", _I32, "Layer, from 0; -1 is the embedding."),
        (
            "top_token",
            _S,
            "The logit lens: the most probable token if the residual after this layer were the last.",
        ),
        ("probability", _F64, "Its probability in that reading."),
        (
            "attn_norm",
            _F32,
            "L2 norm of what attention (or, in a head's row, the head) adds to the residual.",
        ),
        ("ffn_norm", _F32, "L2 norm of what the FFN adds to the residual."),
        ("residual_norm", _F32, "L2 norm of the residual after the layer."),
        ("token_rank", _I32, "Rank of the FOR token in the logit lens, from 1."),
        ("token_probability", _F64, "Its probability there."),
        (
            "attn_logit",
            _F64,
            "What attention (or the head) adds to the FOR token's centred logit, with the final norm's actual factor.",
        ),
        (
            "ffn_logit",
            _F64,
            "What the FFN adds to it. Layer -1: the embedding's part, with the biases of final norm and head; the "
            "rows without a head therefore add up to the centred logit.",
        ),
        (
            "attn_share",
            _F32,
            "DECOMPOSE: attn_norm / (attn_norm + ffn_norm); in a head's row its norm / the sum of the heads' norms.",
        ),
        ("head", _I32, "DECOMPOSE: attention head, from 0; NULL in the layer's own row."),
    ],
    "lens": [
        _POSITION,
        ("layer", _I32, "Layer, from 0; -1 is the embedding."),
        ("rank", _I32, "Rank, from 1."),
        ("token", _S, "The token, decoded, leading space kept."),
        ("token_id", _I32, "Its token id."),
        ("probability", _F64, "Its probability if the residual after this layer were the last."),
        ("logit", _F64, "Its logit in that reading."),
    ],
    "residuals": [
        ("prompt", _S, "The prompt."),
        _POSITION,
        ("token", _S, "The prompt's token there."),
        ("layer", _I32, "Layer, from 0; -1 is the embedding."),
        ("residual", _VECTOR, "The residual after the layer, one number per hidden axis."),
        ("attn_delta", _VECTOR, "What attention added to it; zeros at layer -1."),
        ("ffn_delta", _VECTOR, "What the FFN added to it; zeros at layer -1."),
    ],
    "activations": [
        ("prompt", _S, "The prompt."),
        _POSITION,
        ("token", _S, "The prompt's token there."),
        _LAYER,
        _FEATURE,
        ("rank", _I32, "Rank within position and layer by absolute activation, from 1."),
        ("gate", _F32, "Gate value, before the activation function."),
        ("activation", _F32, "What the down projection reads; signed."),
    ],
    "causal": [
        ("layer", _I32, "Layer after which the residual is replaced, from 0; -1 is the embedding."),
        ("position", _I32, "The corrupted prompt's position that is replaced, from 0."),
        ("token", _S, "The corrupted prompt's token there."),
        ("clean_token", _S, "The clean prompt's token whose residual is put there."),
        ("probability", _F64, "The answer's probability then."),
        ("logit", _F64, "The answer's logit then."),
        ("effect", _F64, "probability minus that of the untouched corrupted prompt."),
        ("recovery", _F64, "Share of the logit between corrupted and clean that comes back; 1 is all of it."),
    ],
    "contexts": [
        _LAYER,
        _FEATURE,
        ("rank", _I32, "Rank by absolute activation, from 1."),
        ("activation", _F32, "The activation, signed."),
        ("token", _S, "The token at which the feature fires, decoded."),
        ("before", _S, "The text before it."),
        ("after", _S, "The text after it."),
        ("text", _I64, "Number of the text in the corpus, from 0."),
        ("position", _I32, "Position of the token in the text, from 0."),
        (
            "density",
            _F64,
            "Share of all tokens whose |activation| lies at most three powers of two below the feature's largest.",
        ),
        ("mean", _F32, "Mean activation over all tokens."),
        (
            "histogram",
            pa.list_(pa.int64()),
            "Tokens by |activation|: below 2^-12, from 2^-12 to 2^-11, ..., from 2^15 to 2^16, from 2^16 on.",
        ),
    ],
    "raw": [
        ("text", _I64, "Number of the text in the corpus, from 0."),
        ("position", _I32, "Position of the token in the text, from 0."),
        ("token", _S, "The token, decoded."),
        _LAYER,
        ("rank", _I32, "Rank within token and layer by absolute activation, from 1."),
        _FEATURE,
        ("activation", _F32, "The activation, signed."),
    ],
}

SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema([pa.field(column, kind) for column, kind, _ in columns])
    for name, columns in _COLUMNS.items()
}
COMMENTS: dict[str, dict[str, str]] = {
    name: {column: comment for column, _, comment in columns} for name, columns in _COLUMNS.items()
}


def as_table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    """An Arrow table with exactly the columns of `name`, from one array or list a column; others are NULL.

    A column that the table lacks raises KeyError.
    """
    schema = SCHEMAS[name]
    if unknown := set(columns) - set(schema.names):
        raise KeyError(f"table {name} has no column {sorted(unknown)}")
    n = next((len(values) for values in columns.values()), 0)
    arrays = [
        pa.array(columns[f.name], type=f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def vectors(matrix: Any) -> pa.Array:
    """A column of float lists from a float32 numpy matrix, one list a row."""
    import numpy as np

    rows, width = matrix.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1), pa.float32()))
