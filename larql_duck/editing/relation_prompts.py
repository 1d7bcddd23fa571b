"""How a relation is stated: its prompts, who else it is about, and what else is said of the same subjects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from larql_duck.knowledge.relations import SLOT, Relation, relation_key
from larql_duck.probing.packs import known_relations, stated_relations
from larql_duck.spelling import closest
from larql_duck.workspace import Workspace

# Prompts of other relations about the same kind of subject.
OTHERS = 14
# Kinds of subjects that every detector is told apart from.
_VARIED = (
    "country",
    "city",
    "person",
    "animal",
    "book",
    "organization",
    "element",
    "word",
    "noun",
    "company",
)


@dataclass(frozen=True)
class RelationPrompts:
    """templates state the relation, the first one first. others are prompts of other relations about the same kind of
    subject. subjects are other subjects of it, as they stand in a sentence; varied are names of all kinds.
    """

    relation: str
    templates: tuple[str, ...]
    others: tuple[str, ...]
    subjects: tuple[str, ...]
    varied: tuple[str, ...]
    known: Relation | None

    def text(self, entity: str) -> str:
        """The entity as it stands in a sentence."""
        return entity if self.known is None else self.known.text(entity)


def prompts_for(workspace: Workspace | None, relation: str, templates: Sequence[str] = ()) -> RelationPrompts:
    """The prompts of a relation: `templates` where given, else its pack's, else those that the vindex holds, else
    "The {relation} of {entity} is".
    """

    shipped = {relation_key(name): r for name, r in known_relations().items()}
    known = shipped.get(relation_key(relation))
    stored = () if workspace is None or known is not None else stored_templates(workspace, relation)
    if known is None and not stored:
        # The inverse of one that a pack asks about.
        known = stated_relations().get(relation_key(relation))
    chosen = tuple(templates) or (known.templates if known is not None else stored)
    if not chosen:
        chosen = (plain_template(relation),)
    others: list[str] = []
    subjects: list[str] = []
    if known is not None:
        kin = [r for r in shipped.values() if r.subjects == known.subjects and r.name != known.name]
        # Everybody's first template, then the second ones.
        others = [r.templates[i] for i in range(2) for r in kin if len(r.templates) > i]
        subjects = [known.text(e) for e in known.entities]
    elif workspace is not None:
        subjects = _subjects(workspace, relation)
    varied = [
        r.text(e)
        for kind in _VARIED
        for r in [max((r for r in shipped.values() if r.subjects == kind), key=lambda r: len(r.entities))]
        for e in r.entities[:6]
    ]
    return RelationPrompts(
        relation=relation,
        templates=chosen,
        others=tuple(others[:OTHERS]),
        subjects=tuple(dict.fromkeys(subjects)),
        varied=tuple(dict.fromkeys(varied)),
        known=known,
    )


def plain_template(relation: str) -> str:
    """The prompt that states a relation of which nothing is known."""
    return f"The {relation_key(relation)} of {SLOT} is"


def made_up(relation: str) -> str:
    """The remark that begins what is said of a plain template; the user's other choices follow."""
    return f'no prompt of the relation "{relation}" is known, so "{plain_template(relation)}" was made up: '


def remarks_on_new(workspace: Workspace, relations: Iterable[str], template: str | None) -> list[str]:
    """What the user should know of relations that neither the packs nor the vindex have, in an INSERT with `template`."""
    shipped = {relation_key(name): name for name in known_relations()}
    stored = workspace.query(f"SELECT relation FROM {workspace.schema}.relations", stale=True).rows()
    known = shipped | {relation_key(str(name)): str(name) for (name,) in stored}
    remarks = []
    for relation in dict.fromkeys(relations):
        if relation_key(relation) in stated_relations():
            continue
        near = None if relation_key(relation) in known else closest(relation_key(relation), known)
        meant = f"; did you mean {known[near]}?" if near else ""
        if template is None and not stored_templates(workspace, relation):
            remarks.append(f'{made_up(relation)}TEMPLATE "... {SLOT} ..." says how people state it{meant}')
        elif meant:
            remarks.append(f'the relation "{relation}" is new{meant}')
    return remarks


def stored_templates(workspace: Workspace, relation: str) -> tuple[str, ...]:
    """The templates with which the vindex was asked about a relation, each once."""
    rows = workspace.query(
        f"SELECT templates FROM {workspace.schema}.relations WHERE lower(relation) = lower($1)",
        [relation],
        stale=True,
    ).rows()
    found = [t for (templates,) in rows for t in templates or () if t.count(SLOT) == 1 and "\n" not in t]
    return tuple(dict.fromkeys(found))


def _subjects(workspace: Workspace, relation: str) -> list[str]:
    rows = workspace.query(
        f"SELECT DISTINCT subject FROM {workspace.schema}.facts WHERE lower(relation) = lower($1) "
        # A name that fits one prompt need not fit the next.
        "AND length(subject) <= 200 ORDER BY subject LIMIT 500",
        [relation],
        stale=True,
    ).rows()
    return [str(subject) for (subject,) in rows]


@dataclass(frozen=True)
class StatedFact:
    """A fact that is to be true: the prompts that state it, and the (layer, feature) that carries it, if one does."""

    subject: str
    relation: str
    target: str
    prompts: tuple[str, ...]
    slot: tuple[int, int] | None


def known_relation(name: str, templates: tuple[str, ...], many: bool = False) -> Relation:
    """The shipped relation of that name, else one with these templates; asked in the form that it has."""

    key = relation_key(name)
    for shipped in known_relations().values():
        if relation_key(shipped.name) == key:
            return replace(shipped, name=name)
    return Relation(name, "", templates, many=many, answer="phrase")


def stated_prompts(
    entity: str, relation: str | None, templates: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """The prompts that state a fact: its own templates, else those `known` of its relation, else the plain one."""
    if relation is None and not templates:
        return ()
    plain = f"The {(relation or '').replace('_', ' ').replace('-', ' ')} of {SLOT} is"
    chosen = list(templates) or [t for t in known if "\n" not in t] or [plain]
    chosen = [t for t in chosen if t.count(SLOT) == 1]
    asked = known_relation(relation or "", tuple(chosen))
    return tuple(asked.prompt(entity, t) for t in chosen)
