"""The public schema: every table's Arrow schema and what each table and column means.

`SCHEMAS[name]` is what extraction writes and `open` checks; `COMMENTS[name]` holds the table's comment under
the key '' and one comment a column. The SQL files and the README are tested against both.
"""

from __future__ import annotations

import pyarrow as pa

_I32, _I64, _F32, _F64, _S, _B = pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.bool_()
_LS, _LI = pa.list_(pa.string()), pa.list_(pa.int32())

# table -> (comment, [(column, type, comment)])
_TABLES: dict[str, tuple[str, list[tuple[str, pa.DataType, str]]]] = {
    "layers": (
        "One row per transformer layer.",
        [
            ("layer", _I32, "Layer, from 0."),
            ("n_features", _I32, "FFN features (neurons) in this layer."),
            (
                "band",
                _S,
                "syntax, knowledge or output; NULL where the model has no bands (fewer than 8 layers).",
            ),
            ("gate_offset", _I64, "Byte offset of the layer's rows in gate_vectors.bin."),
            ("gate_bytes", _I64, "Bytes of the layer's rows in gate_vectors.bin."),
        ],
    ),
    "tokens": (
        "One row per vocabulary entry.",
        [
            ("token_id", _I32, "Row of the embedding matrix."),
            ("token", _S, "The decoded token, leading space kept."),
            ("text", _S, "The token without surrounding white space."),
            ("is_word", _B, "At least one letter or digit of any script; false for special and byte tokens."),
            ("norm", _F32, "L2 norm of the (unscaled) embedding row."),
        ],
    ),
    "features": (
        "One row per FFN feature: what fires it, what it writes, and how strongly.",
        [
            ("layer", _I32, "Layer, from 0."),
            ("feature", _I32, "Feature within the layer, from 0."),
            ("expert", _I32, "Expert of a mixture-of-experts layer; NULL in dense layers."),
            ("gate_norm", _F32, "L2 norm of the gate row."),
            ("up_norm", _F32, "L2 norm of the up row; NULL for plain FFNs and where no up matrix is stored."),
            ("down_norm", _F32, "L2 norm of the down column."),
            ("gate_mean", _F32, "Mean gate value over the word-like tokens (basis says in which context)."),
            ("gate_std", _F32, "Standard deviation of the gate value over the word-like tokens."),
            ("basis", _S, "context or embedding: where gate_mean, gate_std and the in tokens were measured."),
            ("top_token", _S, "The token it writes most: rank 1 of side out, trimmed."),
            ("top_token_id", _I32, "Token id of top_token."),
            ("down_tokens", _LS, "The three tokens it writes most, trimmed."),
            (
                "c_score",
                _F32,
                "Raw dot product of the down column with the output embedding of top_token (a logit, no probability).",
            ),
            ("relation", _S, "Best relation label; NULL where none was found."),
            ("relation_source", _S, "probe, cluster or patch."),
            ("cluster_id", _I32, "Cluster of offset directions; NULL outside clusters."),
        ],
    ),
    "feature_tokens": (
        "Which tokens a feature answers to (in), writes (out) and suppresses (out_neg).",
        [
            ("layer", _I32, "Layer, from 0."),
            ("feature", _I32, "Feature within the layer, from 0."),
            ("side", _S, "in = answers to the token, out = writes it, out_neg = suppresses it."),
            ("rank", _I32, "Rank within the side, from 1."),
            ("token_id", _I32, "Token id."),
            ("token", _S, "The decoded token, leading space kept."),
            (
                "score",
                _F32,
                "in: the gate value; out and out_neg: cosine of the down column with the centred output head.",
            ),
            ("z", _F32, "Standard score of the value among the feature's values over the word-like tokens."),
            ("activation", _F32, "Side in: signed activation, act(gate) * up; NULL without an up matrix."),
            ("basis", _S, "context or embedding for side in; output for the out sides."),
        ],
    ),
    "token_features": (
        "Each word-like token's 32 most specific features over all layers.",
        [
            ("token_id", _I32, "Token id."),
            ("token", _S, "The decoded token, leading space kept."),
            ("layer", _I32, "Layer, from 0."),
            ("feature", _I32, "Feature within the layer, from 0."),
            ("rank", _I32, "Rank by z, from 1."),
            ("gate", _F32, "The gate value."),
            ("activation", _F32, "Signed activation, act(gate) * up; NULL without an up matrix."),
            (
                "z",
                _F32,
                "Standard score of the gate value among the feature's values over the word-like tokens.",
            ),
            ("basis", _S, "context or embedding."),
        ],
    ),
    "relations": (
        "One row per relation that was probed, found by clustering or inserted.",
        [
            ("relation", _S, "Name of the relation."),
            ("source", _S, "probe, cluster or patch."),
            ("description", _S, "What the relation says."),
            ("templates", _LS, "The prompt templates, {} standing for the subject."),
            ("n_facts", _I32, "Facts of rank 1."),
            ("n_features", _I32, "Distinct features listed for its facts."),
            ("layers", _LI, "Layers of those features, ascending."),
            ("examples", _LS, "Up to three facts as 'subject -> object', most confident first."),
        ],
    ),
    "facts": (
        "What the model states when it is asked: the object is its own prediction.",
        [
            ("subject", _S, "Subject, trimmed, case-sensitive."),
            ("relation", _S, "Relation."),
            ("object", _S, "The model's answer, decoded, trimmed."),
            ("rank", _I32, "Rank of the answer for this subject and relation, from 1."),
            (
                "p",
                _F64,
                "The model's probability of the answer's first token, mean over the templates that agree.",
            ),
            ("p_string", _F64, "The model's probability of the whole answer."),
            ("confidence", _F64, "Probability that the fact is right; equals p where calibrated is false."),
            ("calibrated", _B, "Whether confidence was calibrated on reference facts."),
            ("prior", _F64, "Mean p of this object over the relation's other subjects."),
            ("n_templates", _I32, "Templates that gave this answer."),
            ("effect", _F64, "Drop of log p (nats) when all listed features are zeroed."),
            (
                "specific",
                _F64,
                "effect minus its median over other facts of the relation; NULL until measured.",
            ),
            ("n_features", _I32, "Features listed in edges."),
            ("attention_share", _F64, "Share of the answer's centred logit that attention wrote directly."),
            ("prompt", _S, "The prompt whose features are listed."),
            ("source", _S, "probe or patch."),
        ],
    ),
    "edges": (
        "One feature's part in a triple.",
        [
            ("subject", _S, "Subject."),
            ("relation", _S, "Relation."),
            ("object", _S, "Object."),
            ("layer", _I32, "Layer, from 0."),
            ("feature", _I32, "Feature within the layer, from 0."),
            (
                "score",
                _F64,
                "probe: direct contribution to the object's centred logit; weights: the smaller z of its two sides.",
            ),
            (
                "effect",
                _F64,
                "Drop of log p (nats) when this feature alone is zeroed; NULL where not measured.",
            ),
            (
                "specific",
                _F64,
                "effect minus its median over other facts of the relation; NULL until measured.",
            ),
            ("source", _S, "probe, weights or patch."),
        ],
    ),
    "triples": (
        "The graph, in display order: one row per subject, relation and object.",
        [
            ("subject", _S, "Subject."),
            ("relation", _S, "Relation."),
            ("object", _S, "Object."),
            ("confidence", _F64, "Probability that the fact is right; NULL for weight triples."),
            ("p", _F64, "The model's own probability; NULL where nobody measured it."),
            ("source", _S, "probe, patch or weights."),
            ("layers", _LI, "Layers of its edges, ascending."),
            ("n_edges", _I32, "Rows of edges behind it."),
        ],
    ),
    "feature_relations": (
        "A feature's part in a relation.",
        [
            ("layer", _I32, "Layer, from 0."),
            ("feature", _I32, "Feature within the layer, from 0."),
            ("relation", _S, "Relation."),
            ("support", _F64, "Share of the relation's facts in which the feature is listed."),
            ("specificity", _F64, "support divided by support plus the rate over other relations' facts."),
            ("mean_contribution", _F64, "Mean direct logit contribution where it is listed."),
        ],
    ),
    "entities": (
        "Every name that occurs as a subject or an object.",
        [
            ("entity", _S, "The name."),
            ("n_facts", _I32, "Triples that mention it, weight triples excluded."),
            ("as_subject", _I32, "Triples with it as subject."),
            ("as_object", _I32, "Triples with it as object."),
            ("relations", _LS, "Relations of those triples, sorted."),
        ],
    ),
    "clusters": (
        "Clusters of offset directions (empty until clustering has run).",
        [
            ("cluster_id", _I32, "Cluster, from 0."),
            ("label", _S, "Label; NULL for clusters that are not better than chance."),
            ("source", _S, "What named it: probe, reference, pattern or tokens."),
            ("confidence", _F64, "Confidence of the label, 0 to 1."),
            ("size", _I32, "Features in the cluster."),
            ("top_tokens", _LS, "Its most frequent output tokens."),
        ],
    ),
    "feature_clusters": (
        "Which cluster a feature belongs to.",
        [
            ("layer", _I32, "Layer, from 0."),
            ("feature", _I32, "Feature within the layer, from 0."),
            ("cluster_id", _I32, "Cluster, from 0."),
        ],
    ),
    "probes": (
        "Every prompt that was run, with the model's first answer token.",
        [
            ("prompt", _S, "The text given to the model."),
            ("subject", _S, "Subject."),
            ("relation", _S, "Relation."),
            ("template", _S, "Template, {} standing for the subject."),
            ("predicted", _S, "The most probable next token, decoded, leading space kept."),
            ("p", _F64, "Its probability."),
            ("entropy", _F64, "Entropy of the next-token distribution, in nats."),
        ],
    ),
    "meta": (
        "What this database was made from.",
        [("key", _S, "Name."), ("value", _S, "Value, as text.")],
    ),
}

SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema([pa.field(column, kind) for column, kind, _ in columns])
    for name, (_, columns) in _TABLES.items()
}
COMMENTS: dict[str, dict[str, str]] = {
    name: {"": comment, **{column: text for column, _, text in columns}}
    for name, (comment, columns) in _TABLES.items()
}


def empty_table(name: str) -> pa.Table:
    """An empty Arrow table with the schema of table `name`."""
    return SCHEMAS[name].empty_table()


def as_table(name: str, columns: dict[str, object]) -> pa.Table:
    """An Arrow table with exactly the schema of table `name`, from one array or list a column.

    Columns that are not given are NULL. A column that the schema lacks raises KeyError.
    """
    schema = SCHEMAS[name]
    unknown = set(columns) - set(schema.names)
    if unknown:
        raise KeyError(f"table {name} has no column {sorted(unknown)}")
    n = next((len(v) for v in columns.values()), 0)  # type: ignore[arg-type]
    arrays = [
        pa.array(columns[f.name], type=f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def schema_markdown() -> str:
    """The public schema as Markdown, one table of columns per table: the README's section, generated."""
    names = {_I32: "INTEGER", _I64: "BIGINT", _F32: "FLOAT", _F64: "DOUBLE", _S: "VARCHAR", _B: "BOOLEAN"}
    names |= {_LS: "VARCHAR[]", _LI: "INTEGER[]"}
    parts = []
    for table, (comment, columns) in _TABLES.items():
        rows = "\n".join(f"| `{column}` | {names[kind]} | {text} |" for column, kind, text in columns)
        parts.append(f"#### `{table}`\n\n{comment}\n\n| column | type | meaning |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)
