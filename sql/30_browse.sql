-- Questions about entities, tokens, features and relations, as table macros over the tables: the DuckDB CLI and a
-- Python session answer them alike. Text is looked up by its key (see name_key); of names that differ in
-- spelling only, the exact one counts where it exists. Parameters start with p_, because one that is named like a column would silently compare it with itself.

CREATE MACRO {public}.describe_entity(p_entity, p_band := NULL, p_layer := NULL, p_rows := 10, p_relations_only := false) AS TABLE
WITH named AS MATERIALIZED (
    SELECT entity, entity_id FROM {schema}.entity_named(p_entity)
),
-- Found by number, because the other tables lie by subject; cut here where no layer can rule a row out later.
incoming AS MATERIALIZED (
    SELECT s.entity AS subject, k.relation, n.entity AS object
    FROM named AS n
    JOIN {schema}.links AS k ON k.entity_id = n.entity_id AND NOT k.outgoing AND k.source <> 'weights'
    JOIN {schema}.entity_names AS s ON s.entity_id = k.other_id
    QUALIFY p_layer IS NOT NULL OR coalesce(p_band, 'all') <> 'all' OR row_number() OVER (
        ORDER BY k.confidence DESC NULLS LAST, k.p DESC NULLS LAST, k.relation, s.entity
    ) <= p_rows
),
about AS MATERIALIZED (
    SELECT 'out' AS direction, t.* FROM {schema}.triples AS t WHERE t.subject IN (SELECT entity FROM named)
    UNION ALL
    SELECT 'in' AS direction, t.* FROM {schema}.triples AS t SEMI JOIN incoming USING (subject, relation, object)
    WHERE t.source <> 'weights'
),
parts AS MATERIALIZED (
    SELECT
        e.subject, e.relation, e.object,
        count(*)::INTEGER AS n_features,
        CASE WHEN bool_and(e.source = 'weights') THEN max(e.score) ELSE sum(e.score) END AS score,
        first(
            {'layer': e.layer, 'feature': e.feature}
            ORDER BY e.effect DESC NULLS LAST, abs(e.score) DESC, e.layer, e.feature
        ) AS best
    FROM {schema}.edges AS e
    WHERE e.subject IN (SELECT subject FROM about)
    GROUP BY e.subject, e.relation, e.object
),
-- The features are fetched by an inner join of their own: it prunes the scan to the slots asked for, a left join would not.
-- What they promote is shown beside triples from the weights alone; most names have none, and no feature is read.
slots AS MATERIALIZED (
    SELECT x.layer, x.feature, x.down_tokens, x.opposite_tokens
    FROM (
        SELECT DISTINCT parts.best.layer AS layer, parts.best.feature AS feature
        FROM about AS t
        JOIN parts ON parts.subject = t.subject AND parts.relation = t.relation AND parts.object = t.object
        WHERE t.source = 'weights'
    ) AS s
    JOIN {schema}.features AS x ON x.layer = s.layer AND x.feature = s.feature
),
answers AS MATERIALIZED (
    SELECT f.subject, f.relation, list(f.object ORDER BY f.rank, f.object) AS objects
    FROM {schema}.facts AS f
    WHERE f.subject IN (SELECT entity FROM named)
    GROUP BY f.subject, f.relation
),
found AS (
    SELECT
        t.relation, CASE t.direction WHEN 'in' THEN t.subject ELSE t.object END AS target, t.direction, t.confidence,
        t.p, parts.score, parts.best.layer AS layer, t.layers, coalesce(parts.n_features, 0) AS n_features, t.source, t.source = 'weights' AS weak,
        CASE
            WHEN t.source = 'weights'
            THEN [
                token FOR token IN
                CASE WHEN list_contains(x.opposite_tokens, t.object) THEN x.opposite_tokens ELSE x.down_tokens END
                IF lower(token) <> lower(t.object)
            ]
            WHEN t.direction = 'out'
            THEN [other FOR other IN a.objects IF other <> t.object]
        END AS also,
        CASE WHEN t.source = 'weights' THEN coalesce(l.band, 'knowledge') ELSE 'knowledge' END AS band,
        l.band AS layer_band
    FROM about AS t
    LEFT JOIN parts ON parts.subject = t.subject AND parts.relation = t.relation AND parts.object = t.object
    LEFT JOIN answers AS a ON a.subject = t.subject AND a.relation = t.relation
    LEFT JOIN {schema}.layers AS l ON l.layer = parts.best.layer
    LEFT JOIN slots AS x ON x.layer = parts.best.layer AND x.feature = parts.best.feature
)
SELECT
    band, relation, target, direction, {schema}.rounded(f.confidence) AS confidence, {schema}.rounded(f.p) AS p,
    {schema}.rounded(f.score) AS score, layer, layers, n_features, also, source
