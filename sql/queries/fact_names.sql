-- What facts say of features: the relation in which each has the largest part, and the types of its subjects and objects
-- where most of them have one in common.
WITH best AS (
    SELECT layer, feature, relation
    FROM feature_relations
    WHERE support >= 0.1 AND specificity >= 0.5
    QUALIFY row_number() OVER (PARTITION BY layer, feature ORDER BY support * specificity DESC, relation) <= 2
),
types AS (
    SELECT subject, arg_max(type, p) AS type
    FROM (FROM entity_types WHERE p IS NOT NULL ORDER BY subject, type)
    GROUP BY subject
),
sides AS (
    SELECT DISTINCT layer, feature, relation, 'subject' AS side, subject AS name FROM edges WHERE source = 'probe'
    UNION ALL
    SELECT DISTINCT layer, feature, relation, 'object', object FROM edges WHERE source = 'probe'
),
counted AS (
    SELECT s.layer, s.feature, s.relation, s.side, t.type, count(*) AS n
    FROM sides AS s
    JOIN best AS b ON b.layer = s.layer AND b.feature = s.feature AND b.relation = s.relation
    JOIN types AS t ON t.subject = s.name
    GROUP BY ALL
),
agreed AS (
    SELECT layer, feature, relation, side, type
    FROM counted
    QUALIFY n >= 2 AND n * 2 > sum(n) OVER (PARTITION BY layer, feature, relation, side)
)
SELECT b.layer, b.feature, b.relation, s.type AS subject_type, o.type AS object_type
FROM best AS b
LEFT JOIN agreed AS s ON s.layer = b.layer AND s.feature = b.feature AND s.relation = b.relation AND s.side = 'subject'
LEFT JOIN agreed AS o ON o.layer = b.layer AND o.feature = b.feature AND o.relation = b.relation AND o.side = 'object'
ORDER BY b.layer, b.feature, b.relation
