"""DESCRIBE of names that nothing is stored about: the model asked then and there, its answers shown, or stored."""

from __future__ import annotations

import pyarrow as pa

from larql_duck.catalog import SCHEMAS
from larql_duck.knowledge.frames import entities_of
from larql_duck.lowering.types import Live, Request, lql_name
from larql_duck.probing.entity_types import types_table
from larql_duck.probing.facts import measured
from larql_duck.probing.publish import publish, require_tables
from larql_duck.probing.tables import tables_of
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.session.live_facts import FACT_COLUMNS, unasked
from larql_duck.vindex.publish import check_database

NEEDS_WEIGHTS = (
    "live answers need the model's weights, and this is a browse vindex; extract it with --level inference"
)
_COLUMNS = pa.schema([SCHEMAS["triples"].field(name) for name in FACT_COLUMNS])
# Names whose spelling is looked at.
_NEAR = 5


def ask_live(session: Session, request: Request) -> Result:
    """No rows: the answers stand in the session's tables. Notices say what could not be asked or was stored."""
    return Result(pa.table({}), notices=_ask(session, request.arguments["live"]))


def describe_names(session: Session, request: Request) -> Result:
    """The facts about each name in the order given, most confident first: subject, relation, object, p, confidence, source."""
    names = [row.subject for row in entities_of(request.arguments["names"]) or ()]
    notices = [] if request.arguments["stored"] else _ask(session, Live(tuple(names)))
    workspace = session.workspace
    workspace.refresh("facts")
    rows = workspace.live.facts_about(names)
    workspace.live.show()
    return Result(pa.Table.from_pylist(rows, schema=_COLUMNS), notices=notices)


def _ask(session: Session, live: Live) -> list[str]:
    """The model asked about those of the names that it is to be asked about; remarks."""
    workspace = session.workspace
    vindex = workspace.vindex
    forced = live.always or live.save or live.effects
    names = list(live.names) if forced else workspace.live.lacking(live.names)
    if not any(name.strip() for name in names):
        return []
    if forced:
        require_tables(vindex)
        vindex.require("inference", "asking the model about a name")
    elif not vindex.has_tables or not vindex.has_weights:
        return [NEEDS_WEIGHTS] if vindex.has_tables else []
    elif vindex.to_fetch:
        # A misspelt name is no reason to fetch a model.
        size = f"{vindex.to_fetch / 1e6:,.0f} MB of weights"
        return [
            f"{vindex.place}: the model was not asked, as {size} would be fetched; DESCRIBE {lql_name(names[0])} LIVE does"
        ]
    if not live.save:
        near = [] if forced else _near(session, names)
        return [*near, *workspace.live.ask(names, effects=live.effects)]
    if workspace.views.fingerprint() is not None:
        edited = (
            "the answers are those of the edited model, so they are not saved in the vindex: "
            "COMPILE CURRENT INTO VINDEX and ask that to keep them"
        )
        return [*workspace.live.ask(names, effects=live.effects), edited]
    return _saved(session, names)


def _near(session: Session, names: list[str]) -> list[str]:
    """Remarks on the first of the names that are spelt almost like one about which facts are stored."""
    workspace = session.workspace
    sql = f"SELECT entity FROM {workspace.schema}.entities_near($1) WHERE n_facts > 1 LIMIT 1"
    found = {name: workspace.query(sql, [name], stale=True, aside=True).rows() for name in names[:_NEAR]}
    return [
        f"{lql_name(name)} is asked as it stands; did you mean {lql_name(rows[0][0])}?"
        for name, rows in found.items()
        if rows
    ]


def _saved(session: Session, names: list[str]) -> list[str]:
    """The model asked about the names, its answers with their features published as those of PROBE are; remarks."""
    workspace = session.workspace
    check_database(workspace.vindex.path)
    world = workspace.live.world
    remarks: list[str] = []
    types, answered = world.about(names, told=lambda name, why: remarks.append(unasked(name, why)))
    tables = tables_of(world.engine.tokenizer, answered, [measured(world.engine, a) for a in answered])
    tables["entity_types"] = types_table(names, types, {})
    many = {a.question.relation.name for a in answered if a.question.relation.many}
    published = publish(workspace.vindex, tables, name="live", many=many)
    workspace.live.forget()
    workspace.unsaved.saved(tables)
    workspace.unsaved.published(published)
    workspace.views.update()
    return [*remarks, f"saved in {workspace.vindex.path}"]
