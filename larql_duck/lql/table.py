"""The statement table: every statement's syntax, in the order of the help page.

The parser, the printer, the help, the grammar page, completion and did-you-mean are all made from these rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from larql_duck.lql import statements as s
from larql_duck.lql.bodies import (
    Assignments,
    Condition,
    ExplainedBody,
    ExportBody,
    InsertBody,
    Names,
    SelectBody,
    names_of,
)
from larql_duck.lql.checks import check_compile, check_explain, check_infer, check_probe
from larql_duck.lql.grammar import Field, Syntax, clause, flag, head
from larql_duck.lql.values import (
    Choice,
    Components,
    Integer,
    LayerList,
    Number,
    OptionalChoice,
    PatchFromValue,
    Side,
    SlotList,
    SlotValue,
    SteerValue,
    Text,
    Texts,
    choice,
)

# ---- clauses that several statements share

TOP = clause("TOP", "top", Integer(), "how many")
LIMIT = clause("LIMIT", "limit", Integer(), "at most so many rows")
LIMIT_ONCE = clause("LIMIT", "limit", Integer(), "at most so many rows", once=True)
LAYERS = clause("LAYERS", "layers", LayerList(), "only these layers: 3, 5, 8-10")
AT_LAYER = clause("AT LAYER", "layer", Integer(), "at this layer")
COMPARE = flag("COMPARE", "compare", "both ways of computing it, side by side")
BASIS = clause(
    "BASIS",
    "basis",
    choice("INDEX", "EMBEDDING", "CONTEXT"),
    "which vector asks: none (a lookup), the token's embedding, or a real forward pass",
)
BANDS = (
    flag("ALL LAYERS", "band", "no layer left out", value="all"),
    flag("SYNTAX", "band", "the first layers", value="syntax"),
    flag("KNOWLEDGE", "band", "the middle layers", value="knowledge"),
    flag("OUTPUT", "band", "the last layers", value="output"),
)
MODES = (
    flag("VERBOSE", "mode", "more rows", value="verbose"),
    flag("BRIEF", "mode", "few rows (the default)", value="brief"),
    flag("RAW", "mode", "more rows, no labels", value="raw"),
)
RELATIONS_ONLY = flag("RELATIONS ONLY", "relations_only", "only what has a relation's label")
RELATIONS = clause("RELATIONS", "relations", Texts('"relation", ...'), "only these relations")
WHERE = clause("WHERE", "where", Condition(), "any SQL condition", once=True)
WHERE_REQUIRED = clause("WHERE", "where", Condition(), "any SQL condition", once=True, required=True)
DRY_RUN = flag("DRY RUN", "dry_run", "say what would change, change nothing", once=True)

PIPE_HINTS = {
    "LIMIT": "pipe it: ... |> SELECT * FROM _ LIMIT 5",
    "WHERE": "pipe it: ... |> SELECT * FROM _ WHERE ...",
    "ORDER BY": "pipe it: ... |> SELECT * FROM _ ORDER BY ...",
    "STREAM": "pipe it: ... |> SELECT * FROM _",
}
"""What to write instead of clauses that SQL users try on other queries."""


def _names(text: str) -> Texts:
    return Texts(f'"{text}", ...')


# ---- the rows

MODELS = (
    Syntax(
        ("EXTRACT",),
        s.Extract,
        "Turns a model into a vindex.",
        'EXTRACT MODEL "org/name" INTO "name.vindex" WITH INFERENCE;',
        head("MODEL", Field("model", Text('"model"')), "INTO", Field("into", Text('"vindex"'))),
        (
            clause(
                "WITH",
                "level",
                Choice({"BROWSE": "browse", "INFERENCE": "inference", "ALL": "all", "WEIGHTS": "inference"}),
                "what is stored: enough to browse, or (the default) to run the model as well",
            ),
            LAYERS,
            clause(
                "COMPONENTS",
                "components",
                Components(),
                "the reference's clause; here WITH says what is stored",
            ),
        ),
        hints={"FORCE": "an existing vindex is never overwritten: choose another name"},
    ),
    Syntax(
        ("USE",),
        s.Use,
        "Opens a vindex; it answers the statements that follow.",
        'USE "smollm2.vindex";',
        head(Field("target", Text('"vindex"'))),
        preset={"what": "vindex"},
    ),
    Syntax(
        ("USE", "MODEL"),
        s.Use,
        "Opens a model itself, for INFER, EXPLAIN INFER, TRACE and STATS.",
        'USE MODEL "org/name";',
        head(Field("target", Text('"model"'))),
        (flag("AUTO_EXTRACT", "auto_extract", "make a vindex of it when a statement needs one", once=True),),
        preset={"what": "model"},
    ),
    Syntax(
        ("USE", "REMOTE"),
        s.Use,
        "Connects to a vindex on a server.",
        'USE REMOTE "https://example.org/larql";',
        head(Field("target", Text('"url"'))),
        preset={"what": "remote"},
    ),
    Syntax(
        ("COMPILE",),
        s.Compile,
        "Writes the session's edits into a new vindex or a new model.",
        'COMPILE CURRENT INTO MODEL "edited/" FORMAT SAFETENSORS;',
        head(
            Field("source", Side()),
            "INTO",
            Field("target", choice("MODEL", "VINDEX")),
            Field("into", Text('"path"')),
        ),
        (
            clause("FORMAT", "format", choice("SAFETENSORS", "GGUF"), "the model's file format", once=True),
            *(
                flag(t, "gguf_type", "number type of a GGUF file", value=t)
                for t in ("F32", "F16", "BF16", "Q8_0")
            ),
            clause(
                "ON CONFLICT",
                "conflict",
                choice("LAST_WINS", "HIGHEST_CONFIDENCE", "FAIL"),
                "which of two edits of one feature is kept (INTO VINDEX)",
            ),
            flag("INTO SLOTS", "slots", "replace weak features instead of appending new ones (INTO MODEL)"),
        ),
        check=check_compile,
    ),
    Syntax(
        ("DIFF",),
        s.Diff,
        "Compares two vindexes, or one with the session's edits.",
        'DIFF "a.vindex" CURRENT RELATION "capital" LIMIT 20;',
        head(Field("left", Side()), Field("right", Side())),
        (
            clause("LAYER", "layer", Integer(), "only this layer"),
            clause("RELATION", "relation", Text('"relation"'), "only this relation"),
            clause("RELATIONS", "relation", Text('"relation"'), "the same"),
            clause("ENTITY", "entity", Text('"entity"'), "only this entity"),
            LIMIT,
            clause("INTO PATCH", "into_patch", Text('"file"'), "write the difference as a patch", once=True),
            clause(
                "INTO REPORT", "into_report", Text('"file"'), "write the difference as a report", once=True
            ),
        ),
    ),
    Syntax(
        ("MERGE",),
        s.Merge,
        "Takes the edits of another vindex into this session or into a vindex.",
        'MERGE "other.vindex" ON CONFLICT KEEP_TARGET DRY RUN;',
        head(Field("source", Text('"vindex"'))),
        (
            clause("INTO", "into", Text('"vindex"'), "into this vindex instead of the session", once=True),
            clause(
                "ON CONFLICT",
                "conflict",
                choice("KEEP_SOURCE", "KEEP_TARGET", "HIGHEST_CONFIDENCE"),
                "which of two edits of one feature is kept",
                once=True,
            ),
            DRY_RUN,
        ),
    ),
    Syntax(
        ("EXPORT",),
        s.Export,
        "Writes what the model knows, or a query's result, to a file of another tool.",
        'EXPORT CURRENT INTO "facts.ttl" FORMAT TURTLE;',
        head(ExportBody()),
        (
            clause("INTO", "into", Text('"file"'), "the file", once=True, required=True),
            clause(
                "FORMAT",
                "format",
                choice("TURTLE", "JSONLD", "GRAPHML", "NEO4J", "PARQUET", "CSV"),
                "its format",
                once=True,
                required=True,
            ),
        ),
    ),
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
        "Which features answer to a prompt.",
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
            clause("RELATIONS", "relations", _names("relation"), "only these relations"),
            clause("TEMPLATE", "templates", _names("template"), "your own prompts, {} for the entity"),
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

MUTATIONS = (
    Syntax(
        ("INSERT",),
        s.Insert,
        "Teaches the session's model a fact.",
        'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Poseidon");',
        head("INTO EDGES", InsertBody()),
        (
            AT_LAYER,
            clause("CONFIDENCE", "confidence", Number(), "how sure the fact is, 0 to 1"),
            clause("ALPHA", "alpha", Number(), "how strongly it is written"),
            clause(
                "MODE",
                "mode",
                choice("KNN", "COMPOSE"),
                "as a feature of the model, or as a looked-up answer",
            ),
            clause(
                "TEMPLATE", "template", Text('"template"'), "the prompt it should answer, {} for the entity"
            ),
        ),
        hints={"LAYER": "write AT LAYER n"},
    ),
    Syntax(
        ("DELETE",),
        s.Delete,
        "Makes the session's model forget edges.",
        'DELETE FROM EDGES WHERE entity = "Atlantis" DRY RUN;',
        head("FROM EDGES"),
        (WHERE_REQUIRED, LIMIT_ONCE, DRY_RUN),
    ),
    Syntax(
        ("UPDATE",),
        s.Update,
        "Changes edges in the session's model.",
        'UPDATE EDGES SET target = "London" WHERE entity = "John Coyle" AND relation = "lives-in";',
        head("EDGES SET", Assignments()),
        (WHERE_REQUIRED, LIMIT_ONCE, DRY_RUN),
    ),
    Syntax(
        ("REBALANCE",),
        s.Rebalance,
        "Evens out the strength of the facts inserted in this session.",
        "REBALANCE MAX 16 FLOOR 0.3 CEILING 0.9;",
        (),
        (
            flag("UNTIL CONVERGED", "until_converged", "go on until nothing changes"),
            clause("MAX", "max_rounds", Integer(), "at most so many rounds"),
            clause("FLOOR", "floor", Number(), "the least probability of a target"),
            clause("CEILING", "ceiling", Number(), "the greatest"),
        ),
    ),
    Syntax(("COMPACT", "MINOR"), s.CompactMinor, "Turns looked-up answers into features.", "COMPACT MINOR;"),
    Syntax(
        ("COMPACT", "MAJOR"),
        s.CompactMajor,
        "Writes the session's features into the weights of existing ones.",
        "COMPACT MAJOR WITH LAMBDA = 0.001;",
        (),
        (
            flag("FULL", "full", "all facts, not the new ones alone", once=True),
            flag("ALL", "full", "the same", once=True),
            clause("WITH LAMBDA", "lambda_", Number(), "how much to hold back", once=True, needs_equals=True),
        ),
    ),
)

PATCHES = (
    Syntax(
        ("BEGIN", "PATCH"),
        s.BeginPatch,
        "Starts recording edits.",
        'BEGIN PATCH "medical.vlp";',
        head(Field("path", Text('"file"'))),
        hints={"TRANSACTION": "edits are recorded in patches: write BEGIN PATCH"},
    ),
    Syntax(
        ("SAVE", "PATCH"),
        s.SavePatch,
        "Writes the recorded edits to their file, or to another.",
        'SAVE PATCH "medical.vlp";',
        head(Field("path", Text('"file"'), optional=True)),
    ),
    Syntax(("ROLLBACK", "PATCH"), s.RollbackPatch, "Takes the recorded edits back.", "ROLLBACK PATCH;"),
    Syntax(
        ("APPLY", "PATCH"),
        s.ApplyPatch,
        "Applies a patch to the session.",
        'APPLY PATCH "medical.vlp";',
        head(Field("path", Text('"file"'))),
        (flag("FORCE", "force", "also on another model than the patch was made for", once=True),),
    ),
    Syntax(
        ("REMOVE", "PATCH"),
        s.RemovePatch,
        "Takes an applied patch back, exactly.",
        'REMOVE PATCH "medical.vlp";',
        head(Field("name", Text('"file or name"'))),
    ),
)

GROUPS: Mapping[str, tuple[Syntax, ...]] = {
    "Models": MODELS,
    "Queries": QUERIES,
    "Looking around": INTROSPECTION,
    "Editing": MUTATIONS,
    "Patches": PATCHES,
}
STATEMENTS: tuple[Syntax, ...] = tuple(row for rows in GROUPS.values() for row in rows)


# ---- look-ups

BY_VERB: dict[str, tuple[Syntax, ...]] = {
    first: tuple(sorted((r for r in STATEMENTS if r.verb[0] == first), key=lambda r: -len(r.verb)))
    for first in dict.fromkeys(row.verb[0] for row in STATEMENTS)
}
"""Rows by the first word of their verb, longest verb first."""


def row_of(statement: s.Statement) -> Syntax:
    """The row that a statement was read by, and is printed by. KeyError for a Pipe, which is no row."""
    for row in STATEMENTS:
        if row.statement is type(statement) and row.prints(statement):
            return row
    raise KeyError(type(statement).__name__)


def find(name: str) -> list[Syntax]:
    """The rows whose verb begins with these words (any case); all rows where the words name a group; else none."""
    wanted = name.upper().split()
    for group, rows in GROUPS.items():
        if group.upper().split() == wanted:
            return list(rows)
    return [row for row in STATEMENTS if list(row.verb[: len(wanted)]) == wanted] if wanted else []


_not_run: dict[str, str] = {}


def declare_not_run(reasons: Mapping[str, str]) -> None:
    """Say which statements this version parses and does not run: verb (as in Syntax.name) -> one line for the user."""
    unknown = set(reasons) - {row.name for row in STATEMENTS}
    if unknown:
        raise ValueError(f"no such statements: {', '.join(sorted(unknown))}")
    _not_run.clear()
    _not_run.update(reasons)


def not_run(row: Syntax) -> str | None:
    """Why this version does not run the row's statement, or None if it does."""
    return _not_run.get(row.name)


@cache
def keywords() -> frozenset[str]:
    """Every word of the language outside SQL, in upper case."""
    return frozenset(_words())


def _words() -> Iterator[str]:
    for row in STATEMENTS:
        for text in (row.syntax, row.name):
            for quoted, part in enumerate(text.split('"')):
                if quoted % 2 == 0:
                    yield from (
                        w
                        for w in part.replace("(", " ").replace("[", " ").split()
                        if _is_keyword(w.strip(")],|="))
                    )


def _is_keyword(word: str) -> bool:
    return len(word) > 0 and word.isupper() and word.replace("_", "").isalnum()
