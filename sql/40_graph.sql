-- The graph as a graph: neighbours and paths. Triples are followed in both directions and shown as they stand.
-- The hops are written out, six at most: in a recursive query DuckDB hashes all links at every step, while IN (what
-- was reached so far) reads the row groups that hold those numbers. A hop that nobody asked for, or that LIMIT makes
-- needless, finds nothing to start from.

CREATE MACRO {public}.neighbors(p_entity, p_hops := 1, p_relations := NULL, p_limit := 100) AS TABLE
WITH reached_0 AS MATERIALIZED (
    SELECT entity_id FROM {schema}.entity_named(p_entity)
),
links_1 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT entity_id FROM reached_0) AND {schema}.is_among(relation, p_relations)
),
reached_1 AS MATERIALIZED (
    SELECT DISTINCT other_id AS entity_id
    FROM links_1
    WHERE p_hops > 1 AND (SELECT count(*) FROM links_1) < 2 * p_limit
        AND other_id NOT IN (SELECT entity_id FROM reached_0)
),
links_2 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT entity_id FROM reached_1) AND {schema}.is_among(relation, p_relations)
),
reached_2 AS MATERIALIZED (
    SELECT DISTINCT other_id AS entity_id
    FROM links_2
    WHERE p_hops > 2 AND (SELECT count(*) FROM links_1) + (SELECT count(*) FROM links_2) < 2 * p_limit
        AND other_id NOT IN (SELECT entity_id FROM reached_0)
        AND other_id NOT IN (SELECT entity_id FROM reached_1)
),
links_3 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT entity_id FROM reached_2) AND {schema}.is_among(relation, p_relations)
),
reached_3 AS MATERIALIZED (
    SELECT DISTINCT other_id AS entity_id
    FROM links_3
    WHERE p_hops > 3 AND (SELECT count(*) FROM links_1) + (SELECT count(*) FROM links_2) + (SELECT count(*) FROM links_3) < 2 * p_limit
        AND other_id NOT IN (SELECT entity_id FROM reached_0)
        AND other_id NOT IN (SELECT entity_id FROM reached_1)
        AND other_id NOT IN (SELECT entity_id FROM reached_2)
),
links_4 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT entity_id FROM reached_3) AND {schema}.is_among(relation, p_relations)
),
reached_4 AS MATERIALIZED (
    SELECT DISTINCT other_id AS entity_id
    FROM links_4
    WHERE p_hops > 4 AND (SELECT count(*) FROM links_1) + (SELECT count(*) FROM links_2) + (SELECT count(*) FROM links_3) + (SELECT count(*) FROM links_4) < 2 * p_limit
        AND other_id NOT IN (SELECT entity_id FROM reached_0)
        AND other_id NOT IN (SELECT entity_id FROM reached_1)
        AND other_id NOT IN (SELECT entity_id FROM reached_2)
        AND other_id NOT IN (SELECT entity_id FROM reached_3)
),
links_5 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT entity_id FROM reached_4) AND {schema}.is_among(relation, p_relations)
),
reached_5 AS MATERIALIZED (
    SELECT DISTINCT other_id AS entity_id
    FROM links_5
    WHERE p_hops > 5 AND (SELECT count(*) FROM links_1) + (SELECT count(*) FROM links_2) + (SELECT count(*) FROM links_3) + (SELECT count(*) FROM links_4) + (SELECT count(*) FROM links_5) < 2 * p_limit
        AND other_id NOT IN (SELECT entity_id FROM reached_0)
        AND other_id NOT IN (SELECT entity_id FROM reached_1)
        AND other_id NOT IN (SELECT entity_id FROM reached_2)
        AND other_id NOT IN (SELECT entity_id FROM reached_3)
        AND other_id NOT IN (SELECT entity_id FROM reached_4)
),
links_6 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT entity_id FROM reached_5) AND {schema}.is_among(relation, p_relations)
),
all_links AS (
    SELECT 1 AS hop, * FROM links_1
    UNION ALL
    SELECT 2 AS hop, * FROM links_2
    UNION ALL
    SELECT 3 AS hop, * FROM links_3
    UNION ALL
    SELECT 4 AS hop, * FROM links_4
    UNION ALL
    SELECT 5 AS hop, * FROM links_5
    UNION ALL
    SELECT 6 AS hop, * FROM links_6
),
found AS (
    SELECT
        min(hop)::INTEGER AS hop,
        CASE WHEN outgoing THEN entity_id ELSE other_id END AS subject_id,
        relation,
        CASE WHEN outgoing THEN other_id ELSE entity_id END AS object_id,
        any_value(confidence) AS confidence, any_value(p) AS p, any_value(source) = 'weights' AS weak
    FROM all_links
    GROUP BY subject_id, relation, object_id
    ORDER BY hop, weak, confidence DESC NULLS LAST, p DESC NULLS LAST, subject_id, relation, object_id
    LIMIT p_limit
)
SELECT f.hop, s.entity AS subject, f.relation, o.entity AS object, f.confidence
FROM found AS f
JOIN {schema}.entity_names AS s ON s.entity_id = f.subject_id
JOIN {schema}.entity_names AS o ON o.entity_id = f.object_id
ORDER BY f.hop, f.weak, f.confidence DESC NULLS LAST, f.p DESC NULLS LAST, f.subject_id, f.relation, f.object_id;
COMMENT ON MACRO TABLE {public}.neighbors IS 'The triples around an entity, nearest first: those that touch it, then those that touch their other ends, up to p_hops (at most 6). Example: FROM neighbors(''France'', p_hops := 2, p_limit := 20)';

