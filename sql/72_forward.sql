-- Forward passes over columns of prompts, usable in FROM and, with LATERAL, over a table of prompts. Needs the Python
-- functions {schema}_udf_*, so these macros exist in Python sessions only.

CREATE MACRO {schema}.lq_infer_top(p_prompt, p_k := 5) AS TABLE
SELECT unnest({schema}_udf_infer_top(p_prompt::VARCHAR, p_k::INTEGER), recursive := true);
COMMENT ON MACRO TABLE {schema}.lq_infer_top IS 'The p_k most probable next tokens of a prompt: rank, token, token_id, probability, logit, source; after them the database facts that it asks for, source patch. Example: FROM lq_infer_top(''The capital of France is'')';

CREATE MACRO {schema}.lq_trace(p_prompt, p_target := NULL) AS TABLE
SELECT unnest({schema}_udf_trace(p_prompt::VARCHAR, p_target::VARCHAR), recursive := true);
COMMENT ON MACRO TABLE {schema}.lq_trace IS 'A prompt''s last position layer by layer (-1: embedding), with rank, probability and additive logits of p_target (default: the prediction). Example: FROM lq_trace(''The capital of France is'', ''Paris'')';

CREATE MACRO {schema}.lq_features(p_prompt, p_target := NULL, p_k := 20) AS TABLE
SELECT
    c.*, f.relation, f.activates_on,
    {schema}.promoted(c.activation, f.sign, f.top_token, f.opposite_tokens[1]) AS top_token,
    {schema}.promoted(c.activation, f.sign, f.down_tokens, f.opposite_tokens) AS down_tokens, b.example
FROM (
    SELECT unnest({schema}_udf_features(p_prompt::VARCHAR, p_target::VARCHAR, p_k::INTEGER), recursive := true)
) AS c
LEFT JOIN {schema}.features AS f ON f.layer = c.layer AND f.feature = c.feature
LEFT JOIN {schema}.best_examples AS b
    ON b.layer = c.layer AND b.feature = c.feature AND b.sign = {schema}.side(c.activation, f.sign)
ORDER BY c.rank;
COMMENT ON MACRO TABLE {schema}.lq_features IS 'The p_k features with the largest contribution to the logit of p_target (default: the prediction), with what is known about them. Example: FROM lq_features(''The capital of France is'', p_k := 10)';

CREATE MACRO {schema}.lq_logit_lens(p_prompt, p_k := 5) AS TABLE
SELECT unnest({schema}_udf_logit_lens(p_prompt::VARCHAR, p_k::INTEGER), recursive := true);
COMMENT ON MACRO TABLE {schema}.lq_logit_lens IS 'What each layer (-1: embedding) would predict at a prompt''s last position: layer, rank, token, token_id, probability, logit. Example: FROM lq_logit_lens(''The capital of France is'', p_k := 1)';

CREATE MACRO {schema}.lq_dictionary_features(p_prompt, p_dictionary := NULL, p_k := 20) AS TABLE
SELECT c.*, f.density, f.promoted, f.suppressed, x.context AS example
FROM (
    SELECT
        unnest(
            {schema}_udf_dictionary_features(p_prompt::VARCHAR, p_k::INTEGER, p_dictionary::VARCHAR), recursive := true
        )
) AS c
LEFT JOIN {schema}.dictionary_features AS f ON f.dictionary = c.dictionary AND f.feature = c.feature
LEFT JOIN {schema}.dictionary_firings AS x ON x.dictionary = c.dictionary AND x.feature = c.feature AND x.rank = 1
ORDER BY c.rank;
COMMENT ON MACRO TABLE {schema}.lq_dictionary_features IS 'The p_k features of a dictionary that fire at a prompt''s last position and add most to the logit of the prediction: contribution directly, effect the fall of its log p without the feature. Example: FROM lq_dictionary_features(''The capital of France is'', p_k := 5)';

CREATE MACRO {schema}.lq_dictionary_walk(p_text, p_dictionary := NULL, p_k := 5) AS TABLE
SELECT c.*, f.density, f.promoted, x.context AS example
FROM (
    SELECT
        unnest({schema}_udf_dictionary_walk(p_text::VARCHAR, p_k::INTEGER, p_dictionary::VARCHAR), recursive := true)
) AS c
LEFT JOIN {schema}.dictionary_features AS f ON f.dictionary = c.dictionary AND f.feature = c.feature
LEFT JOIN {schema}.dictionary_firings AS x ON x.dictionary = c.dictionary AND x.feature = c.feature AND x.rank = 1
ORDER BY c.position, c.rank;
COMMENT ON MACRO TABLE {schema}.lq_dictionary_walk IS 'The p_k features of a dictionary that fire most at each position of a text. Example: FROM lq_dictionary_walk(''The capital of France'')';
