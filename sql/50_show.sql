-- What LQL's SHOW and STATS answer.

CREATE VIEW {public}.show_layers AS
WITH frequent AS (
    SELECT layer, top_token, row_number() OVER (PARTITION BY layer ORDER BY count(*) DESC, top_token) AS place
    FROM {schema}.features
    WHERE top_token IS NOT NULL
    GROUP BY layer, top_token
),
counted AS (
    SELECT layer, count(top_token)::INTEGER AS with_tokens, count(relation)::INTEGER AS labelled
    FROM {schema}.features
    GROUP BY layer
)
SELECT
    l.layer, coalesce(l.band, 'knowledge') AS band, l.n_features, coalesce(c.with_tokens, 0) AS with_tokens,
    coalesce(c.labelled, 0) AS labelled, f.top_token
FROM {schema}.layers AS l
LEFT JOIN counted AS c ON c.layer = l.layer
LEFT JOIN frequent AS f ON f.layer = l.layer AND f.place = 1
ORDER BY l.layer;

CREATE VIEW {public}.show_experts AS
SELECT
    e.layer, e.expert, e.shared, e.n_features, e.first_feature, e.n_tokens, e.weight, p.share AS probes,
    t.share AS texts, e.tokens
FROM {schema}.experts AS e
LEFT JOIN {schema}.routing AS p ON p.layer = e.layer AND p.expert = e.expert AND p.source = 'probes'
LEFT JOIN {schema}.routing AS t ON t.layer = e.layer AND t.expert = e.expert AND t.source = 'texts'
ORDER BY e.layer, e.expert;

-- Rows of relations come first, those that the model was asked about before those that were found (source cluster); rows of tokens (what the features promote, by top token) are for a model without
-- relations and for those who ask (verbose, raw).
CREATE MACRO {public}.show_relations(p_layer := NULL, p_examples := false, p_mode := 'brief') AS TABLE
WITH here AS (
    SELECT relation, count(*)::INTEGER AS n_features
    FROM {schema}.feature_relations
    WHERE layer = p_layer
    GROUP BY relation
),
known AS (
    SELECT
        r.relation, NULL::VARCHAR AS token, r.source,
        CASE WHEN p_layer IS NULL THEN r.n_features ELSE coalesce(h.n_features, 0) END AS n_features,
        r.n_facts, NULL::FLOAT AS score, r.layers, CASE WHEN p_examples THEN r.examples END AS examples, r.description
    FROM {schema}.relations AS r
    LEFT JOIN here AS h ON h.relation = r.relation
    WHERE p_layer IS NULL OR list_contains(r.layers, p_layer) OR h.relation IS NOT NULL
),
-- Names of clusters are no relations of facts, but found ones.
discovered AS (
    SELECT
        c.name AS relation, NULL::VARCHAR AS token, 'cluster' AS source,
        (count(*) FILTER (p_layer IS NULL OR m.layer = p_layer))::INTEGER AS n_features, 0 AS n_facts,
        max(c.score)::FLOAT AS score, list_sort(list(DISTINCT m.layer)) AS layers, NULL::VARCHAR[] AS examples,
        'Names what fires the features of a cluster.' AS description
    FROM {schema}.clusters AS c
    JOIN {schema}.feature_clusters AS m ON m.cluster_id = c.cluster_id
    WHERE c.name IS NOT NULL AND c.name NOT IN (SELECT relation FROM {schema}.relations)
    GROUP BY c.name
    HAVING n_features > 0
),
written AS (
    SELECT
        NULL::VARCHAR AS relation, lower(x.top_token) AS token, 'weights' AS source, count(*)::INTEGER AS n_features,
        NULL::INTEGER AS n_facts, max(x.c_score) AS score, list_sort(list_distinct(list(x.layer))) AS layers,
        CASE WHEN p_examples THEN first(x.down_tokens ORDER BY x.c_score DESC, x.layer, x.feature) END AS examples,
        NULL::VARCHAR AS description
    FROM {schema}.features AS x
    JOIN {schema}.tokens AS t ON t.token_id = x.top_token_id
    JOIN {schema}.layers AS l ON l.layer = x.layer
    WHERE t.is_word AND length(x.top_token) >= 3
        AND CASE WHEN p_layer IS NULL THEN coalesce(l.band, 'knowledge') = 'knowledge' ELSE x.layer = p_layer END
    GROUP BY lower(x.top_token)
),
numbered AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY source = 'cluster' ORDER BY n_facts DESC NULLS LAST, score DESC NULLS LAST, n_features DESC, relation
        ) AS place
    FROM (FROM known UNION ALL FROM discovered)
    WHERE p_mode <> 'raw'
    UNION ALL
    SELECT *, row_number() OVER (ORDER BY n_features DESC, score DESC, token) AS place
    FROM written
    WHERE p_mode IN ('raw', 'verbose') OR NOT EXISTS (SELECT 1 FROM {schema}.relations)
)
SELECT relation, token, source, n_features, n_facts, score, layers, examples, description
FROM numbered
WHERE place <= CASE WHEN relation IS NOT NULL AND p_mode = 'verbose' THEN 1000000 WHEN p_mode = 'verbose' THEN 50 ELSE 30 END
ORDER BY relation IS NULL, relation IS NOT NULL AND source = 'cluster', place;
COMMENT ON MACRO TABLE {public}.show_relations IS 'The relations that the model was asked about or that were found in it (p_mode brief, verbose, raw), optionally of one layer and with examples. Example: FROM show_relations(p_examples := true)';

