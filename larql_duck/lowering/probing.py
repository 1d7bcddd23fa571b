"""PROBE: asking the model about entities and relations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from larql_duck.lowering.checks import check_count, fail
from larql_duck.lowering.select import lower
from larql_duck.lowering.types import Operation

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.result import Result
    from larql_duck.session import Session


def probe(s: st.Probe, facts: Facts) -> Operation:
    """PROBE [ENTITIES ...] [RELATIONS ...] [TEMPLATE ...] [PACK ...] [LIMIT n] [DRY RUN]: asks the model."""
    check_count(s, s.limit, "LIMIT", "limit", low=1)
    if s.templates and len(s.relations) != 1:
        raise fail(s, "TEMPLATE needs exactly one name after RELATIONS", "templates")
    if s.templates and s.pack is not None:
        raise fail(s, "TEMPLATE goes with a relation of your own; leave PACK out", "pack")
    facts.require("inference", "PROBE")
    return Operation(lambda session: _probe(session, s), s)


def _probe(session: Session, s: st.Probe) -> Result:
    entities: Any = list(s.entities) or None
    if s.query is not None:
        entities = _named(session, s)
    relations: Any = list(s.relations) or None
    if s.templates:
        relations = {s.relations[0]: list(s.templates)}
    return session.probe(entities, relations, pack=s.pack, limit=s.limit, save=not s.dry_run)


def _named(session: Session, s: st.Probe) -> pa.Table:
    """The query's rows: its first column holds the subjects, columns text and object say more about them."""
    assert s.query is not None
    table = session.run_sql(lower(s, s.query, session.facts).sql).arrow()
    if not table.num_rows:
        raise fail(s, "the query after ENTITIES gives no rows, so there is nobody to ask about", "query")
    rest = [name for name in table.column_names[1:] if name.lower() in ("text", "object")]
    return table.select([table.column_names[0], *rest]).rename_columns(["subject", *rest])