FROM found AS f
WHERE (p_layer IS NULL OR layer = p_layer)
    AND NOT (weak AND p_relations_only)
    AND (p_layer IS NOT NULL OR p_band = 'all' OR (p_band IS NULL AND NOT weak) OR layer_band IS NULL
        OR layer_band = coalesce(p_band, 'knowledge'))
QUALIFY row_number() OVER (
    PARTITION BY band, direction
    ORDER BY weak, f.confidence DESC NULLS LAST, f.p DESC NULLS LAST, f.score DESC NULLS LAST, layer, relation, target
) <= p_rows
ORDER BY
    weak, direction = 'in', CASE band WHEN 'syntax' THEN 0 WHEN 'knowledge' THEN 1 ELSE 2 END * weak::INTEGER,
    f.confidence DESC NULLS LAST, f.p DESC NULLS LAST, f.score DESC NULLS LAST, layer, relation, target;
COMMENT ON MACRO TABLE {public}.describe_entity IS 'What the model knows about an entity: facts by confidence, then facts that point to it (direction in, target = the subject), then weight triples of a band (all, syntax, knowledge, output; knowledge if not given) or layer, at most p_rows a band and direction, numbers with three digits. Example: FROM describe_entity(''France'', p_band := ''all'')';

CREATE MACRO {public}.relation_facts(p_relation) AS TABLE
WITH answers AS (
    SELECT subject, relation, object, rank, confidence, p, n_templates, effect, specific, n_features, source
    FROM {schema}.facts
    WHERE lower(relation) = lower(trim(p_relation))
),
-- Of the other ranks those count that the graph took over (relations with many right answers).
chosen AS (
    FROM answers WHERE rank = 1
    UNION ALL
    SELECT a.*
    FROM answers AS a
    JOIN {schema}.triples AS t
        ON t.subject = a.subject AND t.relation = a.relation AND t.object = a.object AND t.source <> 'weights'
    WHERE a.rank > 1
)
SELECT subject, object, rank, confidence, p, n_templates, effect, specific, n_features, source
FROM chosen
ORDER BY confidence DESC NULLS LAST, p DESC NULLS LAST, subject, rank, object;
COMMENT ON MACRO TABLE {public}.relation_facts IS 'The facts of a relation, most confident first. Example: FROM relation_facts(''capital'') LIMIT 10';

CREATE MACRO {public}.who(p_relation, p_object) AS TABLE
SELECT s.entity AS subject, k.relation, o.entity AS object, k.confidence, k.p, k.source
FROM {schema}.names_alike(p_object) AS o
JOIN {schema}.links AS k ON k.entity_id = o.entity_id AND NOT k.outgoing AND (o.meant OR k.source <> 'weights')
JOIN {schema}.entity_names AS s ON s.entity_id = k.other_id
WHERE p_relation IS NULL OR lower(k.relation) = lower(trim(p_relation))
ORDER BY k.source = 'weights', k.confidence DESC NULLS LAST, k.p DESC NULLS LAST, k.relation, s.entity, o.entity;
COMMENT ON MACRO TABLE {public}.who IS 'The reverse question: subjects that stand in a relation (NULL: any) to an object, by any of its names. Example: FROM who(''capital'', ''Paris'')';

CREATE MACRO {public}.explain_fact(p_subject, p_relation) AS TABLE
SELECT
    e.subject, e.relation, e.object, e.layer, e.feature, l.band, {schema}.rounded(e.score) AS score,
    {schema}.rounded(e.effect) AS effect, {schema}.rounded(e.specific) AS specific,
    {schema}.rounded(e.activation) AS activation, x.activates_on,
    {schema}.promoted(e.activation, x.sign, x.top_token, x.opposite_tokens[1]) AS top_token,
    {schema}.promoted(e.activation, x.sign, x.down_tokens, x.opposite_tokens) AS down_tokens, b.example, e.source
