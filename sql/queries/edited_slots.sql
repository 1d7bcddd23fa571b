-- The rows of features of the given slots before edits.
FROM {schema}.base_features SEMI JOIN slots USING (layer, feature)
