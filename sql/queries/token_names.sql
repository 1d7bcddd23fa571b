SELECT
    lower(text) AS key, token_id, token,
    token_id IN (SELECT DISTINCT f.token_id FROM {schema}.token_features AS f WHERE f.rank = 1) AS has_features
FROM {schema}.tokens
WHERE text <> ''
ORDER BY key, token_id
