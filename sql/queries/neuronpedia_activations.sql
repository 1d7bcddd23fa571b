-- Examples as Neuronpedia's records of them: the tokens around each firing one, and what is known of the feature at each.
WITH in_text AS (
    SELECT layer, feature, text, list(position ORDER BY position) AS positions, list(activation ORDER BY position) AS activations
    FROM {schema}.feature_firings
    GROUP BY layer, feature, text
), placed AS (
    SELECT
        f.layer, f.feature, f.sign, f.rank, f.doc, t.source, t.content, t.ends, t.position AS start, i.positions, i.activations,
        greatest(f.position - t.position - 23, 1) AS first,
        f.position - t.position + 1 AS firing,
        least(f.position - t.position + 9, len(t.ends)) AS last
    FROM {schema}.feature_firings AS f
    JOIN {schema}.example_texts AS t ON t.text = f.text
    JOIN in_text AS i ON i.layer = f.layer AND i.feature = f.feature AND i.text = f.text
    WHERE f.band = 'top' AND f.rank <= $top
), listed AS (
    SELECT
        layer, feature, sign, rank, doc, source, firing - first AS "maxValueTokenIndex",
        [substring(content, coalesce(ends[i - 1], 0) + 1, ends[i] - coalesce(ends[i - 1], 0)) FOR i IN range(first, last + 1)] AS tokens,
        [coalesce(activations[list_position(positions, start + i - 1)], 0::FLOAT) FOR i IN range(first, last + 1)] AS values
    FROM placed
)
SELECT
    $model_id AS "modelId",
    CASE $source_set WHEN 'neurons' THEN layer::VARCHAR ELSE layer || '-' || $source_set END AS layer,
    feature::VARCHAR AS "index",
    tokens, values, list_max(values) AS "maxValue", "maxValueTokenIndex", list_min(values) AS "minValue",
    doc::VARCHAR AS "dataIndex", source AS "dataSource"
FROM listed
ORDER BY listed.layer, feature, sign DESC, rank
