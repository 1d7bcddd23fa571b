-- Names of features as Neuronpedia's records of explanations.
SELECT
    $model_id AS "modelId",
    CASE $source_set WHEN 'neurons' THEN layer::VARCHAR ELSE layer || '-' || $source_set END AS layer,
    feature::VARCHAR AS "index",
    name AS description, source AS "typeName", 'larql-duck' AS "explanationModelName",
    concat('sign ', sign, ', score ' || score, ' on ' || n_scored) AS notes
FROM {schema}.feature_names
WHERE name IS NOT NULL
ORDER BY feature_names.layer, feature, sign DESC
