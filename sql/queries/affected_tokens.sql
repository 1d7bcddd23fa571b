-- Tokens whose most specific features changed: see edited_token_features.sql.
SELECT DISTINCT token_id FROM {schema}.base_token_features SEMI JOIN gone USING (layer, feature)
UNION SELECT token_id FROM new
