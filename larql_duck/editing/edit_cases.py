"""Readers of the files that the field judges edits by: CounterFact, zsRE and KnowEdit, as JSON or JSON lines.

CounterFact: Meng et al. 2022; zsRE in the form that ROME and MEMIT take (Mitchell et al. 2022); KnowEdit: Zhang et al. 2024.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larql_duck.errors import LarqlError
from larql_duck.files import read_regular
from larql_duck.knowledge.relations import SLOT

# What CounterFact's property ids are called in Wikidata.
PROPERTIES = {
    "P17": "country", "P19": "place of birth", "P20": "place of death", "P27": "country of citizenship",
    "P30": "continent", "P36": "capital", "P37": "official language", "P39": "position held",
    "P101": "field of work", "P103": "native language", "P106": "occupation", "P108": "employer",
    "P127": "owner", "P131": "location", "P136": "genre", "P138": "namesake", "P140": "religion",
    "P159": "headquarters", "P176": "manufacturer", "P178": "developer", "P190": "twin city",
    "P264": "record label", "P276": "location", "P364": "original language", "P407": "language",
    "P413": "position played", "P449": "original broadcaster", "P463": "member of", "P495": "country of origin",
    "P641": "sport", "P740": "location of formation", "P937": "work location", "P1303": "instrument",
    "P1412": "language spoken",
}  # fmt: skip
_SHAPES = "CounterFact has requested_rewrite, zsRE src and answers, KnowEdit prompt and target_new"
# What a prompt says of its relation, where the file gives it no name.
_STATES = re.compile(
    r"(?:what (?:is|was|are|were) )?the (?:name of the )?(?P<name>[^{}?]+?) of \{\}"
    r"(?: (?:is|are|was|were)(?: the)?|\?)?",
    re.IGNORECASE,
)
_LONGEST = 60

CaseIds = tuple[str | None, str | None]
"""The ids of a relation and of a target in a file, None where it has none."""


@dataclass(frozen=True)
class CaseQuestion:
    """A prompt and the answers of which any is right."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class EditCase:
    """One fact of a file and the prompts that judge it; template has {} for the entity.

    paraphrases state the same fact; neighbours are prompts about others, relations prompts about the same entity, whose
    answers are to stay; attributes are prompts about others that have the target. portability is what follows from the
    fact; generation are beginnings of free text. target_id and relation_id are the file's own; place says where it stands.
    """

    entity: str
    relation: str
    target: str
    template: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    portability: tuple[CaseQuestion, ...] = ()
    generation: tuple[str, ...] = ()
    relation_id: str | None = None
    target_id: str | None = None
    place: str = ""

    @property
    def ids(self) -> CaseIds:
        """(relation_id, target_id), by which a file of references goes."""
        return self.relation_id, self.target_id

    @property
    def row(self) -> tuple[str, str, str, str]:
        """(entity, relation, target, template)."""
        return self.entity, self.relation, self.target, self.template


@dataclass(frozen=True)
class EditCases:
    """The cases of a file in its order, and remarks on records that could not be taken."""

    cases: tuple[EditCase, ...]
    remarks: tuple[str, ...] = ()


def read_cases(path: str | Path, limit: int | None = None) -> EditCases:
    """The first `limit` cases of a CounterFact, zsRE or KnowEdit file; each record's fields say which it is.

    A record whose prompt does not name its subject is left out with a remark. LarqlError, with the file and the record's
    number (from 1), for a file that is not there, is no JSON, or lacks a field.
    """
    path = Path(path).expanduser()
    cases: list[EditCase] = []
    left: list[int] = []
    for n, record in enumerate(_records(path), 1):
        if limit is not None and len(cases) >= limit:
            break
        case = _case(_Record(record, path, n))
        if case is None:
            left.append(n)
        else:
            cases.append(case)
    remarks = []
    if left:
        named = ", ".join(map(str, left[:5])) + " ..." * (len(left) > 5)
        remarks.append(
            f"{path}: {len(left)} records were left out, whose prompt does not name the subject: {named}"
        )
    if not cases:
        raise LarqlError("; ".join(remarks) or f"{path}: no record; {_SHAPES}")
    return EditCases(tuple(cases), tuple(remarks))


