-- Features of the layers $low to $high whose top activating and top promoted token are two different words: the tokens'
-- ids and texts, and whether the promoted one goes on within a word. What a negative activation promotes stands at the
-- other end of the down column.
SELECT i.layer, i.feature, i.token_id AS source, o.token_id AS target, ti.text AS activates_on, tu.text AS promotes,
    tu.token[1] <> ' ' AS continues
FROM feature_tokens AS i
JOIN feature_tokens AS o ON o.layer = i.layer AND o.feature = i.feature AND o.rank = 1
    AND o.side = CASE WHEN i.activation < 0 THEN 'out_neg' ELSE 'out' END
JOIN tokens AS ti ON ti.token_id = i.token_id AND ti.is_word
JOIN tokens AS tu ON tu.token_id = o.token_id AND tu.is_word
WHERE i.side = 'in' AND i.rank = 1 AND i.layer BETWEEN $low AND $high AND i.token_id <> o.token_id
ORDER BY i.layer, i.feature
