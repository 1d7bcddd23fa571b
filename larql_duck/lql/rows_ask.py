"""The rows of the statement table that ask: queries and introspection."""

from __future__ import annotations

from larql_duck.lql import statements as s
from larql_duck.lql.bodies import ExplainedBody, Names, SelectBody, names_of
from larql_duck.lql.checks import check_explain, check_infer, check_probe
from larql_duck.lql.clauses import (
    AT_LAYER,
    BANDS,
    BASIS,
    COMPARE,
    DRY_RUN,
    LAYERS,
    LIMIT,
    LIMIT_ONCE,
    MODES,
    PIPE_HINTS,
    RELATIONS,
    RELATIONS_ONLY,
    TOP,
    WHERE,
    names,
)
from larql_duck.lql.grammar import Field, Syntax, clause, flag, head
from larql_duck.lql.values import (
    Integer,
    LayerList,
    OptionalChoice,
    PatchFromValue,
    SlotList,
    SlotValue,
    SteerValue,
    Text,
    choice,
)

QUERIES = (
    Syntax(
        ("DESCRIBE",),
        s.Describe,
        "What the model knows about an entity.",
        'DESCRIBE "France" ALL LAYERS VERBOSE;',
        head(Field("entity", Text('"entity"'))),
        (AT_LAYER, *BANDS, RELATIONS_ONLY, *MODES),
        hints={
            **PIPE_HINTS,
            "TOP": 'DESCRIBE "entity" |> SELECT * FROM _ LIMIT 5 takes the first rows',
            "LAYERS": 'write AT LAYER n, or DESCRIBE "entity" ALL LAYERS |> SELECT * FROM _ WHERE layer BETWEEN 3 AND 5',
        },
    ),
    Syntax(
        ("SELECT",),
        s.Select,
        "Any DuckDB query over EDGES, FEATURES, ENTITIES, RELATIONS, LAYERS, TOKENS, FACTS, model_graph and your tables.",
        'SELECT relationship, object FROM model_graph WHERE subject = "France" ORDER BY p DESC;',
        head(SelectBody()),
        whole=True,
    ),
    Syntax(
        ("WITH",),
        s.Select,
        "A DuckDB query with named parts.",
        "WITH best AS (SELECT * FROM FACTS WHERE p > 0.5) SELECT relation, count(*) FROM best GROUP BY relation;",
        head(SelectBody()),
        whole=True,
    ),
    Syntax(
        ("WALK",),
        s.Walk,
        "Which features activate on a prompt.",
        'WALK "The capital of France is" TOP 5 LAYERS 20-29 MODE DENSE;',
        head(Field("prompt", Text('"prompt"'))),
        (
            TOP,
            clause("LAYERS", "layers", LayerList(all_allowed=True), "only these layers: 3, 5, 8-10"),
            clause(
                "MODE",
                "mode",
                choice("HYBRID", "PURE", "DENSE"),
                "ranked by gate (HYBRID, PURE) or by activation",
            ),
            COMPARE,
            BASIS,
        ),
        hints=PIPE_HINTS,
    ),
    Syntax(
        ("INFER",),
        s.Infer,
        "What the model says next, if you like with parts of it changed for this one run.",
        'INFER "The capital of France is" TOP 5 ABLATE (26, 9515) BY MEAN;',
        head(Field("prompt", Text('"prompt"'))),
        (
            TOP,
            COMPARE,
            clause("WALK K", "walk_k", Integer(), "each layer keeps only its so many strongest features"),
            clause("ABLATE", "ablate", SlotList(), "these features do nothing", add=True),
            clause("BY", "ablate_by", choice("ZERO", "MEAN"), "or what they do on average (BY MEAN)"),
            clause("STEER", "steer", SteerValue(), "push a layer's output towards a relation", add=True),
            clause(
                "PATCH FROM", "patch", PatchFromValue(), "take a layer's output from another prompt", add=True
            ),
        ),
        check=check_infer,
        hints=PIPE_HINTS,
    ),
    *(
        Syntax(
            ("EXPLAIN", what.upper()),
            s.Explain,
            about,
            example,
            head(Field("prompt", Text('"prompt"'))),
            (
                TOP,
                LAYERS,
                *BANDS,
                clause("FOR", "target", Text('"token"'), "for this token instead of the predicted one"),
                BASIS,
                flag("VERBOSE", "verbose", "more rows"),
                RELATIONS_ONLY,
                flag("WITH ATTENTION", "attention", "also what each attention head adds and looks at"),
            ),
            preset={"what": what},
            check=check_explain,
            hints=PIPE_HINTS,
        )
        # One class: the reference takes the same clauses behind both verbs.
        for what, about, example in (
            (
                "walk",
                "WALK, with each feature's token and band.",
                'EXPLAIN WALK "The capital of France is" TOP 3;',
            ),
            (
                "infer",
                "Which features and heads made the model say it.",
                'EXPLAIN INFER "The capital of France is" TOP 5 FOR "Paris" WITH ATTENTION;',
            ),
        )
    ),
    Syntax(
        ("EXPLAIN", "SQL"),
        s.ExplainSql,
        "The DuckDB SQL that a statement or a pipe of them becomes.",
        'EXPLAIN SQL DESCRIBE "France";',
        head(ExplainedBody()),
    ),
    Syntax(
        ("TRACE",),
        s.Trace,
        "How the answer forms from layer to layer.",
        'TRACE "The capital of France is" FOR "Paris" DECOMPOSE LAYERS 20-29;',
        head(Field("prompt", Text('"prompt"'))),
        (
            clause("FOR", "target", Text('"token"'), "follow this token"),
            flag("DECOMPOSE", "decompose", "attention's share, and each head's"),
            LAYERS,
            clause(
                "POSITIONS", "positions", OptionalChoice({"LAST": "last", "ALL": "all"}), "which positions"
            ),
            clause("SAVE", "save", Text('"file"'), "write it to a file (Parquet, or .trace)"),
        ),
        hints=PIPE_HINTS,
    ),
    Syntax(
        ("PROBE",),
        s.Probe,
        "Asks the model about entities and keeps the facts it states.",
        'PROBE ENTITIES "Ada Lovelace", "Alan Turing" RELATIONS "occupation" DRY RUN;',
        (),
        (
            clause("ENTITIES", "entities", Names(), "whom to ask about", shown=names_of),
            clause("RELATIONS", "relations", names("relation"), "only these relations"),
            clause("TEMPLATE", "templates", names("template"), "your own prompts, {} for the entity"),
            clause("PACK", "pack", Text('"pack"'), "the relation pack to take relations and entities from"),
            LIMIT,
            DRY_RUN,
        ),
        check=check_probe,
    ),
    Syntax(
        ("NEIGHBORS",),
        s.Neighbors,
        "The entities around an entity in the graph of facts.",
        'NEIGHBORS OF "France" HOPS 2 LIMIT 20;',
        head("OF", Field("entity", Text('"entity"'))),
        (clause("HOPS", "hops", Integer(), "how far to go"), RELATIONS, LIMIT),
    ),
    Syntax(
        ("PATHS",),
        s.Paths,
        "How two entities are connected in the graph of facts.",
        'PATHS FROM "Paris" TO "Europe" MAX 3;',
        head("FROM", Field("source", Text('"entity"')), "TO", Field("target", Text('"entity"'))),
        (clause("MAX", "max_length", Integer(), "paths of at most so many facts"), RELATIONS, LIMIT),
    ),
    Syntax(
        ("SIMILAR", "FEATURES"),
        s.SimilarFeatures,
        "Features whose vectors point the same way.",
        "SIMILAR FEATURES TO (26, 9515) BY DOWN TOP 10;",
        head("TO", Field("slot", SlotValue())),
        (
            clause("BY", "space", choice("GATE", "UP", "DOWN", "ALL"), "which of the feature's vectors"),
            LAYERS,
            TOP,
        ),
    ),
)