CREATE MACRO {public}.show_entities(p_layer := NULL, p_limit := 50) AS TABLE
WITH chosen AS MATERIALIZED (
    SELECT entity, n_facts, as_subject, as_object, relations
    FROM {schema}.entities
    WHERE p_layer IS NULL
        OR entity IN (SELECT n.entity FROM {schema}.entity_names AS n WHERE list_contains(n.layers, p_layer))
    ORDER BY n_facts DESC, as_subject + as_object DESC, entity
    LIMIT p_limit
)
SELECT c.entity, c.n_facts, c.as_subject, c.as_object, c.relations, n.layers
FROM chosen AS c
LEFT JOIN {schema}.entity_names AS n ON n.key = lower(nfc_normalize(c.entity)) AND n.entity = c.entity
ORDER BY c.n_facts DESC, c.as_subject + c.as_object DESC, c.entity;
COMMENT ON MACRO TABLE {public}.show_entities IS 'Names by number of facts, optionally of one layer. Example: FROM show_entities(p_limit := 20)';

CREATE VIEW {public}.stats AS
WITH numbers AS (
    SELECT 1 AS part, 'model' AS section, 'layers' AS name, count(*) AS number FROM {schema}.layers
    UNION ALL SELECT 1, 'model', 'features', sum(n_features) FROM {schema}.layers
    UNION ALL SELECT 1, 'model', 'tokens', count(*) FROM {schema}.tokens
    UNION ALL SELECT 3, 'knowledge', 'relations', count(*) FROM {schema}.relations
    UNION ALL SELECT 3, 'knowledge', 'facts', count(*) FROM {schema}.facts WHERE rank = 1
    UNION ALL SELECT 3, 'knowledge', 'probes', count(*) FROM {schema}.probes
    UNION ALL SELECT 3, 'knowledge', 'entities', count(*) FROM {schema}.entities
    UNION ALL SELECT 3, 'knowledge', 'triples', count(*) FROM {schema}.triples
    UNION ALL SELECT 3, 'knowledge', 'edges', count(*) FROM {schema}.edges
    UNION ALL SELECT 3, 'knowledge', 'labelled features', count(relation) FROM {schema}.features
    UNION ALL SELECT 3, 'knowledge', 'features of facts', count(DISTINCT (layer, feature)) FROM {schema}.edges WHERE source = 'probe'
    UNION ALL SELECT 3, 'knowledge', 'clusters', count(*) FROM {schema}.clusters
    UNION ALL SELECT 3, 'knowledge', 'labelled clusters', count(label) FROM {schema}.clusters
    UNION ALL SELECT 3, 'knowledge', 'feature tokens', count(*) FROM {schema}.feature_tokens
    UNION ALL SELECT 3, 'knowledge', 'token features', count(*) FROM {schema}.token_features
),
bands AS (
    SELECT band, min(layer) AS low, max(layer) AS high, sum(n_features) AS features
    FROM {schema}.layers
    WHERE band IS NOT NULL
    GROUP BY band
),
listed AS (
    SELECT 0 AS part, 'model' AS section, key AS name, value, try_cast(value AS DOUBLE) AS number
    FROM {schema}.meta
    WHERE key NOT IN ('layers', 'features', 'tokens')
    UNION ALL
    SELECT part, section, name, number::BIGINT::VARCHAR, number::DOUBLE FROM numbers
    UNION ALL
    SELECT 2, 'bands', band, low || '-' || high, features::DOUBLE FROM bands
)
SELECT section, name, value, number
FROM listed
ORDER BY part, CASE part WHEN 2 THEN number END, part, name;
