-- The z that a feature must exceed to be among a token's 32 most specific ones, for tokens that have as many.
SELECT token_id, min(z) AS z FROM {schema}.base_token_features GROUP BY token_id HAVING count(*) >= 32