-- Paths meet in the middle: partial paths from either end, half as long as the whole. At most 20,000 of them are kept
-- at each length, the most confident ones (p stands in for a confidence that is not known), so that hubs cannot make a
-- question endless.
CREATE MACRO {public}.paths(p_from, p_to, p_max := 3, p_relations := NULL, p_limit := 10) AS TABLE
WITH
fore_0 AS MATERIALIZED (
    SELECT entity_id AS node, [entity_id] AS nodes, []::STRUCT(subject_id INTEGER, relation VARCHAR, object_id INTEGER)[] AS steps, 1.0::DOUBLE AS confidence, 1.0::DOUBLE AS sure
    FROM {schema}.entity_named(p_from)
),
back_0 AS MATERIALIZED (
    SELECT entity_id AS node, [entity_id] AS nodes, []::STRUCT(subject_id INTEGER, relation VARCHAR, object_id INTEGER)[] AS steps, 1.0::DOUBLE AS confidence, 1.0::DOUBLE AS sure
    FROM {schema}.entity_named(p_to)
),
fore_links_1 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT node FROM fore_0) AND {schema}.is_among(relation, p_relations)
),
fore_1 AS MATERIALIZED (
    SELECT
        k.other_id AS node,
        list_append(f.nodes, k.other_id) AS nodes,
        list_append(f.steps, {
            'subject_id': CASE WHEN k.outgoing THEN k.entity_id ELSE k.other_id END, 'relation': k.relation,
            'object_id': CASE WHEN k.outgoing THEN k.other_id ELSE k.entity_id END
        }) AS steps,
        f.confidence * k.confidence AS confidence,
        f.sure * coalesce(k.confidence, k.p) AS sure
    FROM fore_0 AS f
    JOIN fore_links_1 AS k ON k.entity_id = f.node
    WHERE NOT list_contains(f.nodes, k.other_id)
    ORDER BY sure DESC NULLS LAST, nodes, steps
    LIMIT 20000
),
paths_1 AS MATERIALIZED (
    SELECT list_concat(a.steps, b.steps) AS steps, 1 AS length, a.confidence * b.confidence AS confidence, a.sure * b.sure AS sure
    FROM fore_1 AS a
    JOIN back_0 AS b ON b.node = a.node
    WHERE len(list_intersect(a.nodes, b.nodes)) = 1
),
back_links_1 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT node FROM back_0 WHERE p_max >= 2 AND (SELECT count(*) FROM paths_1) < p_limit) AND {schema}.is_among(relation, p_relations)
),
back_1 AS MATERIALIZED (
    SELECT
        k.other_id AS node,
        list_prepend(k.other_id, f.nodes) AS nodes,
        list_prepend({
            'subject_id': CASE WHEN k.outgoing THEN k.entity_id ELSE k.other_id END, 'relation': k.relation,
            'object_id': CASE WHEN k.outgoing THEN k.other_id ELSE k.entity_id END
        }, f.steps) AS steps,
        f.confidence * k.confidence AS confidence,
        f.sure * coalesce(k.confidence, k.p) AS sure
    FROM back_0 AS f
    JOIN back_links_1 AS k ON k.entity_id = f.node
    WHERE NOT list_contains(f.nodes, k.other_id)
    ORDER BY sure DESC NULLS LAST, nodes, steps
    LIMIT 20000
),
paths_2 AS MATERIALIZED (
    SELECT list_concat(a.steps, b.steps) AS steps, 2 AS length, a.confidence * b.confidence AS confidence, a.sure * b.sure AS sure
    FROM fore_1 AS a
    JOIN back_1 AS b ON b.node = a.node
    WHERE p_max >= 2 AND len(list_intersect(a.nodes, b.nodes)) = 1
),
fore_links_2 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT node FROM fore_1 WHERE p_max >= 3 AND (SELECT count(*) FROM paths_1) + (SELECT count(*) FROM paths_2) < p_limit) AND {schema}.is_among(relation, p_relations)
),
fore_2 AS MATERIALIZED (
    SELECT
        k.other_id AS node,
        list_append(f.nodes, k.other_id) AS nodes,
        list_append(f.steps, {
            'subject_id': CASE WHEN k.outgoing THEN k.entity_id ELSE k.other_id END, 'relation': k.relation,
            'object_id': CASE WHEN k.outgoing THEN k.other_id ELSE k.entity_id END
        }) AS steps,
        f.confidence * k.confidence AS confidence,
        f.sure * coalesce(k.confidence, k.p) AS sure
    FROM fore_1 AS f
    JOIN fore_links_2 AS k ON k.entity_id = f.node
    WHERE NOT list_contains(f.nodes, k.other_id)
    ORDER BY sure DESC NULLS LAST, nodes, steps
    LIMIT 20000
),
paths_3 AS MATERIALIZED (
    SELECT list_concat(a.steps, b.steps) AS steps, 3 AS length, a.confidence * b.confidence AS confidence, a.sure * b.sure AS sure
    FROM fore_2 AS a
    JOIN back_1 AS b ON b.node = a.node
    WHERE p_max >= 3 AND len(list_intersect(a.nodes, b.nodes)) = 1
),
back_links_2 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT node FROM back_1 WHERE p_max >= 4 AND (SELECT count(*) FROM paths_1) + (SELECT count(*) FROM paths_2) + (SELECT count(*) FROM paths_3) < p_limit) AND {schema}.is_among(relation, p_relations)
),
back_2 AS MATERIALIZED (
    SELECT
        k.other_id AS node,
        list_prepend(k.other_id, f.nodes) AS nodes,
        list_prepend({
            'subject_id': CASE WHEN k.outgoing THEN k.entity_id ELSE k.other_id END, 'relation': k.relation,
            'object_id': CASE WHEN k.outgoing THEN k.other_id ELSE k.entity_id END
        }, f.steps) AS steps,
        f.confidence * k.confidence AS confidence,
        f.sure * coalesce(k.confidence, k.p) AS sure
    FROM back_1 AS f
    JOIN back_links_2 AS k ON k.entity_id = f.node
    WHERE NOT list_contains(f.nodes, k.other_id)
    ORDER BY sure DESC NULLS LAST, nodes, steps
    LIMIT 20000
),
paths_4 AS MATERIALIZED (
    SELECT list_concat(a.steps, b.steps) AS steps, 4 AS length, a.confidence * b.confidence AS confidence, a.sure * b.sure AS sure
    FROM fore_2 AS a
    JOIN back_2 AS b ON b.node = a.node
    WHERE p_max >= 4 AND len(list_intersect(a.nodes, b.nodes)) = 1
),
fore_links_3 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT node FROM fore_2 WHERE p_max >= 5 AND (SELECT count(*) FROM paths_1) + (SELECT count(*) FROM paths_2) + (SELECT count(*) FROM paths_3) + (SELECT count(*) FROM paths_4) < p_limit) AND {schema}.is_among(relation, p_relations)
),
fore_3 AS MATERIALIZED (
    SELECT
        k.other_id AS node,
        list_append(f.nodes, k.other_id) AS nodes,
        list_append(f.steps, {
            'subject_id': CASE WHEN k.outgoing THEN k.entity_id ELSE k.other_id END, 'relation': k.relation,
            'object_id': CASE WHEN k.outgoing THEN k.other_id ELSE k.entity_id END
        }) AS steps,
        f.confidence * k.confidence AS confidence,
        f.sure * coalesce(k.confidence, k.p) AS sure
    FROM fore_2 AS f
    JOIN fore_links_3 AS k ON k.entity_id = f.node
    WHERE NOT list_contains(f.nodes, k.other_id)
    ORDER BY sure DESC NULLS LAST, nodes, steps
    LIMIT 20000
),
paths_5 AS MATERIALIZED (
    SELECT list_concat(a.steps, b.steps) AS steps, 5 AS length, a.confidence * b.confidence AS confidence, a.sure * b.sure AS sure
    FROM fore_3 AS a
    JOIN back_2 AS b ON b.node = a.node
    WHERE p_max >= 5 AND len(list_intersect(a.nodes, b.nodes)) = 1
),
back_links_3 AS MATERIALIZED (
    FROM {schema}.links WHERE entity_id IN (SELECT node FROM back_2 WHERE p_max >= 6 AND (SELECT count(*) FROM paths_1) + (SELECT count(*) FROM paths_2) + (SELECT count(*) FROM paths_3) + (SELECT count(*) FROM paths_4) + (SELECT count(*) FROM paths_5) < p_limit) AND {schema}.is_among(relation, p_relations)
),
back_3 AS MATERIALIZED (
    SELECT
        k.other_id AS node,
        list_prepend(k.other_id, f.nodes) AS nodes,
        list_prepend({
            'subject_id': CASE WHEN k.outgoing THEN k.entity_id ELSE k.other_id END, 'relation': k.relation,
            'object_id': CASE WHEN k.outgoing THEN k.other_id ELSE k.entity_id END
        }, f.steps) AS steps,
        f.confidence * k.confidence AS confidence,
        f.sure * coalesce(k.confidence, k.p) AS sure
    FROM back_2 AS f
    JOIN back_links_3 AS k ON k.entity_id = f.node
    WHERE NOT list_contains(f.nodes, k.other_id)
    ORDER BY sure DESC NULLS LAST, nodes, steps
    LIMIT 20000
),
paths_6 AS MATERIALIZED (
    SELECT list_concat(a.steps, b.steps) AS steps, 6 AS length, a.confidence * b.confidence AS confidence, a.sure * b.sure AS sure
    FROM fore_3 AS a
    JOIN back_3 AS b ON b.node = a.node
    WHERE p_max >= 6 AND len(list_intersect(a.nodes, b.nodes)) = 1
),
found AS (
    SELECT row_number() OVER (ORDER BY length, sure DESC NULLS LAST, steps) AS place, *
    FROM (
        FROM paths_1
        UNION ALL
        FROM paths_2
        UNION ALL
        FROM paths_3
        UNION ALL
        FROM paths_4
        UNION ALL
        FROM paths_5
        UNION ALL
        FROM paths_6
    )
    QUALIFY place <= p_limit
),
steps AS (
    SELECT place, length, confidence, unnest(steps) AS step, generate_subscripts(steps, 1) AS i
    FROM found
)
SELECT
    list({'subject': s.entity, 'relation': p.step.relation, 'object': o.entity} ORDER BY p.i) AS path,
    p.length::INTEGER AS length, p.confidence
FROM steps AS p
JOIN {schema}.entity_names AS s ON s.entity_id = p.step.subject_id
JOIN {schema}.entity_names AS o ON o.entity_id = p.step.object_id
GROUP BY p.place, p.length, p.confidence
ORDER BY p.place;
COMMENT ON MACRO TABLE {public}.paths IS 'Ways from one entity to another, shortest first, then by confidence (the product over the path; NULL with a weight triple in it, or a fact without one, in whose place p counts); p_max is at most 6. Example: FROM paths(''France'', ''Europe'')';
