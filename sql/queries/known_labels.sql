-- Labels of all features whose label counts as known: from probing, from a patch, or from a cluster of confidence $1 on.
SELECT f.layer, f.feature, f.relation, f.activates_on, f.sign, f.top_token, f.down_tokens, f.opposite_tokens,
    NULL::VARCHAR AS example, NULL::VARCHAR AS opposite_example
FROM {schema}.features AS f LEFT JOIN {schema}.clusters AS c USING (cluster_id)
WHERE f.relation IS NOT NULL AND (f.relation_source IN ('probe', 'patch') OR c.confidence >= $1)
ORDER BY f.layer, f.feature
