"""Database facts: inserting them, and finding those that a prompt asks for. They are no part of any weight."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from larql_duck.errors import SemanticError
from larql_duck.patch.operations import InsertKnn, fact_key

if TYPE_CHECKING:
    import torch

    from larql_duck.infer.engine import Engine
    from larql_duck.patch.overlay import Fact
    from larql_duck.patch.solve import Earlier
    from larql_duck.patch.stating import Stating
    from larql_duck.result import Result
    from larql_duck.session import Session
    from larql_duck.vindex.store import Vindex

# The share of a detector's full value from which on its subject counts as named.
NAMED = 0.5
# Other database facts at whose subjects a detector is told not to answer.
_OTHERS = 64
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


def insert_knn(
    session: Session,
    rows: Sequence[tuple[str, str, str]],
    *,
    layer: int | None = None,
    confidence: float | None = None,
    template: str | None = None,
) -> Result:
    """One row a fact: entity, relation, target, layer; all of them are database facts of the session from now on.

    rows are (entity, relation, target); a fact that was inserted already, in whichever mode, is replaced. A key is what
    the FFN of the layer reads at the last token of the relation's first template (`template` where given), without
    weights the mean of the entity's scaled embeddings. confidence None is 1.0. SemanticError for a layer out of range.
    """
    from larql_duck.patch.inserting import _result
    from larql_duck.patch.rounding import rounded
    from larql_duck.patch.solve import default_layer
    from larql_duck.patch.stating import stating

    vindex = session.need()
    layer = default_layer(vindex.n_layers) if layer is None else layer
    if not 0 <= layer < vindex.n_layers:
        raise SemanticError(f"layer {layer} is out of range: the model has layers 0-{vindex.n_layers - 1}")
    given = () if template is None else (template,)
    statings = {r: stating(session, r, given) for r in dict.fromkeys(r for _, r, _ in rows)}
    keys = rounded(_keys(session, [(statings[r], e) for e, r, _ in rows], layer), vindex.dtype)
    tokenizer = session.vectors().tokenizer
    operations = [
        InsertKnn(
            layer, e, r, t, next(iter(tokenizer.entity_ids(t)), 0), keys[i],
            1.0 if confidence is None else confidence, statings[r].templates,
        )
        for i, (e, r, t) in enumerate(rows)
    ]  # fmt: skip
    session.edits.add(operations)
    made = [{"entity": op.entity, "relation": op.relation, "target": op.target} for op in operations]
    notices = []
    if not vindex.has_weights:
        notices.append(
            "the vindex has no weights: the keys are embeddings, and INFER, which shows database facts, needs weights"
        )
    return _result([row | {"layer": layer} for row in made], notices)


def _keys(session: Session, asked: Sequence[tuple[Stating, str]], layer: int) -> np.ndarray:
    """The keys of (stating, entity), f32 [n, hidden]."""
    vindex = session.need()
    if vindex.has_weights:
        from larql_duck.patch.keys import filled, read_inputs

        engine = session.engine()
        prompts = [filled(own.templates[0], own.text(entity))[0] for own, entity in asked]
        found: np.ndarray = read_inputs(engine, engine.tokenizer.encode_batch(prompts), layer).numpy()
        return found
    out = np.zeros((len(asked), vindex.hidden), np.float32)
    for i, (_, entity) in enumerate(asked):
        out[i] = session.vectors().entity(entity, "embedding", [])
    return out


def stored_facts(vindex: Vindex) -> list[InsertKnn]:
    """The database facts that the vindex's own knn_store.bin holds; of one (entity, relation) the last counts.

    VindexError for a damaged store.
    """
    from larql_duck.patch.knn_store import STORE, read_knn_store

    path = vindex.path / STORE
    if not path.is_file():
        return []
    found: dict[tuple[str, str], InsertKnn] = {}
    for op in read_knn_store(path, vindex.hidden, vindex.n_layers, vindex.vocab):
        if op.entity.strip():
            found.pop(fact_key(op.entity, op.relation), None)
            found[fact_key(op.entity, op.relation)] = op
    return list(found.values())


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
    average in the contexts it was made for). Detectors are those of inserted features (see patch.solve), on the model
    without edits; each is computed when first needed.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[tuple[object, ...], _Detector] = {}
        self._statings: dict[tuple[str, tuple[str, ...]], Stating] = {}
        self._lock = threading.Lock()

    def __call__(self, prompts: Sequence[str]) -> list[list[Fact]]:
        """The facts that each prompt asks for, in the order in which they were inserted."""
        facts = self._session.overlay.knn
        out: list[list[Fact]] = [[] for _ in prompts]
        if not facts:
            return out
        asked: list[tuple[int, Fact, tuple[str, str]]] = []
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

    def _stating(self, fact: Fact) -> Stating:
        from larql_duck.patch.stating import stating

        # Without the session: it may be answering a query of its own right now.
        key = (fact_key("", fact.relation)[1], fact.templates)
        if key not in self._statings:
            self._statings[key] = stating(None, fact.relation or "", fact.templates)
        return self._statings[key]

    def _places(self, fact: Fact, prompt: str) -> list[tuple[str, str]]:
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

    def _answers(self, facts: Sequence[Fact], asked: Sequence[tuple[Fact, tuple[str, str]]]) -> list[float]:
        """The answer of each fact's detector at the subject, as a share of its full value."""

        from larql_duck.infer.patched import under
        from larql_duck.patch.detector import fired
        from larql_duck.patch.keys import read_inputs, spot

        out = [0.0] * len(asked)
        with under(self._session.engine(), None) as engine:
            for layer in sorted({fact.layer for fact, _ in asked}):
                own = [i for i, (fact, _) in enumerate(asked) if fact.layer == layer]
                self._learn(engine, layer, facts, [asked[i][0] for i in own])
                starts = []
                for i in own:
                    frame, text = asked[i][1]
                    place = spot(engine.tokenizer, frame, text)
                    if place.at == 0:
                        place = spot(engine.tokenizer, _OPENING + frame, text)
                    starts.append(place.start)
                keys = read_inputs(engine, starts, layer)
                ffn = engine.anatomy.layers[layer].ffn
                act: Any = getattr(ffn, "act_fn", None) or ffn.act
                for key, i in zip(keys, own, strict=True):
                    detector = self._known[_name(asked[i][0])]
                    out[i] = float(fired(detector.gate, detector.up, key[None], act)[0, 0]) / detector.full
        return out

    def _learn(self, engine: Engine, layer: int, facts: Sequence[Fact], wanted: Sequence[Fact]) -> None:
        """None; the detectors of the wanted facts, all of one layer, are known afterwards."""
        import torch

        from larql_duck.patch.second_moments import second_moments
        from larql_duck.patch.solve import Earlier, Wanted, detect

        new = list({_name(f): f for f in wanted if _name(f) not in self._known}.values())
        if not new:
            return
        second = second_moments(self._session, layer, "ffn_in").matrix
        subjects = {fact_key(f.entity, None)[0] for f in new}
        others = [f for f in facts if fact_key(f.entity, None)[0] not in subjects]
        earlier: list[Earlier] = [
            Earlier(self._stating(f).text(f.entity), self._stating(f).templates) for f in others[-_OTHERS:]
        ]
        found = detect(
            engine,
            [
                Wanted(f.entity, f.relation or "", f.target, self._stating(f).templates, self._stating(f))
                for f in new
            ],
            layer=layer,
            second=second,
            dtype="f32",
            earlier=earlier,
            progress=self._session.progress,
        )
        for i, fact in enumerate(new):
            gate, up = (torch.from_numpy(rows[i : i + 1]) for rows in (found.gate, found.up))
            self._known[_name(fact)] = _Detector(gate, up, float(found.mean[i]))


def _name(fact: Fact) -> tuple[object, ...]:
    return (*fact_key(fact.entity, fact.relation), fact.layer, fact.templates)


def _bare(text: str) -> str:
    return _ARTICLE.sub("", text.strip(), count=1) if _ARTICLE.match(text.strip()) else text.strip()


def place_of(template: str, name: str, prompt: str) -> tuple[int, int] | None:
    """Where `name` stands in a prompt that ends like `template` ({} for the name), as (start, end); None elsewhere.

    What follows the name must be what follows the slot. Where that says nothing of what is asked ("is", "is the"),
    the words in front of the slot that do must stand in front of the name, in any order. Neither the case of letters nor
    the width of blanks matters.
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
    if not _telling(after):
        wanted = _telling(before)
        front = prompt[: found.start(1)]
        if not _END.search(before):
            front = _END.split(front)[-1]
        if not wanted <= set(_words(front)):
            return None
    return found.start(1), found.end(1)


def _edge(letter: str, look: str) -> str:
    """The edge of a word, where the script has such: not in the scripts of East Asia."""
    return rf"(?{look}\w)" if letter.isalnum() and ord(letter) < 0x2E80 else ""


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
