-- How names are written, told apart from what they name. Full stops stay before digits (3.5 is not 35) and at the
-- beginning (.java is not Java). One expression, because a macro's parameter is written out at each of its places.
CREATE MACRO {schema}.plain_name(p_name) AS
regexp_replace(
    regexp_replace(
        trim(
            regexp_replace(
                nfc_normalize(p_name), '[ \t\n\r\f\v\x{00a0}\x{2000}-\x{200a}\x{202f}\x{3000}]+', ' ', 'g'
            )
        ),
        '^(?i:the|a|an) ', ''
    ),
    '^(\.)|\.+([^0-9.]|$)', '\1\2', 'g'
);
COMMENT ON MACRO {schema}.plain_name IS 'A name without a leading article and full stops (but a first one and those before digits), its accented letters composed, its blanks single.';
