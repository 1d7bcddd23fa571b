-- What larql-duck graph found in the graph of facts, read from where it was stored.

CREATE MACRO {public}.central(p_limit := 20) AS TABLE
SELECT r.place, r.entity, r.pagerank, r.community, e.n_facts
FROM {schema}.entity_ranks AS r
LEFT JOIN {schema}.entities AS e ON e.entity = r.entity
ORDER BY r.place
LIMIT p_limit;
COMMENT ON MACRO TABLE {public}.central IS 'The names that the facts lead to most, by PageRank; no rows before larql-duck graph ran. Example: FROM central(p_limit := 10)';

CREATE MACRO {public}.community_of(p_entity, p_limit := 20) AS TABLE
SELECT r.community, r.place, r.entity, r.pagerank
FROM {schema}.entity_ranks AS r
WHERE r.community IN (
    SELECT n.community
    FROM {schema}.entity_ranks AS n
    WHERE n.entity IN (SELECT entity FROM {schema}.entity_named(p_entity))
)
ORDER BY r.community, r.place
LIMIT p_limit;
COMMENT ON MACRO TABLE {public}.community_of IS 'The names of the community that a name is in, by PageRank; no rows before larql-duck graph ran. Example: FROM community_of(''France'')';

-- From one end up to the hub that makes the whole shortest, and down to the other end.
CREATE MACRO {public}.shortest_path(p_from, p_to) AS TABLE
WITH RECURSIVE chosen AS MATERIALIZED (
    SELECT a.hub, a.entity AS start, b.entity AS goal, a.length AS up, a.length + b.length AS length
    FROM {schema}.hub_paths AS a
    JOIN {schema}.hub_paths AS b ON b.hub = a.hub
    WHERE a.entity IN (SELECT entity FROM {schema}.entity_named(p_from))
        AND b.entity IN (SELECT entity FROM {schema}.entity_named(p_to))
    ORDER BY length, a.hub, start, goal
    LIMIT 1
),
ways AS (
    SELECT true AS up, hub, start AS entity, 0 AS step FROM chosen
    UNION ALL
    SELECT false, hub, goal, length FROM chosen
    UNION ALL
    SELECT w.up, w.hub, h.previous, CASE WHEN w.up THEN w.step + 1 ELSE w.step - 1 END
    FROM ways AS w
    JOIN {schema}.hub_paths AS h ON h.hub = w.hub AND h.entity = w.entity
    WHERE h.previous IS NOT NULL
)
SELECT DISTINCT w.step::INTEGER AS step, w.entity, c.hub IN (c.start, c.goal) AS shortest
FROM ways AS w
CROSS JOIN chosen AS c
ORDER BY w.step;
COMMENT ON MACRO TABLE {public}.shortest_path IS 'A way from one name to another over facts in either direction, by the paths from hubs that larql-duck graph stored: the shortest for certain (shortest) where one end is a hub, else the shortest over a hub. Example: FROM shortest_path(''Paris'', ''Europe'')';
