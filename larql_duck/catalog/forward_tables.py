"""The columns of every table that a forward pass gives: names, types and what they mean. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from larql_duck.catalog.arrow import arrow_schema, columns_as_table
from larql_duck.catalog.tables import columns

# fmt: off
FORWARD_COLUMNS = {
    "infer": columns("""
        rank         INTEGER  Rank within its source, from 1; NULL for a database fact.
        token        VARCHAR  The predicted token, decoded, leading space kept; of a database fact the whole answer.
        token_id     INTEGER  Its token id.
        probability  DOUBLE   The model's probability.
        logit        DOUBLE   The model's logit, after soft-caps.
        source       VARCHAR  dense: the whole model; walk: each FFN thinned out to its top features; patch: a database fact.
    """),
    "explain": columns("""
        kind          VARCHAR  feature, head or attention.
        layer         INTEGER  Layer, from 0.
        feature       INTEGER  Feature within the layer, from 0; kind feature only.
        head          INTEGER  Attention head, from 0; kinds head and attention.
        relation      VARCHAR  The feature's relation label; NULL where it has none.
        gate          FLOAT    The feature's gate value at the last position.
        activation    FLOAT    The feature's activation there: what the down projection reads.
        contribution  FLOAT    What the feature or head adds directly to the explained token's centred logit, before soft-caps.
        token         VARCHAR  feature: the token it writes most; attention: the attended token.
        position      INTEGER  Kind attention: the attended position, from 0.
        weight        FLOAT    Kind attention: the attention weight of the last position on it.
    """),
    "trace": columns("""
        position           INTEGER  Position in the prompt, from 0; a BOS token that the tokenizer adds counts.
        layer              INTEGER  Layer, from 0; -1 is the embedding.
        top_token          VARCHAR  The logit lens: the most probable token if the residual after this layer were the last.
        probability        DOUBLE   Its probability in that reading.
        attn_norm          FLOAT    L2 norm of what attention (or, in a head's row, the head) adds to the residual.
        ffn_norm           FLOAT    L2 norm of what the FFN adds to the residual.
        residual_norm      FLOAT    L2 norm of the residual after the layer.
        token_rank         INTEGER  Rank of the FOR token in the logit lens, from 1.
        token_probability  DOUBLE   Its probability there.
        attn_logit         DOUBLE   What attention (or the head) adds to the FOR token's centred logit, with the final norm's actual factor.
        ffn_logit          DOUBLE   What the FFN adds to it. Layer -1: the embedding's part, with the biases of final norm and head; the rows without a head therefore add up to the centred logit.
        attn_share         FLOAT    DECOMPOSE: attn_norm / (attn_norm + ffn_norm); in a head's row its norm / the sum of the heads' norms.
        head               INTEGER  DECOMPOSE: attention head, from 0; NULL in the layer's own row.
    """),
    "lens": columns("""
        position     INTEGER  Position in the prompt, from 0; a BOS token that the tokenizer adds counts.
        layer        INTEGER  Layer, from 0; -1 is the embedding.
        rank         INTEGER  Rank, from 1.
        token        VARCHAR  The token, decoded, leading space kept.
        token_id     INTEGER  Its token id.
        probability  DOUBLE   Its probability if the residual after this layer were the last.
        logit        DOUBLE   Its logit in that reading.
    """),
    "residuals": columns("""
        prompt      VARCHAR  The prompt.
        position    INTEGER  Position in the prompt, from 0; a BOS token that the tokenizer adds counts.
        token       VARCHAR  The prompt's token there.
        layer       INTEGER  Layer, from 0; -1 is the embedding.
        residual    FLOAT[]  The residual after the layer, one number per hidden axis.
        attn_delta  FLOAT[]  What attention added to it; zeros at layer -1.
        ffn_delta   FLOAT[]  What the FFN added to it; zeros at layer -1.
    """),
    "activations": columns("""
        prompt      VARCHAR  The prompt.
        position    INTEGER  Position in the prompt, from 0; a BOS token that the tokenizer adds counts.
        token       VARCHAR  The prompt's token there.
        layer       INTEGER  Layer, from 0.
        feature     INTEGER  Feature within the layer, from 0.
        rank        INTEGER  Rank within position and layer by absolute activation, from 1.
        gate        FLOAT    Gate value, before the activation function.
        activation  FLOAT    What the down projection reads; signed.
    """),
    "causal": columns("""
        layer        INTEGER  Layer after which the residual is replaced, from 0; -1 is the embedding.
        position     INTEGER  The corrupted prompt's position that is replaced, from 0.
        token        VARCHAR  The corrupted prompt's token there.
        clean_token  VARCHAR  The clean prompt's token whose residual is put there.
        probability  DOUBLE   The answer's probability then.
        logit        DOUBLE   The answer's logit then.
        effect       DOUBLE   probability minus that of the untouched corrupted prompt.
        recovery     DOUBLE   Share of the logit between corrupted and clean that comes back; 1 is all of it.
    """),
    "contexts": columns("""
        layer       INTEGER   Layer, from 0.
        feature     INTEGER   Feature within the layer, from 0.
        rank        INTEGER   Rank by absolute activation, from 1.
        activation  FLOAT     The activation, signed.
        token       VARCHAR   The token that activates the feature, decoded.
        before      VARCHAR   The text before it.
        after       VARCHAR   The text after it.
        text        BIGINT    Number of the text in the corpus, from 0.
        position    INTEGER   Position of the token in the text, from 0.
        density     DOUBLE    Share of all tokens whose |activation| lies at most three powers of two below the feature's largest.
        mean        FLOAT     Mean activation over all tokens.
        histogram   BIGINT[]  Tokens by |activation|: below 2^-12, from 2^-12 to 2^-11, ..., from 2^15 to 2^16, from 2^16 on.
    """),
    "raw": columns("""
        text        BIGINT   Number of the text in the corpus, from 0.
        position    INTEGER  Position of the token in the text, from 0.
        token       VARCHAR  The token, decoded.
        layer       INTEGER  Layer, from 0.
        rank        INTEGER  Rank within token and layer by absolute activation, from 1.
        feature     INTEGER  Feature within the layer, from 0.
        activation  FLOAT    The activation, signed.
    """),
}
# fmt: on
"""Name of a table -> its columns, in order."""

SCHEMAS: dict[str, pa.Schema] = {name: arrow_schema(part) for name, part in FORWARD_COLUMNS.items()}


def as_table(name: str, values: Mapping[str, Any]) -> pa.Table:
    """An Arrow table with exactly the columns of `name`, from one array or list a column; others are NULL.

    A column that the table lacks raises KeyError.
    """
    return columns_as_table(SCHEMAS[name], values, name)


def vectors(matrix: Any) -> pa.Array:
    """A column of float lists from a float32 numpy matrix [rows, width], one list a row."""
    import numpy as np

    rows, width = matrix.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1), pa.float32()))