FROM {schema}.edges AS e
LEFT JOIN {schema}.layers AS l ON l.layer = e.layer
LEFT JOIN {schema}.features AS x ON x.layer = e.layer AND x.feature = e.feature
LEFT JOIN {schema}.best_examples AS b
    ON b.layer = e.layer AND b.feature = e.feature AND b.sign = {schema}.side(e.activation, x.sign)
WHERE e.subject IN (SELECT entity FROM {schema}.entity_named(p_subject))
    AND (p_relation IS NULL OR lower(e.relation) = lower(trim(p_relation)))
ORDER BY
    e.source = 'weights', e.subject, e.relation, e.object, e.effect DESC NULLS LAST, e.score DESC, e.layer, e.feature;
COMMENT ON MACRO TABLE {public}.explain_fact IS 'The features behind a subject''s facts of a relation (NULL: any), with what each one activates on, what it promotes with its activation, the text that fires it most with that sign, and what zeroing it costs, with three digits. Example: FROM explain_fact(''France'', ''capital'')';

CREATE MACRO {public}.entities_like(p_pattern) AS TABLE
SELECT e.entity, e.n_facts, e.as_subject, e.as_object, e.relations
FROM {schema}.entities AS e
WHERE e.entity IN (SELECT n.entity FROM {schema}.entity_names AS n WHERE n.key LIKE lower(nfc_normalize(p_pattern)))
ORDER BY e.n_facts DESC, e.as_subject DESC, e.entity;
COMMENT ON MACRO TABLE {public}.entities_like IS 'Names that match a LIKE pattern in any case, those with most facts first. Example: FROM entities_like(''fr%'')';

CREATE MACRO {public}.entities_near(p_entity) AS TABLE
WITH measured AS (
    SELECT
        entity, n_facts,
        damerau_levenshtein(lower(nfc_normalize(entity)), lower(nfc_normalize(trim(p_entity))))::INTEGER AS distance
    FROM {schema}.entities
    WHERE abs(length(entity) - length(trim(p_entity))) <= 2
)
SELECT entity, distance, n_facts
FROM measured
WHERE distance <= CASE WHEN length(trim(p_entity)) < 3 THEN 0 WHEN length(trim(p_entity)) < 8 THEN 1 ELSE 2 END
ORDER BY distance, n_facts DESC, entity;
COMMENT ON MACRO TABLE {public}.entities_near IS 'Names that are spelt almost like this one: at most two letters added, left out, changed or swapped (one in a name of less than eight letters). Example: FROM entities_near(''Frnace'')';

CREATE MACRO {public}.tokens_of(p_layer, p_feature, p_side := NULL) AS TABLE
SELECT side, rank, token_id, token, score, z, activation, basis
FROM {schema}.feature_tokens
WHERE layer = p_layer AND feature = p_feature AND (p_side IS NULL OR side = p_side)
ORDER BY side, rank;
COMMENT ON MACRO TABLE {public}.tokens_of IS 'A feature''s top activating tokens (in), promoted tokens (out) and suppressed tokens (out_neg). Example: FROM tokens_of(5, 9, p_side := ''out'')';

CREATE MACRO {public}.feature(p_layer, p_feature) AS TABLE
WITH sides AS MATERIALIZED (
    SELECT
        list({schema}.token_text(token) ORDER BY rank) FILTER (side = 'in') AS in_tokens,
        list({schema}.token_text(token) ORDER BY rank) FILTER (side = 'out') AS out_tokens,
        list({schema}.token_text(token) ORDER BY rank) FILTER (side = 'out_neg') AS out_neg_tokens
    FROM {schema}.feature_tokens
    WHERE layer = p_layer AND feature = p_feature
),
parts AS MATERIALIZED (
    SELECT list(relation ORDER BY specificity DESC, support DESC, relation) AS relations
    FROM {schema}.feature_relations
    WHERE layer = p_layer AND feature = p_feature
)
SELECT
    x.layer, x.feature, l.band, x.relation, x.relation_source, s.in_tokens, x.sign, s.out_tokens, s.out_neg_tokens,
    x.c_score, x.gate_norm, x.up_norm, x.down_norm, x.gate_mean, x.gate_std, x.basis, x.cluster_id, r.relations
