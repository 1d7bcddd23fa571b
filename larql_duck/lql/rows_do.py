"""The rows of the statement table that act: models, edits and patches."""

from __future__ import annotations

from larql_duck.lql import statements as s
from larql_duck.lql.bodies import Assignments, ExportBody, InsertBody
from larql_duck.lql.checks import check_compile
from larql_duck.lql.clauses import AT_LAYER, DRY_RUN, LAYERS, LIMIT, LIMIT_ONCE, WHERE_REQUIRED
from larql_duck.lql.grammar import Field, Syntax, clause, flag, head
from larql_duck.lql.values import Choice, Components, Integer, Number, Side, Text, choice

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
