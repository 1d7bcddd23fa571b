"""Facts as RDF, through pyoxigraph: each as a triple and as a statement about it that has figures and provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, count
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    from larql_duck.exporting.fact_stream import FactStream

BASE = "urn:larql-duck:"
"""What the IRIs of names begin with where the user gives nothing else."""

TERMS = "urn:larql-duck:term:"
"""What the IRIs of our own properties begin with: they mean the same in every file."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_RDFS = "http://www.w3.org/2000/01/rdf-schema#"
_PROV = "http://www.w3.org/ns/prov#"
_XSD = "http://www.w3.org/2001/XMLSchema#"
_WIKIDATA = "http://www.wikidata.org/prop/direct/"
RDF_FORMATS = {"turtle": "TURTLE", "nquads": "N_QUADS", "jsonld": "JSON_LD"}
"""Format of EXPORT -> its name in pyoxigraph."""

# Rows of `meta` that tell where a model came from.
_PROVENANCE = ("source", "revision", "checksum", "extracted_at", "compiled_at")
# IRIs that are kept, which saves checking them again: facts are sorted by subject, and objects recur.
_KEPT = 50_000


@dataclass(frozen=True)
class RdfNames:
    """How things are called: `base` begins the IRIs of names, relations and the model; properties gives Wikidata's
    property of a relation ('P36'). model is the model's name, meta what the vindex says of it. reifiers: a fact's
    figures stand at an RDF 1.2 reifier instead of an rdf:Statement.
    """

    model: str
    base: str = BASE
    properties: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    reifiers: bool = False

    @property
    def entities(self) -> str:
        """What the IRIs of entities begin with."""
        return f"{self.base}entity:"

    def relation(self, name: str) -> str:
        """The IRI of a relation: Wikidata's where it has one."""
        own = self.properties.get(name)
        return f"{self.base}relation:{quote(name, safe='')}" if own is None else f"{_WIKIDATA}{own}"

    @property
    def graph(self) -> str:
        """The IRI of the model, which is also that of the graph in N-Quads."""
        return f"{self.base}model:{quote(self.model, safe='')}"

    @property
    def prefixes(self) -> dict[str, str]:
        """The prefixes of a Turtle file."""
        return {
            "rdf": _RDF, "rdfs": _RDFS, "prov": _PROV, "xsd": _XSD, "wdt": _WIKIDATA, "lq": TERMS,
            "entity": self.entities, "relation": f"{self.base}relation:",
        }  # fmt: skip


def pyoxigraph() -> ModuleType:
    """The module pyoxigraph; LarqlError where it is not installed."""
    try:
        import pyoxigraph
    except ImportError:
        raise LarqlError("RDF needs pyoxigraph; install it with: pip install 'larql-duck[rdf]'") from None
    return pyoxigraph


def check_base(base: str) -> None:
    """Raise LarqlError where no IRI can begin so."""
    try:
        pyoxigraph().NamedNode(f"{base}entity:x")
    except ValueError:
        raise LarqlError(
            f'{base!r} begins no IRI: write one like "https://example.org/" or "urn:example:"'
        ) from None


def write_rdf(facts: FactStream, path: Path, form: str, names: RdfNames) -> int:
    """The number of RDF statements that were written to `path` as `form`: turtle, nquads or jsonld."""
    ox = pyoxigraph()
    kind = getattr(ox.RdfFormat, RDF_FORMATS[form])
    statements, numbers = _statements(facts, ox, names, quads=form == "nquads"), count()
    options: dict[str, Any] = {} if form == "nquads" else {"prefixes": names.prefixes}
    with path.open("xb") as file:
        # zip stops before it takes a number for which there is no statement.
        ox.serialize(map(itemgetter(0), zip(statements, numbers, strict=False)), file, kind, **options)
    return next(numbers)


def _statements(facts: FactStream, ox: ModuleType, names: RdfNames, *, quads: bool) -> Iterator[Any]:
    """The model, the relations, the names, then the facts, as pyoxigraph's triples or quads."""
    iri: Callable[[str], Any] = lru_cache(_KEPT)(ox.NamedNode)
    text: Callable[[str], Any] = lru_cache(_KEPT)(ox.Literal)
    model, label = iri(names.graph), iri(f"{_RDFS}label")
    # Made where they are needed, since there are tens of millions.
    make: Callable[..., Any] = partial(_quad, ox.Quad, model) if quads else ox.Triple
    labels = (
        make(iri(f"{names.entities}{quote(name, safe='')}"), label, text(name)) for name in facts.names()
    )
    about = (make(*statement) for statement in _about(ox, names, facts.relations()))
    return chain(about, labels, _facts(facts, ox, names, iri, text, make))


def _quad(quad: Callable[..., Any], graph: Any, subject: Any, predicate: Any, value: Any) -> Any:
    return quad(subject, predicate, value, graph)


def _about(ox: ModuleType, names: RdfNames, relations: list[str]) -> Iterator[tuple[Any, Any, Any]]:
    """What is said of the model and of each relation."""
    iri, text = ox.NamedNode, ox.Literal
    model, kind, label = iri(names.graph), iri(f"{_RDF}type"), iri(f"{_RDFS}label")
    yield model, kind, iri(f"{_PROV}Entity")
    yield model, label, text(names.model)
    for key in _PROVENANCE:
        if names.meta.get(key):
            yield model, iri(f"{TERMS}{key}"), text(names.meta[key])
    for node in dict.fromkeys(map(names.relation, relations)):
        yield iri(node), kind, iri(f"{_RDF}Property")
    for relation in relations:
        yield iri(names.relation(relation)), label, text(relation)


def _facts(
    facts: FactStream,
    ox: ModuleType,
    names: RdfNames,
    iri: Callable[[str], Any],
    text: Callable[[str], Any],
    make: Callable[[Any, Any, Any], Any],
) -> Iterator[Any]:
    """Each fact as a triple, and what is known of it: at an rdf:Statement, or at an RDF 1.2 reifier. make makes a statement."""
    a, statement = iri(f"{_RDF}type"), iri(f"{_RDF}Statement")
    of_subject, of_predicate, of_object = (
        iri(f"{_RDF}{name}") for name in ("subject", "predicate", "object")
    )
    reifies, derived, model = iri(f"{_RDF}reifies"), iri(f"{_PROV}wasDerivedFrom"), iri(names.graph)
    relation, p, confidence, source = (
        iri(f"{TERMS}{name}") for name in ("relation", "p", "confidence", "source")
    )
    predicates = {name: iri(names.relation(name)) for name in facts.relations()}
    number, double, blank, triple = ox.Literal, iri(f"{_XSD}double"), ox.BlankNode, ox.Triple
    rows = facts.iri_facts(names.entities)
    for i, (subject_iri, name, object_iri, p_value, sure, origin) in enumerate(rows):
        s, predicate, o = iri(subject_iri), predicates[name], iri(object_iri)
        yield make(s, predicate, o)
        node = blank(f"f{i}")
        if names.reifiers:
            yield make(node, reifies, triple(s, predicate, o))
        else:
            yield make(node, a, statement)
            yield make(node, of_subject, s)
            yield make(node, of_predicate, predicate)
            yield make(node, of_object, o)
        yield make(node, relation, text(name))
        if p_value is not None:
            yield make(node, p, number(repr(p_value), datatype=double))
        if sure is not None:
            yield make(node, confidence, number(repr(sure), datatype=double))
        if origin is not None:
            yield make(node, source, text(origin))
        yield make(node, derived, model)
