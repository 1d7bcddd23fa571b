-- Features with their best probed relation as label: the one whose facts list the feature most often, weighed by how
-- much its own it is. A feature must be listed at least three times as often for the relation's own facts as for
-- others (specificity 0.75): features that promote any kind of answer are no relation's.
SELECT f.* REPLACE (
    CASE WHEN f.relation_source = 'probe' OR f.relation IS NULL THEN l.relation ELSE f.relation END AS relation,
    CASE
        WHEN f.relation_source = 'patch' THEN 'patch'
        WHEN l.relation IS NOT NULL THEN 'probe'
        WHEN f.relation_source = 'probe' THEN NULL
        ELSE f.relation_source
    END AS relation_source
)
FROM {schema}.features f LEFT JOIN (
    SELECT layer, feature, relation FROM {schema}.feature_relations WHERE specificity >= 0.75
    QUALIFY row_number() OVER (
        PARTITION BY layer, feature ORDER BY support * specificity DESC, mean_contribution DESC, relation) = 1
) l USING (layer, feature)
ORDER BY layer, feature
