-- Tokens that one model prefers where the other prefers another, most often preferred first; text_diff is the table.
WITH preferred AS (
    SELECT 'a' AS preferred_by, top_a AS token, p_a AS p, top_a_in_b AS p_other, kl
    FROM text_diff WHERE top_a IS DISTINCT FROM top_b
    UNION ALL
    SELECT 'b', top_b, p_b, top_b_in_a, kl
    FROM text_diff WHERE top_a IS DISTINCT FROM top_b
)
SELECT preferred_by, token, count(*) AS places, avg(p) AS p, avg(p_other) AS p_other, avg(kl) AS kl
FROM preferred
GROUP BY ALL
ORDER BY places DESC, preferred_by, token