INTROSPECTION = (
    Syntax(
        ("SHOW", "RELATIONS"),
        s.ShowRelations,
        "The relations that are known, with how many facts and features.",
        "SHOW RELATIONS WITH EXAMPLES;",
        (),
        (AT_LAYER, flag("WITH EXAMPLES", "examples", "some facts of each"), *MODES),
        hints={"LIMIT": "pipe it: SHOW RELATIONS |> SELECT * FROM _ LIMIT 5"},
    ),
    Syntax(
        ("SHOW", "LAYERS"),
        s.ShowLayers,
        "The layers: how many features, which band.",
        "SHOW LAYERS 0-10;",
        head(Field("layers", LayerList(), optional=True, noise=("RANGE",))),
    ),
    Syntax(
        ("SHOW", "FEATURES"),
        s.ShowFeatures,
        "The features of a layer.",
        "SHOW FEATURES 26 WHERE c_score > 0.3 LIMIT 5;",
        head(Field("layer", Integer())),
        (WHERE, LIMIT_ONCE),
    ),
    Syntax(
        ("SHOW", "ENTITIES"),
        s.ShowEntities,
        "The entities that facts or features name.",
        "SHOW ENTITIES AT LAYER 26 LIMIT 50;",
        head(Field("layer", Integer(), optional=True)),
        (clause("AT LAYER", "layer", Integer(), "at this layer", once=True), LIMIT_ONCE),
        hints={"WHERE": "pipe it: SHOW ENTITIES |> SELECT * FROM _ WHERE ..."},
    ),
    Syntax(("SHOW", "MODELS"), s.ShowModels, "The vindexes in reach.", "SHOW MODELS;"),
    Syntax(
        ("SHOW", "PATCHES"),
        s.ShowPatches,
        "The patches that are applied, and the one being recorded.",
        "SHOW PATCHES;",
    ),
    Syntax(
        ("SHOW", "COMPACT", "STATUS"), s.ShowCompactStatus, "What COMPACT would do.", "SHOW COMPACT STATUS;"
    ),
    Syntax(
        ("STATS",),
        s.Stats,
        "Sizes and coverage of a vindex.",
        "STATS;",
        head(Field("path", Text('"vindex"'), optional=True)),
    ),
)
