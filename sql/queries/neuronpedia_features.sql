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
    -- Cosines become logits: what an activation of 1 adds, the final norm's factor left out.
    SELECT
        t.layer, t.feature,
        list(t.token ORDER BY t.rank) FILTER (t.side = 'out') AS pos_str,
        list(t.score * f.down_norm * h.length ORDER BY t.rank) FILTER (t.side = 'out') AS pos_values,
        list(t.token ORDER BY t.rank) FILTER (t.side = 'out_neg') AS neg_str,
        list(t.score * f.down_norm * h.length ORDER BY t.rank) FILTER (t.side = 'out_neg') AS neg_values
    FROM {schema}.feature_tokens AS t
    JOIN {schema}.features AS f ON f.layer = t.layer AND f.feature = t.feature
    LEFT JOIN head_lengths AS h ON h.token_id = t.token_id
    WHERE t.side IN ('out', 'out_neg')
    GROUP BY t.layer, t.feature
) AS t ON t.layer = s.layer AND t.feature = s.feature
ORDER BY s.layer, s.feature
