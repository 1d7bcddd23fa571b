-- Relation labels of features as Neuronpedia's records of explanations.
SELECT
    $model_id AS "modelId",
    CASE $source_set WHEN 'neurons' THEN layer::VARCHAR ELSE layer || '-' || $source_set END AS layer,
    feature::VARCHAR AS "index",
    relation AS description, relation_source AS "typeName", 'larql-duck' AS "explanationModelName", NULL::VARCHAR AS notes
FROM {schema}.features
WHERE relation IS NOT NULL
ORDER BY features.layer, feature
