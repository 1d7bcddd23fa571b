-- What names the edges that were read off the weights of the given slots.
SELECT layer, feature, 'weights' AS source FROM slots
