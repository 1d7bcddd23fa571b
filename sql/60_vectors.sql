-- Search by vector over the mapped gate rows. Needs the Python functions {schema}_udf_*, so these macros exist in Python
-- sessions only. All layers are answered by one call.

CREATE MACRO {schema}.gate_search(p_layers, p_query, p_top := 10, p_order := 'absolute') AS TABLE
SELECT unnest({schema}_udf_topk(p_layers::INTEGER[], p_query::FLOAT[], p_top::INTEGER, p_order), recursive := true);
COMMENT ON MACRO TABLE {schema}.gate_search IS 'The p_top features of each layer for a vector (FLOAT[hidden], or one after another per layer), ordered by absolute, signed or activation value.';

CREATE MACRO {schema}.walk_vectors(
    p_prompt, p_basis := 'embedding', p_top := 10, p_layers := NULL, p_mode := NULL, p_band := NULL,
    p_relations_only := false, p_compare := false, p_explain := false, p_tokens := 3
) AS TABLE
WITH asked AS MATERIALIZED (
    SELECT list(layer ORDER BY layer)::INTEGER[] AS layers
    FROM {schema}.layers
    WHERE (p_layers IS NULL OR list_contains(p_layers, layer))
        AND (p_band IS NULL OR p_band = 'all' OR band IS NULL OR band = p_band)
),
vectors AS MATERIALIZED (
    SELECT layers, {schema}_udf_prompt_vectors(p_prompt, p_basis, layers) AS query FROM asked
),
modes AS (
    SELECT
        unnest(
            CASE
                WHEN p_compare THEN [coalesce(nullif(p_mode, 'dense'), 'hybrid'), 'dense']
                ELSE [coalesce(p_mode, 'hybrid')]
            END
        ) AS mode
),
-- Labels are known after the search only, so a search for labelled features goes through all of them.
searched AS (
    SELECT
        m.mode,
        unnest(
            {schema}_udf_topk(
                v.layers, v.query, CASE WHEN p_relations_only THEN 1000000000 ELSE p_top END::INTEGER,
                CASE m.mode WHEN 'pure' THEN 'signed' WHEN 'dense' THEN 'activation' ELSE 'absolute' END
            )
        ) AS hit
    FROM vectors AS v
    CROSS JOIN modes AS m
),
hits AS MATERIALIZED (
    SELECT mode, hit.layer AS layer, hit.feature AS feature, hit.gate AS gate, hit.activation AS activation
    FROM searched
),
-- Not materialized, so that what no later step reads is not read here either.
slots AS (
    SELECT
        x.layer, x.feature, x.relation, x.activates_on, x.sign, x.top_token, x.down_tokens, x.opposite_tokens,
        CASE WHEN x.basis = p_basis AND x.gate_std > 0 THEN x.gate_mean END AS mean, x.gate_std AS deviation,
        x.relation_source IN ('probe', 'patch') OR c.confidence >= 0.5 AS labelled
    FROM (SELECT DISTINCT layer, feature FROM hits) AS s
    JOIN {schema}.features AS x ON x.layer = s.layer AND x.feature = s.feature
    LEFT JOIN {schema}.clusters AS c ON c.cluster_id = x.cluster_id
),
chosen AS MATERIALIZED (
    SELECT
        h.*, x.relation, x.activates_on, coalesce(h.activation, x.sign) < 0 AS negative,
        {schema}.promoted(h.activation, x.sign, x.top_token, x.opposite_tokens[1]) AS top_token,
        {schema}.promoted(h.activation, x.sign, x.down_tokens, x.opposite_tokens) AS down_tokens, (h.gate - x.mean) / x.deviation AS z,
        row_number() OVER (
            PARTITION BY h.mode, h.layer
            ORDER BY
                CASE h.mode WHEN 'pure' THEN h.gate WHEN 'dense' THEN abs(h.activation) ELSE abs(h.gate) END DESC,
                h.feature
        ) AS place
    FROM hits AS h
    LEFT JOIN slots AS x ON x.layer = h.layer AND x.feature = h.feature
    WHERE NOT p_relations_only OR x.labelled
    QUALIFY place <= p_top
),
written AS (
    SELECT o.layer, o.feature, list({schema}.token_text(o.token) ORDER BY o.rank) AS tokens
    FROM (SELECT DISTINCT layer, feature, negative FROM chosen) AS s
    JOIN {schema}.feature_tokens AS o ON o.layer = s.layer AND o.feature = s.feature
    WHERE p_tokens > 3 AND o.side = CASE WHEN s.negative THEN 'out_neg' ELSE 'out' END AND o.rank <= p_tokens
    GROUP BY o.layer, o.feature
)
SELECT
    r.layer, r.feature, r.gate, r.activation, r.z, r.relation, r.activates_on, r.top_token,
    coalesce(w.tokens, r.down_tokens) AS down_tokens,
    p_basis AS basis,
    CASE WHEN p_compare THEN r.mode END AS mode,
    CASE WHEN p_explain THEN t.token END AS token,
    CASE WHEN p_explain THEN coalesce(l.band, 'knowledge') END AS band
