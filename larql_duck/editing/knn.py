"""Database facts: inserting them, and finding those that a prompt asks for. They are no part of any weight."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from larql_duck.editing.background_corpus import background_of
from larql_duck.editing.detector import GATE, OPENINGS, detectors, fired, read_inputs
from larql_duck.editing.layer_choice import checked_layer
from larql_duck.editing.relation_prompts import RelationPrompts, plain_template, prompts_for
from larql_duck.errors import LarqlError, SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import SubjectPosition, filled, subject_position
from larql_duck.patches.operations import FactEdits, InsertKnnOp, fact_key
from larql_duck.patches.overlay import EditedFact
from larql_duck.vindex.arrays import rounded
from larql_duck.workspace import Workspace

# The share of a detector's full value from which on its subject counts as named.
NAMED = 0.5
# Other database facts, and other subjects of the relation, at which a detector is told not to answer.
_OTHERS, _SUBJECTS = 64, 24
# A detector that answers less than this at its own subject does not tell it apart.
_LEAST = 0.1
# Stands before a prompt that begins with the subject: at position 0 all tokens look alike.
_OPENING = "Note: "
# Words that say nothing of what is asked.
_LITTLE = """
a an and are as at be been by called can do does for from had has have her his how i in into is it its known may me
more most my named not of on one or our q question answer said says so some than that the their them there these they
this to was we were what when where which who whose why will with you your
"""
_EMPTY = frozenset(_LITTLE.split())
_ARTICLE = re.compile(r"(?:the|a|an)\s+", re.IGNORECASE)
_END = re.compile(r"[.!?]\s|\n")


# -- inserting ------------------------------------------------------------------------------------------------


def knn_edits(
    workspace: Workspace,
    rows: Sequence[tuple[str, str, str]],
    *,
    layer: int | None = None,
    confidence: float | None = None,
    template: str | None = None,
) -> FactEdits:
    """The edits that make database facts of rows (entity, relation, target).

    A fact that was inserted already, in whichever mode, is replaced. A key is what the FFN of the layer reads at the
    last token of the relation's first template (`template` where given), without weights the mean of the entity's
    scaled embeddings. confidence None is 1.0. SemanticError for a layer out of range.
    """
    vindex = workspace.vindex
    layer = checked_layer(workspace, layer)
    given = () if template is None else (template,)
    prompts = {r: prompts_for(workspace, r, given) for r in dict.fromkeys(r for _, r, _ in rows)}
    rows, notices = _askable(workspace, rows, prompts)
    keys = rounded(_keys(workspace, [(prompts[r], e) for e, r, _ in rows], layer), vindex.dtype)
    tokenizer = workspace.vectors().tokenizer
    operations = [
        InsertKnnOp(
            layer, e, r, t, next(iter(tokenizer.entity_ids(t)), 0), keys[i],
            1.0 if confidence is None else confidence, prompts[r].templates,
        )
        for i, (e, r, t) in enumerate(rows)
    ]  # fmt: skip
    made = [
        {"entity": op.entity, "relation": op.relation, "target": op.target, "layer": layer}
        for op in operations
    ]
    if not vindex.has_weights:
        notices.append(
            "the vindex has no weights: the keys are embeddings, and INFER, which shows database facts, needs weights"
        )
    return FactEdits(operations, made, notices)


def _askable(
    workspace: Workspace, rows: Sequence[tuple[str, str, str]], prompts: Mapping[str, RelationPrompts]
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The rows whose entity has a key, and why the others have none. SemanticError where no row has."""
    askable, notices = [], []
    engine = workspace.engine() if workspace.vindex.has_weights else None
    for e, r, t in rows:
        try:
            if engine is not None:
                engine.encode(filled(prompts[r].templates[0], prompts[r].text(e))[0])
            else:
                workspace.vectors().entity(e, "embedding", [])
            askable.append((e, r, t))
        except LarqlError as error:
            notices.append(f"{e[:40]!r}, {r}, was left out: {error}")
    if not askable:
        raise SemanticError("; ".join(notices[:3]))
    return askable, notices


def _keys(workspace: Workspace, asked: Sequence[tuple[RelationPrompts, str]], layer: int) -> np.ndarray:
    """The keys of (relation prompts, entity), f32 [n, hidden]."""
    vindex = workspace.vindex
    if vindex.has_weights:
        engine = workspace.engine()
        prompts = [filled(own.templates[0], own.text(entity))[0] for own, entity in asked]
        found: np.ndarray = read_inputs(engine, engine.tokenizer.encode_batch(prompts), layer).numpy()
        return found
    out = np.zeros((len(asked), vindex.hidden), np.float32)
    for i, (_, entity) in enumerate(asked):
        out[i] = workspace.vectors().entity(entity, "embedding", [])
    return out


