-- Macros that the ones people call are made of.

-- What differs in spelling only may be two things: Turkey and turkey, The Raven and raven. Other names always count.
CREATE MACRO {schema}.names_alike(p_entity) AS TABLE
WITH asked AS (
    SELECT nfc_normalize(trim(p_entity)) AS name, {schema}.plain_name(p_entity) AS plain
), found AS (
    SELECT entity, entity_id, layers
    FROM {schema}.entity_names
    WHERE key IN (
        lower(nfc_normalize(trim(p_entity))), 'the ' || lower(nfc_normalize(trim(p_entity))),
        lower({schema}.plain_name(p_entity))
    )
    UNION
    SELECT o.entity, o.entity_id, o.layers
    FROM {schema}.other_names AS o
    WHERE o.key IN (
        SELECT lower(plain) FROM asked
        UNION ALL
        SELECT n.key FROM {schema}.name_aliases AS n JOIN asked AS a ON n.name = a.plain OR n.name = lower(a.plain)
    )
)
SELECT
    f.entity, f.entity_id, f.layers,
    lower({schema}.plain_name(f.entity)) <> lower(a.plain)
    OR rank() OVER (
        PARTITION BY lower({schema}.plain_name(f.entity)) <> lower(a.plain)
        ORDER BY f.entity <> a.name, lower(nfc_normalize(f.entity)) <> lower(a.name)
    ) = 1 AS meant
FROM found AS f
CROSS JOIN asked AS a;
COMMENT ON MACRO TABLE {schema}.names_alike IS 'The names of the graph that are spelled like a name or have its key; meant is false for a spelling where a nearer one exists.';

CREATE MACRO {schema}.entity_named(p_entity) AS TABLE
SELECT entity, entity_id, layers FROM {schema}.names_alike(p_entity) WHERE meant;
COMMENT ON MACRO TABLE {schema}.entity_named IS 'What the graph calls a name: the exact spelling, else all that differ in case only (accented letters compared composed), else those that differ in articles and full stops; and other names for the same.';

-- The token is meant as it stands in running text, so ' France' comes before 'France' where both exist.
CREATE MACRO {schema}.token_hits(p_token, p_layers := NULL) AS TABLE
WITH spelling AS MATERIALIZED (
    SELECT token_id
    FROM {schema}.token_names
    WHERE key = lower(trim(p_token)) AND has_features
    ORDER BY
        (starts_with(p_token, ' ') AND token = p_token) DESC, token = ' ' || trim(p_token) DESC,
        token = trim(p_token) DESC, starts_with(token, ' ') DESC, token_id
    LIMIT 1
)
SELECT h.token_id, h.token, h.layer, h.feature, h.rank, h.gate, h.activation, h.z, h.basis
FROM spelling AS s
JOIN {schema}.token_features AS h ON h.token_id = s.token_id
WHERE p_layers IS NULL OR list_contains(p_layers, h.layer);
COMMENT ON MACRO TABLE {schema}.token_hits IS 'The rows of token_features for a token, in the spelling that has some.';

-- An activation of the other sign than the feature's usual one promotes what the down column otherwise suppresses.
CREATE MACRO {schema}.promoted(p_activation, p_sign, p_usual, p_opposite) AS
CASE WHEN p_activation * p_sign < 0 THEN p_opposite ELSE p_usual END;
COMMENT ON MACRO {schema}.promoted IS 'Of the tokens that a feature promotes with its usual sign and with the other one, those of the sign of an activation (NULL: the usual one).';

CREATE MACRO {schema}.token_text(p_token) AS
CASE
    WHEN regexp_full_match(p_token, '[\s\p{Z}]+') THEN regexp_replace(hex(encode(p_token)), '(..)', '<0x\1>', 'g')
    ELSE trim(p_token)
END;
COMMENT ON MACRO {schema}.token_text IS 'A token as tables show it: trimmed; one of blanks alone, which nobody would see, as its bytes (<0x20> each).';

CREATE MACRO {schema}.rounded(p_number) AS
CASE
    WHEN p_number = 0 OR NOT isfinite(p_number) THEN p_number
    ELSE round(p_number, (2 - floor(log10(abs(p_number))))::INTEGER)
END;
COMMENT ON MACRO {schema}.rounded IS 'A number with three significant digits.';

CREATE MACRO {schema}.is_among(p_relation, p_relations) AS
p_relations IS NULL OR list_contains([lower(trim(r)) FOR r IN p_relations], lower(p_relation));
COMMENT ON MACRO {schema}.is_among IS 'Whether a relation is one of a list, in any case; a NULL list holds all.';

-- One end of Wilson's 95 % interval of a share: side -1 is the lower bound, 1 the upper one.
CREATE MACRO {schema}.wilson(k, n, side) AS
    CASE WHEN n > 0 THEN
        (k + 1.9208 + side * 1.96 * sqrt(k * (n - k) / n + 0.9604)) / (n + 3.8416)
    END;
COMMENT ON MACRO {schema}.wilson IS 'One bound of the 95 % interval of a share k of n (Wilson): the lower one for side -1, the upper one for 1.';

CREATE MACRO {schema}.cut_out(p_content, p_from, p_to) AS
substring(p_content, 1 + coalesce(p_from, 0), coalesce(p_to, 0) - coalesce(p_from, 0));
COMMENT ON MACRO {schema}.cut_out IS 'The characters of a text between two places, counted from 0; NULL counts as 0.';

CREATE MACRO {schema}.excerpt(p_content, p_ends, p_at) AS concat(
    {schema}.cut_out(p_content, list_extract(p_ends, greatest(p_at - 25, 0)), list_extract(p_ends, p_at - 1)),
    '[', {schema}.cut_out(p_content, list_extract(p_ends, p_at - 1), list_extract(p_ends, p_at)), ']',
    {schema}.cut_out(p_content, list_extract(p_ends, p_at), list_extract(p_ends, least(p_at + 8, len(p_ends))))
);
COMMENT ON MACRO {schema}.excerpt IS 'Of a text whose tokens end where p_ends says, the p_at-th token (from 1) in brackets, with 24 tokens before it and 8 behind it.';

CREATE MACRO {schema}.side(p_activation, p_sign) AS
CASE WHEN p_activation > 0 THEN 1 WHEN p_activation < 0 THEN -1 ELSE p_sign END;
COMMENT ON MACRO {schema}.side IS 'The sign of an activation; of none, and of 0, the feature''s usual one.';
