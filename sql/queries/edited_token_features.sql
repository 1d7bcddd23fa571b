-- token_features of every token whose most specific features changed: `gone` are slots whose rows no longer hold,
-- `new` rows of slots that were measured (token, slot, gate, activation, z, basis). A token that loses a feature has
-- one less: what would follow is not known without asking the model again.
WITH affected AS (
    SELECT token_id FROM {schema}.base_token_features SEMI JOIN gone USING (layer, feature)
    UNION SELECT token_id FROM new
), every AS (
    SELECT token_id, layer, feature, gate, activation, z, basis FROM {schema}.base_token_features
    SEMI JOIN affected USING (token_id) ANTI JOIN gone USING (layer, feature)
    UNION ALL BY NAME FROM new
)
SELECT
    token_id, t.token, layer, feature,
    row_number() OVER (PARTITION BY token_id ORDER BY z DESC, layer, feature)::INTEGER AS rank,
    gate, activation, z, basis
FROM every JOIN {schema}.base_tokens AS t USING (token_id)
QUALIFY rank <= 32
ORDER BY token_id, rank
