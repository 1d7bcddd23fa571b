"""PROBE: the model asked about entities and relations, the new rows shown and saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.catalog import rows_as_table
from larql_duck.commands.over_nodes import engine_nodes
from larql_duck.commands.storing import check_storable, store
from larql_duck.editing.relation_prompts import made_up, plain_template, stored_templates
from larql_duck.errors import PackError, QueryError
from larql_duck.knowledge.frames import entities_of
from larql_duck.knowledge.relations import SLOT, Relation, relation_key
from larql_duck.lowering.types import Query, Request, fail
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.entity_types import fit_types as learn_types
from larql_duck.probing.entity_types import told_of_names, types_table, without_unknown
from larql_duck.probing.facts import MANY_P, Probed
from larql_duck.probing.facts import probe as ask_model
from larql_duck.probing.packs import chosen_pack, known_members, known_relations
from larql_duck.probing.publish import publish, require_tables
from larql_duck.probing.stored import knowledge_of
from larql_duck.probing.vocabulary_names import ask_vocabulary
from larql_duck.progress import doing, report
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.spelling import closest
from larql_duck.vindex.publish import check_database

COLUMNS = ("subject", "relation", "object", "p", "confidence", "n_features", "effect")


def probe(session: Session, request: Request) -> Result:
    """One row per fact found (COLUMNS): the best answers, and further ones of relations with many.

    The arguments are those of `Session.probe`. The session shows the new rows at once; with save they are published
    first.
    """
    options = dict(request.arguments)
    workspace = session.workspace
    vindex = workspace.vindex
    require_tables(vindex)
    vindex.require("inference", "PROBE")
    entities = _entities(session, request, options.pop("entities"))
    relations, invented = _with_new_ones(session, options.pop("relations"), entities)
    asked = options.pop("pack")
    suited = None
    if asked is None and relations is None and (rows := entities_of(entities)) is not None:
        # Read once: some tables cannot be read twice.
        entities = {
            "subject": [row.subject for row in rows],
            "text": [row.text for row in rows],
            "object": [row.objects for row in rows],
        }
        suited = _suited(session, [row.subject for row in rows])
    pack = chosen_pack(entities, relations, asked, suited)
    save = options.pop("save")
    many = {r.name for r in pack.relations if r.many}
    dry_run = getattr(request.statement, "dry_run", False)
    edits = workspace.views.fingerprint()
    if save and not dry_run and edits is None:
        # Asking may take hours.
        check_database(vindex.path)

    known, nodes = knowledge_of(vindex), engine_nodes(workspace)
    probed = ask_model(workspace.engine(), pack, known=known, nodes=nodes, **options)
    notices = [*invented, *probed.notices]
    if dry_run:
        best = _best(probed, many)
        notices.append(f"a dry run: {best.num_rows} fact{'s' * (best.num_rows != 1)} would be saved")
        return Result(best, notices=notices)
    if save and edits is not None:
        save = False
        notices.append(
            "the answers are those of the edited model, so they are not saved in the vindex: "
            "COMPILE CURRENT INTO VINDEX and probe that to keep them"
        )
    if save:
        statistics = {"calibration": probed.calibration.as_json()}
        published = publish(vindex, probed.tables, name=pack.name, many=many, statistics=statistics)
        workspace.unsaved.saved(probed.tables)
        workspace.unsaved.published(published)
        notices.append(f"saved in {vindex.path}")
    else:
        workspace.unsaved.add(probed.tables, many, edits)
        notices.append("not saved: this session alone shows these facts")
    workspace.views.update()
    return Result(_best(probed, many), notices=notices)


def probe_names(session: Session, request: Request) -> Result:
    """COLUMNS, the facts about the next names of the vocabulary that nothing is stored about yet, saved in the vindex."""
    workspace = session.workspace
    vindex = workspace.vindex
    require_tables(vindex)
    vindex.require("inference", "probing names of the vocabulary")
    if workspace.views.fingerprint() is not None:
        raise PackError(
            "the session's edits would be asked, not the model: COMPILE CURRENT INTO VINDEX and probe that",
            field="names",
        )
    check_database(vindex.path)
    world = workspace.live.world
    known = set(vindex.table("probes")["subject"].to_pylist())
    engine = world.engine
    context = [engine.fingerprint, str(engine.model.dtype)]
    store = Checkpoint(request.arguments["checkpoint"], context, engine_nodes(workspace))
    asked = ask_vocabulary(
        world,
        request.arguments["names"],
        known,
        checkpoint=store,
        done=lambda n, total: report("names", n, total),
    )
    published = publish(vindex, asked.tables, name="names", many=asked.many)
    workspace.live.forget()
    workspace.unsaved.saved(asked.tables)
    workspace.unsaved.published(published)
    workspace.views.update()
    best = asked.tables["facts"]
    return Result(
        best.filter(pc.equal(best["rank"], 1)).select(list(COLUMNS)),
        notices=[f"{len(asked.names)} names were asked about; saved in {vindex.path}"],
    )


def fit_types(session: Session, request: Request) -> Result:
    """What tells the types of names, learnt anew and stored: a row for each type, with how well it does on held-out names."""
    workspace = session.workspace
    vindex = workspace.vindex
    check_storable(workspace, "learning the types of names")
    engine = workspace.engine()
    listed = known_members()
    found = learn_types(engine, listed)
    if found is None:
        raise PackError("there are too few names to learn types from", field="types")
    subjects = list(dict.fromkeys(vindex.table("facts")["subject"].to_pylist()))
    with doing("reading names"):
        kinds = told_of_names(engine, found, subjects).kinds
    tables = {
        "type_probe": rows_as_table("type_probe", found.rows()),
        "entity_types": types_table(subjects, [without_unknown(kinds[name]) for name in subjects], listed),
    }
    workspace.live.forget()
    store(workspace, tables)
    shown = tables["type_probe"].drop_columns(["weights", "intercept"])
    return Result(shown, notices=[f"saved in {vindex.path}"])


def _entities(session: Session, request: Request, entities: Any) -> Any:
    """What to ask about: a query's rows (its first column the subjects; text and object say more), else what was given."""
    if isinstance(entities, str):
        try:
            return session.sql(entities).arrow()
        except QueryError as error:
            raise PackError(
                f"a text in the place of entities is read as SQL: {error}; names come in a list: [{entities[:40]!r}]"
            ) from None
    if not isinstance(entities, Query):
        return entities
    table = session.workspace.query(entities.sql).arrow()
    if not table.num_rows:
        raise fail(
            request.statement,
            "the query after ENTITIES gives no rows, so there is nobody to ask about",
            "query",
        )
    rest = [i for i, name in enumerate(table.column_names) if i and name.lower() in ("text", "object")]
    return table.select([0, *rest]).rename_columns(["subject", *(table.column_names[i] for i in rest)])


