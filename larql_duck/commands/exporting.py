"""EXPORT: the session's facts, or a query's rows, as files of other tools."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.commands.rows import BIG, TEXT, result_of
from larql_duck.exporting.fact_stream import FactStream
from larql_duck.exporting.graphml import write_graphml
from larql_duck.exporting.rdf import BASE, RDF_FORMATS, RdfNames, check_base, write_rdf
from larql_duck.exporting.tables import neo4j_files, write_neo4j, write_table
from larql_duck.files import begins, check_output, replacing
from larql_duck.probing.packs import known_relations

if TYPE_CHECKING:
    from larql_duck.lowering.types import Request
    from larql_duck.lql import statements as st
    from larql_duck.result import Result
    from larql_duck.session import Session
    from larql_duck.session.open_vindex import OpenVindex

_CURRENT = (
    "SELECT subject, relation, object, p, confidence, source, layers, n_edges FROM {schema}.triples "
    "WHERE source <> 'weights'"
)
# How a file of each format begins, so that nothing else is replaced.
_KINDS = {
    "turtle": begins(b"@prefix", b"prefix"),
    "nquads": begins(b"<", b"_:"),
    "jsonld": begins(b"{", b"["),
    "graphml": begins(b"<?xml"),
    "parquet": begins(b"par1"),
    "csv": lambda head: b"\0" not in head,
    "neo4j": lambda head: b"\0" not in head,
}
_COLUMNS = {"file": TEXT, "format": TEXT, "records": BIG, "bytes": BIG}


def export(session: Session, request: Request) -> Result:
    """EXPORT: a row for each file that was written: how many RDF statements, nodes and edges, or rows are in it."""
    s: st.Export = request.statement
    workspace = session.workspace
    query = request.arguments["query"]
    sql = _CURRENT.format(schema=workspace.schema) if query is None else query.sql
    if s.format in RDF_FORMATS:
        check_base(BASE if s.base is None else s.base)
    target = Path(s.into).expanduser()
    targets = neo4j_files(target) if s.format == "neo4j" else (target,)
    for path in targets:
        check_output(path, _KINDS[s.format])
    with ExitStack() as open_files:
        places = [open_files.enter_context(replacing(path, replaces=_KINDS[s.format])) for path in targets]
        counts, notices = _written(s, workspace, sql, places)
        sizes = [place.stat().st_size for place in places]
    rows = [(str(path), s.format, n, size) for path, n, size in zip(targets, counts, sizes, strict=True)]
    return result_of(_COLUMNS, rows, notices)


def _written(
    s: st.Export, workspace: OpenVindex, sql: str, places: list[Path]
) -> tuple[tuple[int, ...], list[str]]:
    """How many records went into each place, and what is to be said."""
    if s.format in ("csv", "parquet"):
        return (write_table(workspace, sql, places[0], s.format),), []
    facts = FactStream.of(workspace, sql)
    notices = [_counted(facts.n_facts, "fact")]
    if facts.n_left_out:
        notices.append(f"left out: {_counted(facts.n_left_out, 'row')} without a subject, relation or object")
    if s.format == "neo4j":
        return write_neo4j(facts, *places), notices
    if s.format == "graphml":
        return (write_graphml(facts, places[0]),), notices
    return (write_rdf(facts, places[0], s.format, _names(workspace, s)),), notices


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _names(workspace: OpenVindex, s: st.Export) -> RdfNames:
    """How things are called in RDF."""
    meta = dict(workspace.query(f"SELECT key, value FROM {workspace.schema}.meta").rows())
    properties = {name: r.wikidata for name, r in known_relations().items() if r.wikidata}
    model = meta.get("model") or workspace.vindex.manifest.model
    return RdfNames(model, BASE if s.base is None else s.base, properties, meta, s.reifiers)
