-- The table features of a vindex of schema 2.0, with the columns that came later. The sign of its promoted tokens was
-- positive for every feature.
SELECT f.*, i.tokens AS activates_on, 1 AS sign, o.tokens AS opposite_tokens, NULL::INTEGER AS expert
FROM features AS f
LEFT JOIN (
    SELECT layer, feature, list(trim(token) ORDER BY rank) AS tokens
    FROM feature_tokens WHERE side = 'in' AND rank <= 3 GROUP BY layer, feature
) AS i USING (layer, feature)
LEFT JOIN (
    SELECT layer, feature, list(trim(token) ORDER BY rank) AS tokens
    FROM feature_tokens WHERE side = 'out_neg' AND rank <= 3 GROUP BY layer, feature
) AS o USING (layer, feature)
ORDER BY layer, feature
