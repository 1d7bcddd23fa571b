-- Labels of the features at the slots ($1[i], $2[i]).
SELECT f.layer, f.feature, f.relation, f.activates_on, f.sign, f.top_token, f.down_tokens, f.opposite_tokens
FROM {schema}.features AS f
JOIN (SELECT unnest($1::INTEGER[]) AS layer, unnest($2::INTEGER[]) AS feature) AS s
    ON s.layer = f.layer AND s.feature = f.feature
