"""Facts as RDF, through pyoxigraph: each as a triple and as a statement about it that has figures and provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, count, islice
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
# Facts, or names, whose lines are read together.
_BLOCK = 1_000


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
    kind, quads = getattr(ox.RdfFormat, RDF_FORMATS[form]), form == "nquads"
    # As lines that are read again: a triple of Python's terms takes pyoxigraph several times as long.
    lines = _Lines(ox, names, f" {ox.NamedNode(names.graph)} .\n" if quads else " .\n")
    read = partial(ox.parse, format=ox.RdfFormat.N_QUADS if quads else ox.RdfFormat.N_TRIPLES)
    texts = chain(lines.about(facts.relations()), lines.labels(facts.names()), lines.facts(facts))
    statements, numbers = chain.from_iterable(map(read, _joined(texts))), count()
    options: dict[str, Any] = {} if quads else {"prefixes": names.prefixes}
    with path.open("xb") as file:
        # zip stops before it takes a number for which there is no statement.
        ox.serialize(map(itemgetter(0), zip(statements, numbers, strict=False)), file, kind, **options)
    return next(numbers)


def _joined(texts: Iterator[str]) -> Iterator[str]:
    while block := "".join(islice(texts, _BLOCK)):
        yield block


class _Lines:
    """What is said of the model, the relations, the names and the facts, as lines of N-Triples or N-Quads.

    end is what a line ends with: the graph, in N-Quads.
    """

    def __init__(self, ox: ModuleType, names: RdfNames, end: str) -> None:
        self._names, self._end = names, end
        # Checked and escaped by the library.
        self._iri: Callable[[str], str] = lru_cache(_KEPT)(lambda iri: str(ox.NamedNode(iri)))
        self._text: Callable[[str], str] = lru_cache(_KEPT)(lambda text: str(ox.Literal(text)))
        self._model = self._iri(names.graph)
        self._type, self._label = self._iri(f"{_RDF}type"), self._iri(f"{_RDFS}label")

    def about(self, relations: list[str]) -> Iterator[str]:
        """What is said of the model and of each relation."""
        names, end, iri, text = self._names, self._end, self._iri, self._text
        yield f"{self._model} {self._type} {iri(f'{_PROV}Entity')}{end}"
        yield f"{self._model} {self._label} {text(names.model)}{end}"
        for key in _PROVENANCE:
            if names.meta.get(key):
                yield f"{self._model} {iri(f'{TERMS}{key}')} {text(names.meta[key])}{end}"
        for node in dict.fromkeys(map(names.relation, relations)):
            yield f"{iri(node)} {self._type} {iri(f'{_RDF}Property')}{end}"
        for relation in relations:
            yield f"{iri(names.relation(relation))} {self._label} {text(relation)}{end}"

    def labels(self, entities: Iterator[str]) -> Iterator[str]:
        """The name of each entity."""
        for name in entities:
            iri = self._iri(f"{self._names.entities}{quote(name, safe='')}")
            yield f"{iri} {self._label} {self._text(name)}{self._end}"

    def facts(self, facts: FactStream) -> Iterator[str]:
        """Each fact as a triple, and what is known of it: at an rdf:Statement, or at an RDF 1.2 reifier."""
        names, end, iri, text = self._names, self._end, self._iri, self._text
        reifies, derived = iri(f"{_RDF}reifies"), f"{iri(f'{_PROV}wasDerivedFrom')} {self._model}{end}"
        statement = f"{self._type} {iri(f'{_RDF}Statement')}{end}"
        of_subject, of_predicate, of_object = (
            iri(f"{_RDF}{name}") for name in ("subject", "predicate", "object")
        )
        relation, p, confidence, source = (
            iri(f"{TERMS}{name}") for name in ("relation", "p", "confidence", "source")
        )
        predicates = {name: iri(names.relation(name)) for name in facts.relations()}
        double = f"^^{iri(f'{_XSD}double')}{end}"
        rows = facts.iri_facts(names.entities)
        for i, (subject_iri, name, object_iri, p_value, sure, origin) in enumerate(rows):
            s, predicate, o, node = iri(subject_iri), predicates[name], iri(object_iri), f"_:f{i}"
            lines = f"{s} {predicate} {o}{end}"
            if names.reifiers:
                lines += f"{node} {reifies} <<( {s} {predicate} {o} )>>{end}"
            else:
                lines += (
                    f"{node} {statement}{node} {of_subject} {s}{end}{node} {of_predicate} {predicate}{end}"
                    f"{node} {of_object} {o}{end}"
                )
            lines += f"{node} {relation} {text(name)}{end}"
            if p_value is not None:
                lines += f'{node} {p} "{p_value!r}"{double}'
            if sure is not None:
                lines += f'{node} {confidence} "{sure!r}"{double}'
            if origin is not None:
                lines += f"{node} {source} {text(origin)}{end}"
            yield f"{lines}{node} {derived}"
