-- Each feature's strongest firing of each sign, in its text.
SELECT f.layer, f.feature, f.sign, {schema}.excerpt(t.content, t.ends, f.position - t.position + 1) AS example
FROM {schema}.feature_firings AS f
JOIN {schema}.example_texts AS t ON t.text = f.text
WHERE f.rank = 1
ORDER BY f.layer, f.feature, f.sign
