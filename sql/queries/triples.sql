-- Facts of rank 1 (for the relations in $many every rank with p >= 0.1), then weight edges, in display order.
WITH stated AS (
    SELECT subject, relation, object, confidence, p, source, rank, stale, subject_key, object_key FROM {schema}.facts
    WHERE rank = 1 OR (p >= 0.1 AND relation IN (SELECT unnest($many)))
), parts AS (
    SELECT subject, relation, object, source, list_sort(list(DISTINCT layer)) AS layers,
        count(*)::INTEGER AS n_edges, max(score) AS score, bool_or(stale) AS stale
    FROM {schema}.edges GROUP BY ALL
), rows_ AS (
    SELECT s.subject, s.relation, s.object, s.confidence, s.p, s.source, coalesce(e.layers, []) AS layers,
        coalesce(e.n_edges, 0)::INTEGER AS n_edges, NULL AS score, s.rank, s.stale, s.subject_key, s.object_key
    FROM stated s LEFT JOIN parts e USING (subject, relation, object, source)
    UNION ALL BY NAME
    SELECT subject, relation, object, NULL AS confidence, NULL AS p, source, layers, n_edges, score, NULL AS rank,
        stale, NULL AS subject_key, NULL AS object_key
    FROM parts WHERE source = 'weights'
)
SELECT subject, relation, object, confidence, p, source, layers, n_edges, stale, subject_key, object_key FROM rows_
ORDER BY subject, source = 'weights', confidence DESC NULLS LAST, p DESC NULLS LAST, score DESC NULLS LAST, relation, rank, object
