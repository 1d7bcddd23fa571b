-- A macro that people call and that the helpers below need.

CREATE MACRO {public}.name_key(p_name) AS
coalesce(
    (SELECT any_value(a.key) FROM {schema}.name_aliases AS a WHERE a.name = {schema}.plain_name(p_name)),
    (
        SELECT any_value(a.key) FROM {schema}.name_aliases AS a
        WHERE a.name = replace(replace(lower({schema}.plain_name(p_name)), 'ß', 'ss'), 'ς', 'σ')
    ),
    replace(replace(lower({schema}.plain_name(p_name)), 'ß', 'ss'), 'ς', 'σ')
);
COMMENT ON MACRO {public}.name_key IS 'The key under which names of the same thing are alike: lower case, without a leading article and full stops, one key for other names of a thing (US, USA). Example: SELECT name_key(''The U.S.'') AS key';
