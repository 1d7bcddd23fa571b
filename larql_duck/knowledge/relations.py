"""Relations and packs as values: what to ask, about which subjects, and which answers are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from larql_duck.errors import PackError
from larql_duck.knowledge.marked import PackRow
from larql_duck.spelling import as_name, did_you_mean

ANSWER_FORMS = ("name", "word", "phrase", "noun", "number", "symbol")
# '' leaves it to the references: allowed when one of them does so.
ECHOES = ("", "allowed", "wrong")
SLOT = "{}"
_ARTICLES = ("the ", "a ", "an ")
# Marks after which an answer follows without a blank, and what closes it.
_OPENERS = {**dict(zip('"`<([“«', '"`>)]”»', strict=True)), **dict.fromkeys(".+#$=", "")}


@dataclass(frozen=True)
class Relation:
    """A relation to ask about.

    `templates` are prompts with one {} each, the bare one first. `entities` are the subjects, best known first;
    `texts` gives the surface form of those that read differently in a sentence ('Netherlands' -> 'the
    Netherlands'); `references` the accepted answers of a subject, the preferred one first. `many` says that
    several answers are right at once. `answer` is one of ANSWER_FORMS, `subjects` the kind of thing that the
    subjects are ('country'); `types` gives the types of single ones (see entities.py). `expects` is the type of the answers
    (see types.py), `echo` one of ECHOES: whether an answer that repeats its subject can be right. `inverse` names the
    relation that says the same the other way round ('' for none), `inverse_templates` are its prompts where no pack has
    it: see `inverted`. `wikidata` is Wikidata's property that says the same ('P36'; '' for none).
    """

    name: str
    description: str
    templates: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()
    many: bool = False
    answer: str = "name"
    subjects: str = "thing"
    expects: str = "open"
    echo: str = ""
    entities: tuple[str, ...] = ()
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lineup: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    inverse: str = ""
    inverse_templates: tuple[str, ...] = ()
    wikidata: str = ""

    def text(self, subject: str) -> str:
        """The subject as it stands in a sentence."""
        return self.texts.get(subject, subject)

    def prompt(
        self, subject: str, template: str | None = None, *, shown: Sequence[tuple[str, str]] = ()
    ) -> str:
        """The prompt for a subject: the template (the bare one by default) with the surface form in its slot.

        An article that comes to stand first is capitalised ('the Netherlands' -> 'The Netherlands'). The examples
        `shown`, (subject, answer) each, stand before it, one a line: see `stated`.
        """
        template = self.templates[0] if template is None else template
        return self.stated(template, shown) + self._fill(template, subject)

    def stated(self, template: str, shown: Sequence[tuple[str, str]]) -> str:
        """The examples as text, one a line, each line ended; '' without any.

        An answer follows an opening mark ('is "', 'is .') without a blank and gets its closing mark.
        """
        close = _OPENERS.get(template[-1:])
        return "".join(
            self._fill(template, other) + (f" {answer}\n" if close is None else f"{answer}{close}\n")
            for other, answer in shown
        )

    def limited(self, limit: int | None) -> Relation:
        """The relation with its first `limit` subjects only (None = all)."""
        return self if limit is None else self.over(self.entities[:limit])

    def over(self, entities: Iterable[str]) -> Relation:
        """The relation over other subjects; references and surface forms stay for those that it knows."""
        names = tuple(dict.fromkeys(entities))
        return replace(
            self,
            entities=names,
            references={e: self.references[e] for e in names if e in self.references},
            texts=self.texts,
            lineup=self.known_answers,
        )

    @property
    def known_answers(self) -> Mapping[str, str]:
        """Subject -> preferred answer of all that the relation ever knew, best known first, those of its entities last
        where they came later.
        """
        own = {s: self.references[s][0] for s in self.entities if s in self.references}
        return {**self.lineup, **own}

    def over_rows(self, rows: Iterable[PackRow]) -> Relation:
        """The relation over the subjects of these rows; what a row says goes before what the relation knows."""
        rows = list(rows)
        base = self.over(row.subject for row in rows)
        sources = dict.fromkeys(row.source for row in rows if row.source)
        return replace(
            base,
            references={**base.references, **{row.subject: row.objects for row in rows if row.objects}},
            texts={**base.texts, **{row.subject: row.text for row in rows if row.text != row.subject}},
            types={**base.types, **{row.subject: row.types for row in rows if row.types}},
            source="; ".join(sources) or self.source,
        )

    def inverted(self) -> Relation:
        """The inverse relation, about the answers: its prompts are `inverse_templates`, its answers the subjects as they
        stand in a sentence."""
        answers: dict[str, list[str]] = {}
        for subject in self.entities:
            known = self.references.get(subject, ())
            for answer in known if self.many else known[:1]:
                answers.setdefault(answer, []).append(self.text(subject))
        return Relation(
            self.inverse,
            f"The inverse of {self.name}.",
            self.inverse_templates,
            many=any(len(subjects) > 1 for subjects in answers.values()),
            answer="phrase",
            subjects=self.expects,
            entities=tuple(answers),
            references={answer: tuple(subjects) for answer, subjects in answers.items()},
            source=self.source,
            licence=self.licence,
            inverse=self.name,
        )

    def _fill(self, template: str, subject: str) -> str:
        before, _, after = template.partition(SLOT)
        text = self.text(subject)
        if not before and text.startswith(_ARTICLES):
            text = text[0].upper() + text[1:]
        return f"{before}{text}{after}"


@dataclass(frozen=True)
class Pack:
    """Relations that are asked together; `path` is the YAML file, None for a pack made in Python."""

    name: str
    relations: tuple[Relation, ...]
    path: Path | None = None
    description: str = ""

    @property
    def n_entries(self) -> int:
        """Subjects, counted once per relation."""
        return sum(len(r.entities) for r in self.relations)

    @property
    def n_references(self) -> int:
        """Subjects with at least one reference answer, counted once per relation."""
        return sum(len(r.references) for r in self.relations)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides what is asked (sha256, hex): names, templates, examples, subjects."""
        content = [
            [r.name, r.templates, r.examples, r.many, r.answer, [[e, r.text(e)] for e in r.entities]]
            for r in self.relations
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def find(self, name: str) -> Relation | None:
        """The relation of that name, None for an unknown one; case, blanks, - and _ do not matter."""
        key = relation_key(name)
        return next((r for r in self.relations if relation_key(r.name) == key), None)

    def relation(self, name: str) -> Relation:
        """The relation of that name, as `find` finds it. PackError names the nearest ones."""
        relation = self.find(name)
        if relation is None:
            known = [r.name for r in self.relations]
            unknown(
                f"pack {self.name!r} has no relation {name!r}", name, known, path=self.path, field="relation"
            )
        return relation

    def select(self, relations: Iterable[str] | None = None, limit: int | None = None) -> Pack:
        """The pack with these relations only, in the order asked (None = all), `limit` subjects each."""
        if relations is None:
            chosen = list(self.relations)
        else:
            names = [relations] if isinstance(relations, str) else relations
            chosen = list({r.name: r for r in map(self.relation, names)}.values())
        return replace(self, relations=tuple(r.limited(limit) for r in chosen))


def relation_key(name: str) -> str:
    """The name as it is compared: lower case, with -, _ and runs of blanks as one blank."""
    return " ".join(as_name(name).replace("-", " ").replace("_", " ").casefold().split())


def unknown(
    message: str, name: str, known: Iterable[str], *, path: Path | None, line: int | None = None, field: str
) -> NoReturn:
    """Raise PackError: the message, then the nearest known names, or the first dozen when none is near."""
    hint = did_you_mean(name, known, n=3, key=relation_key, show=repr)
    raise PackError(f"{message}{hint}", file=path, line=line, field=field)