def _with_new_ones(session: Session, relations: Any, entities: Any) -> tuple[Any, list[str]]:
    """The relations with those that no pack knows as ones that can be asked, and remarks on templates made up for them.

    The templates are those of the vindex, else a plain one. A name that is nearly a known one stays for the error that
    says so, as does one without entities.
    """
    names = [relations] if isinstance(relations, str) else relations
    if entities is None or not isinstance(names, (list, tuple)):
        return relations, []
    out: list[Any] = []
    remarks: list[str] = []
    known = known_relations()
    keys = {relation_key(name) for name in known}
    for name in names:
        if not isinstance(name, str) or relation_key(name) in keys:
            out.append(name)
            continue
        templates = stored_templates(session.workspace, name)
        if not templates and closest(relation_key(name), keys):
            out.append(name)
            continue
        if not templates:
            templates = (plain_template(name),)
            remarks.append(
                f'{made_up(name)}TEMPLATE "..." gives another, for example "{SLOT}\'s {relation_key(name)} is" or '
                f'"Q: What is the {relation_key(name)} of {SLOT}? A: It is"'
            )
        out.append(Relation(name, "", templates, answer="phrase"))
    return out, remarks


def _suited(session: Session, names: list[str]) -> Mapping[str, list[str]]:
    """Name -> the relations that suit it, by what the model takes it for."""
    world = session.workspace.live.world
    types = world.types(names)
    return {name: world.asked_about(own, name) for name, own in zip(names, types, strict=True)}


def _best(probed: Probed, many: set[str]) -> pa.Table:
    """The first answers, and the probable further ones of relations with many."""
    facts = probed.tables["facts"]
    columns = facts.select(["relation", "rank", "p"]).to_pydict()
    mask = [
        rank == 1 or (relation in many and p >= MANY_P)
        for relation, rank, p in zip(*columns.values(), strict=True)
    ]
    return facts.filter(pa.array(mask, pa.bool_())).select(list(COLUMNS))
