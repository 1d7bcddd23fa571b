-- feature_tokens of edited slots: sides that were measured anew, and sides that the edit left alone (`kept`).
FROM new
UNION ALL BY NAME
SELECT t.* FROM {schema}.base_feature_tokens AS t SEMI JOIN kept USING (layer, feature, side)
ORDER BY layer, feature, side, rank
