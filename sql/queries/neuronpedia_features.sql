-- Features as Neuronpedia's records of them: what each promotes, how often and how strongly it fires.
SELECT
    $model_id AS "modelId",
    CASE $source_set WHEN 'neurons' THEN s.layer::VARCHAR ELSE s.layer || '-' || $source_set END AS layer,
    s.feature::VARCHAR AS "index",
    $source_set AS "sourceSetName",
    'blocks.' || s.layer || '.mlp.hook_post' AS "hookName",
    s.max AS "maxActApprox",
    s.density AS frac_nonzero,
    coalesce(t.pos_str, []) AS pos_str,
    coalesce(t.pos_values, []) AS pos_values,
    coalesce(t.neg_str, []) AS neg_str,
    coalesce(t.neg_values, []) AS neg_values
FROM {schema}.feature_stats AS s
LEFT JOIN (
    SELECT
        layer, feature,
        list(token ORDER BY rank) FILTER (side = 'out') AS pos_str,
        list(score ORDER BY rank) FILTER (side = 'out') AS pos_values,
        list(token ORDER BY rank) FILTER (side = 'out_neg') AS neg_str,
        list(score ORDER BY rank) FILTER (side = 'out_neg') AS neg_values
    FROM {schema}.feature_tokens
    WHERE side IN ('out', 'out_neg')
    GROUP BY layer, feature
) AS t ON t.layer = s.layer AND t.feature = s.feature
ORDER BY s.layer, s.feature