# -- asking ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Detector:
    gate: torch.Tensor
    up: torch.Tensor
    full: float


class DatabaseFacts:
    """Which database facts of a session a prompt asks for. Usable from several threads.

    A fact is asked for when the prompt ends like one of the templates of its relation, with the fact's subject in the
    slot, and when the detector of the subject answers there with at least half its full value (what it answers on
    average in the contexts it was made for: the relation's templates). Detectors are those of inserted features (see
    editing.detector), on the model without edits; each is computed when first needed.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: dict[tuple[object, ...], _Detector] = {}
        self._statings: dict[tuple[str, tuple[str, ...]], RelationPrompts] = {}
        self._lock = threading.Lock()

    def __call__(self, prompts: Sequence[str]) -> list[list[EditedFact]]:
        """The facts that each prompt asks for, in the order in which they were inserted."""
        facts = self._workspace.overlay.knn
        out: list[list[EditedFact]] = [[] for _ in prompts]
        asked: list[tuple[int, EditedFact, tuple[str, str]]] = []
        for i, prompt in enumerate(prompts):
            asked += [(i, fact, place) for fact in facts for place in self._places(fact, prompt)]
        if asked:
            with self._lock:
                answers = self._answers(facts, [(fact, place) for _, fact, place in asked])
            for (i, fact, _), answer in zip(asked, answers, strict=True):
                if answer >= NAMED and fact not in out[i]:
                    out[i].append(fact)
        return out

    # -- text -----------------------------------------------------------------------------------------------

    def _stating(self, fact: EditedFact) -> RelationPrompts:

        # Without the session: it may be answering a query of its own right now.
        key = (fact_key("", fact.relation)[1], fact.templates)
        if key not in self._statings:
            own = prompts_for(None, fact.relation or "", fact.templates)
            # What LARQL asks a fact with counts as well.
            templates = dict.fromkeys((*own.templates, plain_template(fact.relation or "")))
            self._statings[key] = replace(own, templates=tuple(templates))
        return self._statings[key]

    def _places(self, fact: EditedFact, prompt: str) -> list[tuple[str, str]]:
        """(prompt with {} for the subject, the subject as it stands there), where the prompt asks for the fact."""
        own = self._stating(fact)
        names = {_bare(fact.entity), _bare(own.text(fact.entity))} - {""}
        found: dict[tuple[int, int], None] = {}
        for template in own.templates:
            for name in names:
                if (place := place_of(template, name, prompt)) is not None:
                    found[place] = None
        longer = [
            s for s in own.subjects if any(len(s) > len(n) and n.casefold() in s.casefold() for n in names)
        ]
        return [
            (prompt[:start] + "{}" + prompt[end:], prompt[start:end])
            for start, end in found
            if not any(_within(_bare(s), prompt, start, end) for s in longer if _bare(s) not in names)
        ]

    # -- detectors ------------------------------------------------------------------------------------------

    def _answers(
        self, facts: Sequence[EditedFact], asked: Sequence[tuple[EditedFact, tuple[str, str]]]
    ) -> list[float]:
        """The answer of each fact's detector at the subject, as a share of its full value."""

        out = [0.0] * len(asked)
        with self._workspace.engine().under(None) as engine:
            for layer in sorted({fact.layer for fact, _ in asked}):
                own = [i for i, (fact, _) in enumerate(asked) if fact.layer == layer]
                self._learn(engine, layer, facts, [asked[i][0] for i in own])
                starts = [_spot(engine, *asked[i][1]).start for i in own]
                keys = read_inputs(engine, starts, layer)
                act = _act(engine, layer)
                for key, i in zip(keys, own, strict=True):
                    detector = self._known[_name(asked[i][0])]
                    out[i] = float(fired(detector.gate, detector.up, key[None], act)[0, 0]) / detector.full
        return out

    def _learn(
        self, engine: Engine, layer: int, facts: Sequence[EditedFact], wanted: Sequence[EditedFact]
    ) -> None:
        """Make the detectors of the wanted facts, all of one layer, known."""

        new = list({_name(f): f for f in wanted if _name(f) not in self._known}.values())
        if not new:
            return
        second = torch.from_numpy(background_of(self._workspace).second_moment(layer).matrix).double()
        rows, owner, zeros = self._contexts(engine, new, facts)
        found = read_inputs(engine, [*rows, *zeros], layer)
        keys = found[: len(rows)]
        own = [keys[owner == i] for i in range(len(new))]
        subjects = [fact_key(f.entity, None)[0] for f in new]
        same = [[j for j, other in enumerate(subjects) if other == subject] for subject in subjects]
        w = detectors(own, same, found[len(rows) :], second).w.float()
        act: Any = _act(engine, layer)
        for i, fact in enumerate(new):
            gate, up = GATE * w[i : i + 1], w[i : i + 1]
            full = float(fired(gate, up, own[i], act).mean())
            self._known[_name(fact)] = _Detector(gate, up, max(full, _LEAST))

    def _contexts(
        self, engine: Engine, new: Sequence[EditedFact], facts: Sequence[EditedFact]
    ) -> tuple[list[tuple[int, ...]], torch.Tensor, list[tuple[int, ...]]]:
        """Starts of prompts up to the subject of each new fact, the fact each belongs to, and starts up to others."""

        rows: list[tuple[int, ...]] = []
        owner: list[int] = []
        zeros: dict[tuple[int, ...], None] = {}
        named = {_bare(self._stating(f).text(f.entity)).casefold() for f in new}

        def start(frame: str, text: str) -> tuple[int, ...]:
            return _spot(engine, frame, text).start

        for i, fact in enumerate(new):
            own = self._stating(fact)
            frames = [opening + t for opening in OPENINGS[:3] for t in own.templates]
            frames += [opening + own.templates[0] for opening in OPENINGS[3:]]
            starts = dict.fromkeys(start(frame, own.text(fact.entity)) for frame in frames)
            rows += starts
            owner += [i] * len(starts)
            others = [s for s in own.subjects or own.varied if _bare(s).casefold() not in named]
            for k, text in enumerate(others[:_SUBJECTS]):
                zeros[start(own.templates[k % len(own.templates)], text)] = None
        for fact in facts[-_OTHERS:]:
            own = self._stating(fact)
            if _bare(own.text(fact.entity)).casefold() not in named:
                zeros[start(own.templates[0], own.text(fact.entity))] = None
        return rows, torch.tensor(owner), list(zeros)