def read_references(path: str | Path) -> dict[CaseIds, list[str]]:
    """(relation id, target id) -> texts about subjects that have the target: CounterFact's attribute_snippets.json.

    LarqlError, with the file and the record's number, for another file.
    """
    path = Path(path).expanduser()
    found: dict[CaseIds, list[str]] = {}
    for n, record in enumerate(_records(path), 1):
        one = _Record(record, path, n)
        texts = [part.text("text") for part in one.parts("samples")]
        found.setdefault((one.text("relation_id"), one.text("target_id")), []).extend(texts)
    if not found:
        raise LarqlError(f"{path}: no record; each has relation_id, target_id and samples with a text")
    return found


# -- records --------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[Any]:
    """The records of a JSON array, or of a file with an object a line."""
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LarqlError(f"{path}: not UTF-8 text; give a JSON file") from None
    except OSError as error:
        raise LarqlError(f"{path}: cannot be read: {error.strerror or error}; give a JSON file") from None
    if text.lstrip()[:1] == "[":
        whole = _json(text, path, 1)
        yield from whole
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json(line, path, number)


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}, column {error.colno}"
        raise LarqlError(
            f"{path}: {at}: no JSON ({error.msg}); give an array, or one object a line"
        ) from None
    except (RecursionError, ValueError):
        raise LarqlError(
            f"{path}: line {line}: JSON that cannot be read: too deep, or too long a number"
        ) from None


@dataclass(frozen=True)
class _Record:
    """A JSON value with its place in a file; what it lacks becomes an error that names the field."""

    value: Any
    path: Path
    number: int
    at: str = ""

    def fail(self, name: str, what: str) -> LarqlError:
        # Names of fields are the file's own: of any length, with line ends in them.
        field = " ".join(f"{self.at}{name}".split())[:100] or "the record"
        return LarqlError(f"{self.path}: record {self.number}: {field} {what}")

    @property
    def fields(self) -> Mapping[str, Any]:
        if not isinstance(self.value, dict):
            raise self.fail("", f"is no object; {_SHAPES}")
        return self.value

    def has(self, *names: str) -> bool:
        return all(self.fields.get(name) not in (None, "") for name in names)

    def text(self, *names: str) -> str:
        """The text of the first of these fields that is there; of a list its first one."""
        for name in names:
            value = self.fields.get(name)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, str) and value.strip():
                return value
            if value is not None and not (isinstance(value, str | list) and not value):
                raise self.fail(name, "is no text")
        raise self.fail(names[0], "is missing or empty")

    def texts(self, *names: str) -> tuple[str, ...]:
        """The texts of these fields, each a text or a list of texts; none where they are not there."""
        out: list[str] = []
        for name in names:
            value = self.fields.get(name)
            if value is not None and not isinstance(value, str | list):
                raise self.fail(name, "is no list of texts")
            for text in [value] if isinstance(value, str) else value or ():
                if not isinstance(text, str):
                    raise self.fail(name, "is no list of texts")
                out += [text] * bool(text.strip())
        return tuple(dict.fromkeys(out))

    def part(self, name: str) -> _Record:
        if name not in self.fields:
            raise self.fail(name, "is missing")
        return _Record(self.fields[name], self.path, self.number, f"{self.at}{name}.")

    def parts(self, name: str) -> list[_Record]:
        """The records in a list; none where the field is not there."""
        value = self.fields.get(name)
        value = [] if value is None else value
        if not isinstance(value, list):
            raise self.fail(name, "is no list")
        return [_Record(one, self.path, self.number, f"{self.at}{name}[{i}].") for i, one in enumerate(value)]

    def groups(self, name: str) -> list[_Record]:
        """The records of all lists in an object of lists, as KnowEdit's portability and locality are."""
        if not self.fields.get(name):
            return []
        group = self.part(name)
        return [one for key in group.fields for one in group.parts(key)]


