-- features with the clusters of feature_clusters in place of earlier ones. A cluster's name in cluster_names becomes the
-- relation of its features, but for those that have one from elsewhere (probing, edits).
SELECT f.* REPLACE (
    CASE WHEN f.relation_source IS NULL OR f.relation_source = 'cluster' THEN c.name ELSE f.relation END AS relation,
    CASE
        WHEN f.relation_source IS NOT NULL AND f.relation_source <> 'cluster' THEN f.relation_source
        WHEN c.name IS NOT NULL THEN 'cluster'
    END AS relation_source,
    c.cluster_id AS cluster_id
)
FROM features AS f
LEFT JOIN (
    SELECT layer, feature, cluster_id, name FROM feature_clusters JOIN cluster_names USING (cluster_id)
) AS c USING (layer, feature)
ORDER BY layer, feature