def _spot(engine: Engine, frame: str, text: str) -> SubjectPosition:
    """The place of a frame filled with a subject, behind an opening where it would come first of all."""

    place = subject_position(engine.tokenizer, frame, text)
    return place if place.at > 0 else subject_position(engine.tokenizer, _OPENING + frame, text)


def _act(engine: Engine, layer: int) -> Any:
    """The activation function of a layer's FFN."""
    return engine.modules.layers[layer].act


def _name(fact: EditedFact) -> tuple[object, ...]:
    return (*fact_key(fact.entity, fact.relation), fact.layer, fact.templates)


def _bare(text: str) -> str:
    return _ARTICLE.sub("", text.strip(), count=1) if _ARTICLE.match(text.strip()) else text.strip()


def place_of(template: str, name: str, prompt: str) -> tuple[int, int] | None:
    """Where `name` stands in a prompt that ends like `template` ({} for the name), as (start, end); None elsewhere.

    What follows the name must be what follows the slot. Where that says nothing of what is asked ("is", "is the"),
    the words in front of the slot that do must stand in front of the name, in any order. Neither the case of letters nor
    the width of blanks matters. A name behind another capitalised word is taken for a part of a longer one.
    """
    before, _, after = template.partition("{}")
    pattern = "".join(
        r"\s+" if part.isspace() else re.escape(part) for part in re.split(r"(\s+)", after.rstrip())
    )
    body = r"\s+".join(map(re.escape, name.split()))
    found = re.search(
        f"{_edge(name[0], '<!')}({body}){_edge(name[-1], '!')}{pattern}\\s*$", prompt, re.IGNORECASE
    )
    if found is None:
        return None
    front = prompt[: found.start(1)]
    ahead = re.search(r"(\w+)\s+$", front)
    if (
        ahead is not None
        and ahead[1][0].isupper()
        and ahead[1].casefold() not in {*_words(before)[-1:], *_EMPTY}
    ):
        # Part of a longer name: New Atlantis is not Atlantis.
        return None
    if not _telling(after):
        wanted = _telling(before)
        if not _END.search(before):
            front = _END.split(front)[-1]
        if not wanted <= set(_words(front)):
            return None
    return found.start(1), found.end(1)


def _edge(letter: str, look: str) -> str:
    """The edge of a word, where the script has such: not in the scripts of East Asia."""
    return rf"(?{look}[\w-])" if letter.isalnum() and ord(letter) < 0x2E80 else ""


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _telling(text: str) -> set[str]:
    return {word for word in _words(text) if word not in _EMPTY and len(word) > 1}


def _within(name: str, prompt: str, start: int, end: int) -> bool:
    """Whether the prompt's [start, end) is part of the longer name."""
    body = r"\s+".join(map(re.escape, name.split()))
    return any(
        m.start() <= start and end <= m.end()
        for m in re.finditer(rf"(?<!\w){body}(?!\w)", prompt, re.IGNORECASE)
    )