def _case(record: _Record) -> EditCase | None:
    if "requested_rewrite" in record.fields:
        return _counterfact(record)
    if "src" in record.fields:
        return _zsre(record)
    if {"prompt", "text"} & set(record.fields):
        return _knowedit(record)
    raise record.fail("", f"has neither shape; {_SHAPES}")


def _counterfact(record: _Record) -> EditCase:
    asked = record.part("requested_rewrite")
    template = asked.text("prompt")
    if template.count(SLOT) != 1:
        raise asked.fail("prompt", "needs {} exactly once, where the subject stands")
    number = asked.text("relation_id") if asked.has("relation_id") else None
    new = asked.part("target_new")
    return EditCase(
        entity=asked.text("subject").strip(),
        relation=relation_of(template) if number is None else PROPERTIES.get(number, number),
        target=new.text("str").strip(),
        template=template,
        paraphrases=record.texts("paraphrase_prompts"),
        neighbours=_prompts(record, "neighborhood_prompts"),
        attributes=_prompts(record, "attribute_prompts"),
        generation=record.texts("generation_prompts"),
        relation_id=number,
        target_id=new.text("id") if new.has("id") else None,
        place=f"{record.path}, record {record.number}",
    )


def _prompts(record: _Record, name: str) -> tuple[str, ...]:
    """Prompts that are texts, or objects with a prompt, as the form for zsRE has them."""
    value = record.fields.get(name)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return tuple(dict.fromkeys(part.text("prompt") for part in record.parts(name)))
    return record.texts(name)


def _zsre(record: _Record) -> EditCase | None:
    entity = record.text("subject").strip()
    template = template_of(record.text("src"), entity)
    if template is None:
        return None
    # The questions about other things have no question mark in the file.
    others = (text if text.rstrip().endswith("?") else f"{text.rstrip()}?" for text in record.texts("loc"))
    return EditCase(
        entity, relation_of(template), record.text("answers").strip(), template, record.texts("rephrase"),
        neighbours=tuple(others), place=f"{record.path}, record {record.number}",
    )  # fmt: skip


def _knowedit(record: _Record) -> EditCase | None:
    entity = record.text("subject", "concept").strip()
    target = record.text("target_new", "labels").strip()
    template = template_of(record.text("prompt", "text"), entity)
    questions = tuple(
        CaseQuestion(one.text("prompt"), answers)
        for one in record.groups("portability")
        if (answers := tuple(dict.fromkeys(_answers(one.fields.get("ground_truth")))))
    )
    same = tuple(dict.fromkeys(one.text("prompt") for one in record.groups("locality")))
    if template is None:
        return None
    return EditCase(
        entity, relation_of(template), target, template,
        record.texts("rephrase_prompt", "rephrase_prompts", "rephrase"),
        neighbours=record.texts("locality_prompt"), relations=same, portability=questions,
        place=f"{record.path}, record {record.number}",
    )  # fmt: skip


def _answers(value: object) -> Iterator[str]:
    """The texts in however many lists: KnowEdit's ground truth is a text, a list of them, or lists of aliases."""
    if isinstance(value, str):
        yield from [value] * bool(value.strip())
    elif isinstance(value, Sequence):
        for one in value:
            yield from _answers(one)


def template_of(prompt: str, entity: str) -> str | None:
    """The prompt with {} where it names the entity first, in whatever letters; None where it does not."""
    found = re.search(re.escape(entity), prompt, re.IGNORECASE) if entity else None
    if found is None or SLOT in prompt:
        return None
    return prompt[: found.start()] + SLOT + prompt[found.end() :]


def relation_of(template: str) -> str:
    """A name for what a template states: what stands in 'The ... of {} is', else its words without {}."""
    stated = _STATES.fullmatch(template.strip())
    words = stated["name"] if stated else " ".join(template.replace(SLOT, " ").split()).rstrip("?.: ")
    return words[:_LONGEST].strip().lower() or "fact"
