-- Features of the layers $low to $high whose top activating and top promoted token are two different words: the tokens'
-- ids and texts, and whether the promoted one goes on within a word. It is promoted with the feature's usual sign: where
-- that is negative, it stands at the other end of the down column.
WITH usual AS (
    SELECT layer, feature, CASE WHEN sum(activation) < 0 THEN 'out_neg' ELSE 'out' END AS side
    FROM feature_tokens
    WHERE side = 'in' AND layer BETWEEN $low AND $high
    GROUP BY layer, feature
)
SELECT i.layer, i.feature, i.token_id AS source, o.token_id AS target, ti.text AS activates_on, tu.text AS promotes,
    tu.token[1] <> ' ' AS continues
FROM feature_tokens AS i
JOIN usual AS u ON u.layer = i.layer AND u.feature = i.feature
JOIN feature_tokens AS o ON o.layer = i.layer AND o.feature = i.feature AND o.rank = 1 AND o.side = u.side
JOIN tokens AS ti ON ti.token_id = i.token_id AND ti.is_word
JOIN tokens AS tu ON tu.token_id = o.token_id AND tu.is_word
WHERE i.side = 'in' AND i.rank = 1 AND i.layer BETWEEN $low AND $high AND i.token_id <> o.token_id
ORDER BY i.layer, i.feature
