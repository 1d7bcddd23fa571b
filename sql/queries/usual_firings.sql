-- What fires features that fire, with their usual sign, by layer, feature and rank: the number of the text and the token's
-- place in it, the activation, and its size as a share of the largest.
SELECT
    f.layer, f.feature, f.sign, f.text, f.position - t.position AS place, f.activation,
    abs(f.activation) / max(abs(f.activation)) OVER (PARTITION BY f.layer, f.feature) AS strength
FROM feature_firings AS f
JOIN features AS x ON x.layer = f.layer AND x.feature = f.feature AND x.sign = f.sign
JOIN feature_stats AS s ON s.layer = f.layer AND s.feature = f.feature AND s.density > 0
JOIN example_texts AS t ON t.text = f.text
WHERE f.activation <> 0
ORDER BY f.layer, f.feature, f.rank