FROM chosen AS r
LEFT JOIN {schema}.layers AS l ON l.layer = r.layer
LEFT JOIN written AS w ON w.layer = r.layer AND w.feature = r.feature
CROSS JOIN (SELECT CASE WHEN p_explain THEN {schema}_udf_last_token(p_prompt) END AS token) AS t
ORDER BY r.mode = 'dense', r.layer, r.place;
COMMENT ON MACRO TABLE {schema}.walk_vectors IS 'The features that activate on a prompt, p_top a layer: by its last token''s embedding (p_basis embedding) or by what each FFN receives at its last position (context). Example: FROM walk_vectors(''The capital of France is'', p_basis := ''context'')';

CREATE MACRO {schema}.distances(p_entity, p_layer, p_basis := 'embedding') AS TABLE
SELECT p_layer::INTEGER AS layer, hit.feature AS feature, hit.distance AS distance, p_basis AS basis
FROM (
    SELECT unnest({schema}_udf_distances(p_layer::INTEGER, {schema}_udf_entity_vectors(p_entity, p_basis, [p_layer::INTEGER]))) AS hit
);
COMMENT ON MACRO TABLE {schema}.distances IS 'The cosine distance of every gate row of a layer to an entity''s vector.';

CREATE MACRO {schema}.nearest_features(p_entity, p_layer, p_basis := 'embedding') AS TABLE
SELECT x.* EXCLUDE (basis), d.distance, d.basis
FROM {schema}.distances(p_entity, p_layer, p_basis := p_basis) AS d
JOIN {schema}.lql_features AS x ON x.layer = d.layer AND x.feature = d.feature
ORDER BY d.distance, x.layer, x.feature;
COMMENT ON MACRO TABLE {schema}.nearest_features IS 'LQL''s FEATURES NEAREST TO: the features of a layer by the distance of their gate rows to an entity''s vector. Example: FROM nearest_features(''France'', 5) LIMIT 10';

CREATE MACRO {schema}.nearest_edges(p_entity, p_layer, p_basis := 'embedding') AS TABLE
SELECT e.*, d.distance, d.basis
FROM {schema}.distances(p_entity, p_layer, p_basis := p_basis) AS d
JOIN {schema}.lql_edges AS e ON e.layer = d.layer AND e.feature = d.feature
ORDER BY d.distance, e.layer, e.feature, e.entity, e.relation, e.target;
COMMENT ON MACRO TABLE {schema}.nearest_edges IS 'LQL''s EDGES NEAREST TO: the edges of a layer by the distance of their features'' gate rows to an entity''s vector. Example: FROM nearest_edges(''France'', 5) LIMIT 10';
