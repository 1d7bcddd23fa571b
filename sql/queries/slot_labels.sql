-- Labels of the features at the slots ($1[i], $2[i]), and the text that fires each most, with either sign.
SELECT
    f.layer, f.feature, f.relation, f.activates_on, f.sign, f.top_token, f.down_tokens, f.opposite_tokens,
    b.example, o.example AS opposite_example
FROM {schema}.features AS f
JOIN (SELECT unnest($1::INTEGER[]) AS layer, unnest($2::INTEGER[]) AS feature) AS s
    ON s.layer = f.layer AND s.feature = f.feature
LEFT JOIN {schema}.best_examples AS b ON b.layer = f.layer AND b.feature = f.feature AND b.sign = f.sign
LEFT JOIN {schema}.best_examples AS o ON o.layer = f.layer AND o.feature = f.feature AND o.sign = -f.sign