FROM {schema}.features AS x
CROSS JOIN sides AS s
CROSS JOIN parts AS r
LEFT JOIN {schema}.layers AS l ON l.layer = x.layer
WHERE x.layer = p_layer AND x.feature = p_feature;
COMMENT ON MACRO TABLE {public}.feature IS 'One feature: its tokens on each side, its usual sign, its label, its relations and its norms. Example: FROM feature(5, 9)';

-- Features are fetched for the rows that are left after the cut: their lists of tokens are what costs time here. What
-- constant arguments rule out (labels, more tokens) DuckDB takes out of the plan.
CREATE MACRO {public}.walk(
    p_token, p_top := 10, p_layers := NULL, p_mode := NULL, p_band := NULL, p_relations_only := false,
    p_compare := false, p_explain := false, p_tokens := 3
) AS TABLE
WITH found AS (
    SELECT h.*, l.band
    FROM {schema}.token_hits(p_token, p_layers := p_layers) AS h
    LEFT JOIN {schema}.layers AS l ON l.layer = h.layer
    WHERE p_band IS NULL OR p_band = 'all' OR l.band IS NULL OR l.band = p_band
),
hits AS (
    FROM found WHERE NOT p_relations_only
    UNION ALL
    SELECT f.*
    FROM found AS f
    JOIN {schema}.features AS x ON x.layer = f.layer AND x.feature = f.feature
    LEFT JOIN {schema}.clusters AS c ON c.cluster_id = x.cluster_id
    WHERE p_relations_only AND (x.relation_source IN ('probe', 'patch') OR c.confidence >= 0.5)
),
modes AS (
    SELECT
        unnest(
            CASE
                WHEN p_compare THEN [coalesce(nullif(p_mode, 'dense'), 'hybrid'), 'dense']
                ELSE [coalesce(p_mode, 'z')]
            END
        ) AS mode
),
chosen AS MATERIALIZED (
    SELECT
        h.token, h.layer, h.feature, h.gate, h.activation, h.z, h.band, m.mode,
        row_number() OVER (
            PARTITION BY m.mode
            ORDER BY
                CASE m.mode
                    WHEN 'hybrid' THEN abs(h.gate)
                    WHEN 'pure' THEN h.gate
                    WHEN 'dense' THEN abs(h.activation)
                    ELSE -h.rank
                END DESC NULLS LAST,
                h.layer, h.feature
        ) AS place
    FROM hits AS h
    CROSS JOIN modes AS m
    QUALIFY place <= p_top
),
slots AS (
    SELECT
        x.layer, x.feature, x.relation, x.activates_on, coalesce(s.activation, x.sign) < 0 AS negative,
        {schema}.promoted(s.activation, x.sign, x.top_token, x.opposite_tokens[1]) AS top_token,
        {schema}.promoted(s.activation, x.sign, x.down_tokens, x.opposite_tokens) AS down_tokens
    FROM (SELECT layer, feature, any_value(activation) AS activation FROM chosen GROUP BY layer, feature) AS s
    JOIN {schema}.features AS x ON x.layer = s.layer AND x.feature = s.feature
),
written AS (
    SELECT o.layer, o.feature, list({schema}.token_text(o.token) ORDER BY o.rank) AS tokens
    FROM slots AS s
    JOIN {schema}.feature_tokens AS o ON o.layer = s.layer AND o.feature = s.feature
    WHERE p_tokens > 3 AND o.side = CASE WHEN s.negative THEN 'out_neg' ELSE 'out' END AND o.rank <= p_tokens
    GROUP BY o.layer, o.feature
)
SELECT
    r.layer, r.feature, r.gate, r.activation, r.z, x.relation, x.activates_on, x.top_token,
    coalesce(w.tokens, x.down_tokens) AS down_tokens,
    'index' AS basis,
    CASE WHEN p_compare THEN r.mode END AS mode,
    CASE WHEN p_explain THEN r.token END AS token,
    CASE WHEN p_explain THEN coalesce(r.band, 'knowledge') END AS band
FROM chosen AS r
LEFT JOIN slots AS x ON x.layer = r.layer AND x.feature = r.feature
LEFT JOIN written AS w ON w.layer = r.layer AND w.feature = r.feature
ORDER BY r.mode = 'dense', r.place;
COMMENT ON MACRO TABLE {public}.walk IS 'The features that activate on a token, most specific first (p_mode hybrid, pure or dense: by |gate|, gate or |activation|). Example: FROM walk(''France'', p_top := 5)';
