-- Each feature's strongest firing of each sign, in its text: as the macro excerpt shows it, which is made later.
WITH placed AS (
    SELECT f.layer, f.feature, f.sign, t.content, t.ends, f.position - t.position + 1 AS place
    FROM {schema}.feature_firings AS f
    JOIN {schema}.example_texts AS t ON t.text = f.text
    WHERE f.rank = 1
),
cut AS (
    SELECT
        layer, feature, sign, content, coalesce(ends[greatest(place - 25, 0)], 0) AS a, coalesce(ends[place - 1], 0) AS b,
        ends[place] AS c, ends[least(place + 8, len(ends))] AS d
    FROM placed
)
SELECT
    layer, feature, sign,
    concat(substring(content, 1 + a, b - a), '[', substring(content, 1 + b, c - b), ']', substring(content, 1 + c, d - c)) AS example
FROM cut
ORDER BY layer, feature, sign
